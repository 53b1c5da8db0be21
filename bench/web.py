"""The server of `chat --web` on this machine beside the model alone: the first token, the stream, a look inside.

One process holds the model, the server and its client. Answers are streamed: the text alone, as `generate` gives it,
and as the page asks, with five rivals of each token. The peer is `generate_text` on the same model, for a look inside
the plain forward pass over the same tokens, and for several requests at once the same requests one after the other.
Wall-clock times are what a reader waits; CPU times, of all threads but the client's (of several requests: of all), are
worth more on a busy machine.
The table of what is wanted says how much later the first token came than by `generate_text`, at what part of its rate
the others followed, and how long a look took. `--out FILE` writes both tables as a page: docs/web.md is made so.
"""

import contextlib
import datetime
import http.client
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
from _readers import random_file

from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.config import ModelConfig, preset
from minillama.generate import generate_text
from minillama.sampling import Sampling
from minillama.web.protocol import Loaded

KEY, PROMPT, N, LOOK = "the-key-of-the-benchmark", 32, 48, 256  # tokens read, tokens written, tokens looked into
ROWS, RIVALS = 4, 5  # requests at once; of each token, as the page asks
SHOWN = ("what", "size", "ours", "peer", "ratio", "rounds")
TOKENIZER = SimpleNamespace(end_ids=set(), id_to_piece=str,  # each token is its number, so that each is told at once
                            decoder=lambda: SimpleNamespace(push=lambda token: f" {token}", flush=str))


@contextlib.contextmanager
def serving(loaded):
    """The port at which a model answers."""
    import uvicorn

    from minillama.web.server import application

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(application([loaded], KEY, [f"127.0.0.1:{port}"]), log_level="error",
                                           ws="none", lifespan="off"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        runner.should_exit = True
        thread.join()


@contextlib.contextmanager
def asked(port, path, body):
    """The lines of an answer, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{path} answers {answer.status}, {answer.read().decode()}: nothing was timed")
    with contextlib.closing(connection):
        yield answer


def now():
    """(seconds on the wall, seconds of all processors in this process)."""
    return time.perf_counter(), time.process_time()


def streamed(port, ids, logprobs=None):
    """[`now` at the start, and behind each token as it came over HTTP], less what this thread, the client's, worked."""
    times, began = [now()], time.thread_time()
    body = {"prompt": ids, "max_tokens": N, "temperature": 0, "logprobs": logprobs, "stream": True}
    with asked(port, "/v1/completions", body) as answer:
        for line in answer:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                wall, cpu = now()
                times.append((wall, cpu - (time.thread_time() - began)))
    return times


def crowd(port, ids, beside):
    """`now` before and behind ROWS requests of other prompts, `beside` one another or one after the other."""
    before = now()
    with ThreadPoolExecutor(ROWS if beside else 1) as pool:
        list(pool.map(lambda n: streamed(port, ids[n:n + PROMPT]), range(ROWS)))
    return [before, now()]


def generated(model, ids):
    """The same of the model alone."""
    return [now(), *(now() for _ in generate_text(model, TOKENIZER, ids, N, Sampling(0)))]


def looked(port, ids):
    """`now` before and behind one look inside, from question to parsed answer."""
    before = now()
    with asked(port, "/v1/inspect", {"tokens": ids, "said": 1}) as answer:
        json.load(answer)
    return [before, now()]


def passed(model, ids):
    """The same of one forward pass, with the scores at the last place."""
    before = now()
    with torch.inference_mode():
        model.logits(model.hidden_states(torch.tensor([ids]))[:, -1:])
    return [before, now()]


def between(times, clock, first, last):
    """Seconds from one of the times to another, in every round."""
    return [round_[last][clock] - round_[first][clock] for round_ in times]


def rows_of(found, shape):
    """The table's rows. found: {name: times of each round}."""
    rows = []
    for clock, word in enumerate(("wall clock", "CPU time")):
        http_first, alone_first = (between(found[name], clock, 0, 1) for name in ("HTTP", "alone"))
        http_rate, alone_rate = ([(N - 1) / s for s in between(found[name], clock, 1, N)] for name in ("HTTP", "alone"))
        look, plain = (between(found[name], clock, 0, 1) for name in ("look", "pass"))
        page = [(N - 1) / s for s in between(found["page"], clock, 1, N)]
        beside, in_turn = ([ROWS * N / s for s in between(found[name], clock, 0, 1)] for name in ("beside", "in turn"))
        rows += [_rounds.Row(f"first token over HTTP, {word}, against generate_text", f"{shape}, {PROMPT} tokens read",
                             "s", http_first, alone_first, more_is_better=False),
                 _rounds.Row(f"tokens after it over HTTP, {word}, against generate_text", f"{shape}, {N - 1} tokens",
                             "tok/s", http_rate, alone_rate),
                 _rounds.Row(f"the same with {RIVALS} rivals of each token, {word}", f"{shape}, {N - 1} tokens",
                             "tok/s", page, alone_rate),
                 _rounds.Row(f"{ROWS} requests at once, {word}, against one after the other",
                             f"{shape}, {ROWS} x {N} tokens", "tok/s", beside, in_turn),
                 _rounds.Row(f"look inside, {word}, against one forward pass", f"{shape}, {LOOK} tokens", "s", look,
                             plain, more_is_better=False)]
    return rows


def wanted(rows):
    """The table of what is wanted of `rows_of`: (what, wanted, (by the wall's clock, by CPU time), met by CPU time)."""
    def of_both(number):
        return [number(rows[at:at + len(rows) // 2]) for at in (0, len(rows) // 2)]

    def later(rows):
        return 1000 * statistics.median(mine - theirs for mine, theirs in zip(rows[0].ours, rows[0].peer, strict=True))

    def rate(row):
        return 100 * statistics.median(row.ratios(row.peer))

    late, seen = of_both(later), of_both(lambda rows: statistics.median(rows[4].ours))
    plain, page = of_both(lambda rows: rate(rows[1])), of_both(lambda rows: rate(rows[2]))
    return [("first token later than generate_text's", "up to 200 ms", [f"{ms:.0f} ms" for ms in late], late[1] <= 200),
            ("the others at its rate", "95 % or more", [f"{part:.1f} %" for part in plain], plain[1] >= 95),
            (f"with {RIVALS} rivals of each, as the page asks", "95 % or more", [f"{part:.1f} %" for part in page],
             page[1] >= 95),
            (f"a look inside {LOOK} tokens", "under 1 s", [f"{s:.2f} s" for s in seen], seen[1] < 1)]


def wanted_lines(rows):
    """`wanted` in Markdown."""
    yield from ("| what | wanted | wall clock | CPU time | by CPU time |", "|---|---|---|---|---|")
    for what, goal, (wall, cpu), met in wanted(rows):
        yield f"| {what} | {goal} | {wall} | {cpu} | {'met' if met else 'missed'} |"


def page_of(rows, loads, options):
    """The text of docs/web.md. loads: how many programs ran at a time, before and after."""
    cells = [dict(zip(_rounds.COLUMNS, row.cells(), strict=True)) for row in rows]
    return "\n".join([
        "# The page's speed on a CPU", "",
        f"Made by `python3 run.py bench web {options}`, {datetime.date.today().isoformat()}, on",
        f"{re.sub(r', threads: .*?,', ',', _rounds.machine())}.", "",
        "The server of `chat --web` beside `generate_text` on the same model, in turns: medians of the rounds,",
        "in brackets the least and the most. A ratio above 1 means that the server is better. CPU time counts what all",
        "threads but the client's work, whatever else the machine does.",
        f"Load average before and after: {loads[0]:.1f} and {loads[1]:.1f}, on {os.cpu_count()} cores.", "",
        *wanted_lines(rows), "", "| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN),
        *("| " + " | ".join(row[column] for column in SHOWN) + " |" for row in cells)]) + "\n"


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: parser.add_argument("--out", help="also write a page here"))
    if not all(map(_rounds.has_peer, ("starlette", "uvicorn"))):
        raise SystemExit("the server is what is timed: pip install starlette uvicorn")
    kernels.require("cpu")
    before = os.getloadavg()[0]
    config = ModelConfig(64, 2, 4, 512, hidden_dim=192) if chosen.small else preset("stories110m")
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(random_file(config, Path(folder)))[0].eval().requires_grad_(False)
        use_kernels(model, "cpu")
        ids = torch.randint(config.vocab_size, (LOOK,), generator=torch.Generator().manual_seed(1)).tolist()
        prompt = ids[:PROMPT]
        with serving(Loaded("random", model, TOKENIZER, "vicuna", Sampling(0))) as port:
            contenders = {"HTTP": lambda: streamed(port, prompt), "alone": lambda: generated(model, prompt),
                          "page": lambda: streamed(port, prompt, RIVALS), "beside": lambda: crowd(port, ids, True),
                          "in turn": lambda: crowd(port, ids, False),
                          "look": lambda: looked(port, ids), "pass": lambda: passed(model, ids)}
            found = _rounds.alternate(contenders, chosen.rounds, lambda work: work())
    rows = rows_of(found, f"{config.n_parameters() / 1e6:.0f} M weights")
    _rounds.show(rows)
    print(*wanted_lines(rows), sep="\n", file=sys.stderr)
    if chosen.out:
        options = f"--rounds {chosen.rounds} --threads {chosen.threads} --out {chosen.out}"
        Path(chosen.out).write_text(page_of(rows, (before, os.getloadavg()[0]), options), encoding="utf-8")


if __name__ == "__main__":
    main()
