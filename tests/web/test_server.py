"""The server over a real connection: OpenAI's own client gets the tokens of `generate`, and nothing of others."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from web_server import KEY, Bytes, ask, made_loaded, need_libraries, running

from minillama.chat import Conversation
from minillama.generate import generate_text, generate_tokens, prompt_ids
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.sampling import Sampling
from minillama.web.inspection import inspect
from minillama.web.protocol import Loaded, Writer, read_asked
from minillama.web.token_facts import Piece
from minillama.web.worker import Turn

PROMPT = "once upon"
IDS, ENDS = prompt_ids(Bytes(), PROMPT), Bytes().end_ids


@pytest.fixture(scope="module")
def loaded():
    return made_loaded()


@pytest.fixture(scope="module")
def port(loaded):
    with running(loaded) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    openai = pytest.importorskip("openai", reason="the oracle: pip install -r tests/oracles.txt")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_openais_client_gets_the_tokens_of_generate_with_the_same_seed(client, loaded, seed):
    sampling = Sampling(0.9, top_p=0.8)
    wanted = [row[0] for row in generate_tokens(loaded.model, [IDS], 12, sampling, Bytes().end_ids, seed)]
    text = "".join(generate_text(loaded.model, Bytes(), PROMPT, 12, sampling, seed=seed))
    options = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "temperature": 0.9, "top_p": 0.8, "seed": seed}
    whole = client.completions.create(**options, logprobs=2)
    assert whole.choices[0].text == text
    assert [fact["id"] for fact in whole.choices[0].logprobs.facts] == wanted
    assert whole.usage.completion_tokens == len(wanted) and whole.usage.prompt_tokens == len(IDS)
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)) == text
    by_ids = client.completions.create(**{**options, "prompt": IDS})
    assert by_ids.choices[0].text == text


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_chat_is_asked_in_the_models_template_and_streams_logprobs(client, loaded, seed):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    conversation = Conversation(Bytes(), "vicuna", list(messages))
    ids = conversation.prompt(500)
    ends = conversation.stop_ids()
    wanted = [row[0] for row in generate_tokens(loaded.model, [ids], 10, loaded.sampling, ends, seed)]
    chunks = list(client.chat.completions.create(model="small", messages=messages, stream=True, logprobs=True,
                                                 top_logprobs=5, max_completion_tokens=10, seed=seed))
    facts = [fact for chunk in chunks for fact in chunk.choices[0].logprobs.content]
    assert [fact.id for fact in facts] == wanted
    assert all(len(fact.top_logprobs) == 5 and fact.rank >= 1 and fact.entropy > 0 for fact in facts)
    assert [token["id"] for token in chunks[0].prompt_tokens] == ids
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    whole = client.chat.completions.create(model="small", messages=messages, max_tokens=10, seed=seed)
    assert whole.choices[0].message.content == "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert [model.id for model in client.models.list()] == ["small"]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prompts_in_one_request_get_the_tokens_that_each_gets_alone(client, loaded, seed, temperature):
    options = {"model": "small", "max_tokens": 9, "temperature": temperature, "seed": seed}
    prompts = ["a", PROMPT, "", "once upon a time there was", "zz"]
    found = client.completions.create(**options, prompt=prompts, logprobs=0)
    assert [choice.index for choice in found.choices] == list(range(5))
    for prompt, choice in zip(prompts, found.choices, strict=True):
        ids = prompt_ids(Bytes(), prompt)
        wanted = [row[0] for row in generate_tokens(loaded.model, [ids], 9, Sampling(temperature), ENDS, seed)]
        assert [fact["id"] for fact in choice.logprobs.facts] == wanted
        assert choice.text == client.completions.create(**options, prompt=prompt).choices[0].text
    by_ids = client.completions.create(**options, prompt=[prompt_ids(Bytes(), prompt) for prompt in prompts])
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in found.choices]
    told = [""] * 5
    for chunk in client.completions.create(**options, prompt=prompts, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].text
    assert told == [choice.text for choice in found.choices]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choice_i_is_the_ith_draw_of_the_seed_whatever_n_is(client, loaded, seed):
    """As `row_chances` has it: the first choice is what n = 1 gives; the others are not what other seeds give."""
    messages, options = [{"role": "user", "content": "Hi"}], {"model": "small", "max_tokens": 8, "temperature": 1.5}

    def texts(n, seed):
        found = client.chat.completions.create(**options, messages=messages, n=n, seed=seed)
        return [choice.message.content for choice in sorted(found.choices, key=lambda choice: choice.index)]

    conversation = Conversation(Bytes(), "vicuna", list(messages))
    ids = conversation.prompt(500)
    ends = conversation.stop_ids()
    rows = list(zip(*generate_tokens(loaded.model, [ids] * 8, 8, Sampling(1.5), ends, seed), strict=True))
    eight = texts(8, seed)
    for row, text in zip(rows, eight, strict=True):
        decoder = Bytes().decoder()
        assert text == "".join(decoder.push(i) for i in row if i is not None and i not in ends) + decoder.flush()
    assert texts(3, seed) == eight[:3] and texts(1, seed) == eight[:1] and len(set(eight)) == 8
    assert eight[1] != texts(1, seed + 1)[0]
    told = [""] * 8
    for chunk in client.chat.completions.create(**options, messages=messages, n=8, seed=seed, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert told == eight


def test_an_echo_comes_with_each_choice(client):
    found = client.completions.create(model="small", prompt=["ab", "c"], n=2, max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in found.choices] == ["ab", "ab", "c", "c"]
    assert found.usage.completion_tokens == 0
    assert found.choices[0].logprobs.token_logprobs == found.choices[1].logprobs.token_logprobs


def test_a_stop_string_ends_the_text_before_it(client):
    text = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, temperature=0).choices[0].text
    stop = text[4:6]
    cut = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, temperature=0, stop=stop)
    assert cut.choices[0].text == text[:text.index(stop)] and cut.choices[0].finish_reason == "stop"


def test_an_echo_is_the_prompt_with_the_chances_that_the_model_gives_it(client, loaded):
    found = client.completions.create(model="small", prompt=IDS, max_tokens=0, echo=True, logprobs=1)
    log_TV = loaded.model(torch.tensor([IDS]))[0].log_softmax(-1)
    assert found.choices[0].text == PROMPT
    given = found.choices[0].logprobs.token_logprobs
    assert given[0] is None
    assert given[1:] == pytest.approx([log_TV[t, IDS[t + 1]].item() for t in range(len(IDS) - 1)], abs=1e-5)


def test_an_inspection_is_what_the_model_computes(port, loaded):
    status, _, found = ask(port, "/v1/inspect", {"tokens": IDS, "said": 7})
    weights_LHS, lens_LV = inspect(loaded.model, IDS)
    assert status == 200
    torch.testing.assert_close(torch.tensor(found["attention"]), weights_LHS, rtol=0, atol=1e-6)
    assert found["lens"][-1]["logprob"] == pytest.approx(lens_LV[-1].log_softmax(-1)[7].item(), abs=1e-6)
    assert found["distribution"]["top"][0][0] == lens_LV[-1].argmax().item()


def test_an_adapter_is_scaled_for_one_request_alone():
    model = made_loaded().model
    torch.manual_seed(3)
    add_lora(model, LoRAConfig(rank=2, alpha=4.0))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B)
    loaded = Loaded("tuned", model, Bytes(), "vicuna", Sampling(0), 8)
    with running(loaded) as port:
        def said(scale):
            body = {"prompt": IDS, "max_tokens": 8, "logprobs": 0, "adapter_scale": scale}
            return ask(port, "/v1/completions", body)[2]["choices"][0]["logprobs"]["token_logprobs"]

        plain, full = made_loaded().model, said(1)
        without = said(0)
        step = next(iter(generate_tokens(plain, [IDS], 1)))[0]
        log_V = plain(torch.tensor([IDS]))[0, -1].log_softmax(-1)
        assert without[0] == pytest.approx(log_V[step].item(), abs=1e-5)
        assert full != without and said(2) != full and said(1) == full
        assert ask(port, "/v1/completions", {"prompt": IDS, "adapter_scale": 2.5})[0] == 400


def test_conversations_beside_one_another_get_what_each_gets_alone(port):
    """Nothing of one conversation is in another: twelve at once are answered as one after the other."""
    def talk(n):
        body = {"messages": [{"role": "user", "content": f"secret {n}"}], "max_tokens": 8, "seed": n}
        return ask(port, "/v1/chat/completions", body)[2]["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(talk, range(12)))
    assert together == [talk(n) for n in range(12)] and len(set(together)) > 6


@pytest.mark.parametrize("prompt", ["x", ["x", "yy", "z"]])
def test_a_closed_connection_ends_its_answer(prompt):
    """The next request is answered long before the first would have been, or all its rows."""
    slow, steps = made_loaded(1, "slow"), []
    inner = slow.model.logits

    def logits(hidden_BTD):
        steps.append(time.sleep(0.02))
        return inner(hidden_BTD)

    slow.model.logits = logits
    with running(slow) as port:
        body = json.dumps({"prompt": prompt, "max_tokens": 90, "stream": True, "temperature": 5}).encode()
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                        b"Content-Length: %d\r\n\r\n" % (port, KEY.encode(), len(body)) + body)
            while b"data:" not in raw.recv(4096):
                pass
        assert ask(port, "/v1/completions", {"prompt": "y", "max_tokens": 1})[0] == 200
        assert len(steps) < 40


def test_too_many_waiting_requests_are_refused(monkeypatch):
    need_libraries()
    monkeypatch.setattr("minillama.web.worker.MOST_WAITING", 1)
    slow, gate = made_loaded(1, "slow"), threading.Event()
    inner = slow.model.logits
    slow.model.logits = lambda hidden_BTD: (gate.wait(10), inner(hidden_BTD))[1]
    with running(slow) as port, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, port, "/v1/completions", {"prompt": "x", "max_tokens": 1}) for _ in range(8)]
        while sum(one.done() for one in asked) < 6:
            time.sleep(0.01)
        gate.set()
        assert sorted(one.result()[0] for one in asked) == [200] * 2 + [429] * 6


def test_who_leaves_before_the_answer_begins_gives_the_place_up_and_is_never_read(monkeypatch):
    need_libraries()
    from minillama.web.worker import Worker

    monkeypatch.setattr("minillama.web.worker.MOST_WAITING", 2)
    monkeypatch.setattr("minillama.web.server.LOOK_EVERY", 0.05)
    turns, begun, gate, slow, take_place = [], [], threading.Event(), made_loaded(1, "slow"), Worker.ask
    monkeypatch.setattr(Worker, "ask", lambda self, turn: (take_place(self, turn), turns.append(turn))[0])
    inner = slow.model.logits
    slow.model.logits = lambda hidden_BTD: (gate.wait(5), inner(hidden_BTD))[1]

    def until(happened):
        end = time.monotonic() + 2
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.01)

    with running(slow) as port, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, port, "/v1/completions", {"prompt": "x", "max_tokens": 1})]
        try:
            until(lambda: len(turns) == 1)
            for path, body in (("completions", {"prompt": "y"}), ("inspect", {"tokens": IDS, "said": 7})):
                n_asked, body = len(turns), json.dumps(body).encode()
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(b"POST /v1/%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                                b"Content-Length: %d\r\n\r\n" % (path.encode(), port, KEY.encode(), len(body)) + body)
                    until(lambda n_asked=n_asked: len(turns) > n_asked)
            turns[1].begin = turns[2].begin = lambda: begun.append(1)
            until(lambda: turns[1].closed and turns[2].closed)
            asked.append(pool.submit(ask, port, "/v1/completions", {"prompt": "x", "max_tokens": 1}))
            until(lambda: len(turns) == 4)
        finally:
            gate.set()
        assert [one.result()[0] for one in asked] == [200, 200] and not begun


def test_an_error_in_a_stream_is_its_last_event(loaded):
    need_libraries()
    from minillama.web.server import events
    from minillama.web.worker import MOST_UNREAD

    writer, turn = Writer("text", read_asked({"prompt": "x"}, "text", loaded), loaded), Turn(loaded, 1.0, None)
    for _ in range(MOST_UNREAD + 1):
        turn.tell(Piece("a", ()))

    async def read():
        return "".join([text async for text in events(writer, [Piece("a", ())], turn.news())])

    told = asyncio.run(asyncio.wait_for(read(), 1)).split("\n\n")[:-1]
    found = [json.loads(text.removeprefix("data: ")) for text in told]
    assert len(found) == MOST_UNREAD + 2 and found[-1]["error"]["code"] == 408
    assert "lay unread" in found[-1]["error"]["message"] and "error" not in found[-2]


def test_the_page_comes_with_a_policy_that_forbids_scripts_of_others(port):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, text = ask(port, path, headers={"Authorization": None})
        assert status == 200 and headers["content-type"].startswith(kind)
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"] and KEY not in text
