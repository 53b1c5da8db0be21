"""Requests in OpenAI's form: read with the server's own defaults, refused where a field would be ignored."""

from functools import partial

import pytest
from mutants import Mutant
from web_server import Bytes, made_loaded

from minillama.chat import Conversation
from minillama.web.protocol import Writer, read_asked
from minillama.web.request_guard import Refused
from minillama.web.token_facts import Piece

LOADED = made_loaded()
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"}]


def test_what_is_not_said_is_as_the_server_was_started():
    asked = read_asked({"prompt": "x"}, "text", LOADED)
    assert asked.sampling == LOADED.sampling and (asked.max_new_tokens, asked.seed) == (12, 0)
    assert (asked.stop, asked.n_top, asked.stream, asked.echo) == ((), None, False, False)
    asked = read_asked({"prompt": "x", "temperature": 1, "top_p": 0.5, "stop": "a", "seed": 3, "logprobs": 0},
                       "text", LOADED)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (1.0, 0.5, 0)
    assert (asked.stop, asked.seed, asked.n_top) == (("a",), 3, 0)


def test_a_conversation_is_put_as_chat_puts_it():
    asked = read_asked({"messages": MESSAGES, "stop": ["b"]}, "chat", LOADED)
    conversation = Conversation(Bytes(), "vicuna", [*MESSAGES])
    assert asked.ids == conversation.prompt(512) and asked.stop == (*conversation.stop_texts(), "b")
    assert asked.stop_ids == conversation.stop_ids()
    assert asked.ids[:20] == read_asked({"messages": MESSAGES[:1]}, "chat", LOADED).ids[:20]


@pytest.mark.parametrize(("kind", "name"), [("chat", "tools"), ("chat", "echo"), ("text", "messages"),
                                            ("text", "best_of"), ("chat", "presence_penalty")])
def test_what_would_be_ignored_is_refused_by_its_name(kind, name):
    with pytest.raises(Refused, match=name):
        read_asked({"messages": MESSAGES, name: 1} if kind == "chat" else {"prompt": "x", name: 1}, kind, LOADED)


def test_an_answer_is_counted_and_joined():
    fact = {"id": 7, "token": "a", "logprob": -1.0, "rank": 1, "entropy": 2.0, "top_logprobs": []}
    pieces = [Piece("He", (fact,)), Piece("y", (fact, fact)), Piece("", (), "length")]
    found = Writer("chat", read_asked({"messages": MESSAGES}, "chat", LOADED), LOADED).whole(pieces)
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "Hey"}
    assert found["choices"][0]["finish_reason"] == "length" and found["choices"][0]["logprobs"] is None
    assert found["usage"]["completion_tokens"] == 3
    assert found["usage"]["total_tokens"] == 3 + found["usage"]["prompt_tokens"]


plant = partial(Mutant, "minillama.web.protocol")
MUTANTS = [
    plant("(*stops, *stop)", "tuple(stop)", test_a_conversation_is_put_as_chat_puts_it),
    plant("return ids, conversation.stop_texts(), conversation.stop_ids()",
          "return ids, conversation.stop_texts(), loaded.tokenizer.end_ids - {257}",
          test_a_conversation_is_put_as_chat_puts_it),
    plant("    check_names(body, kind)\n    stop", "    stop",
          lambda: test_what_would_be_ignored_is_refused_by_its_name("chat", "tools")),
    plant("pieces[-1].finish", "pieces[0].finish", test_an_answer_is_counted_and_joined),
]
