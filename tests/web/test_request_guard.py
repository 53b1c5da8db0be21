"""Hostile requests: each is refused in one line, and the next honest one is answered."""

import itertools
import json
import random
import socket
import time
from functools import partial

import pytest
from mutants import Mutant
from web_server import KEY, ask, made_loaded, running


@pytest.fixture(scope="module")
def port():
    with running(made_loaded()) as port:
        yield port


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def refused(port, *arguments, **options):
    status, _, found = ask(port, *arguments, **options)
    assert 400 <= status < 500, (status, found)
    assert "\n" not in found["error"]["message"] and found["error"]["code"] == status
    assert len(found["error"]["message"]) <= 1000
    return status


def honest(port):
    assert ask(port, "/v1/chat/completions", CHAT)[0] == 200


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}",
                                 f"bearer {KEY}", "Bearer \u00e9"])
def test_without_the_key_nothing_is_told(port, key):
    given = {"Authorization": key and key.encode("latin-1")}
    for path, body in (("/v1/models", None), ("/v1/chat/completions", CHAT), ("/v1/inspect", {"tokens": [1]}),
                       ("/page.html", None), ("/../server.py", None), ("/v1/none", None)):
        assert refused(port, path, body, given) == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "0.0.0.0:{port}",
                                  "[::1]:{port}", "127.0.0.1:{port}.evil.example", "LOCALHOST:{port}", ""])
def test_a_foreign_name_for_this_machine_is_refused(port, host):
    for path in ("/", "/page.js", "/v1/models"):
        assert refused(port, path, headers={"Host": host.format(port=port)}) == 403
    assert ask(port, "/v1/models", headers={"Host": f"localhost:{port}"})[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1",
                                    "127.0.0.1:{port}", "http://127.0.0.1:{port}.evil.example", "file://"])
def test_another_sites_page_is_refused_even_with_the_key(port, origin):
    assert refused(port, "/v1/chat/completions", CHAT, {"Origin": origin.format(port=port)}) == 403
    assert ask(port, "/v1/chat/completions", CHAT, {"Origin": f"http://127.0.0.1:{port}"})[0] == 200


def answer_to(port, target, *headers):
    """The status and the body of a GET of exactly this target."""
    lines = [f"GET {target} HTTP/1.1", *headers, f"Authorization: Bearer {KEY}", "Connection: close", "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as asker:
        asker.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: asker.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_an_absolute_target_is_answered_by_its_own_host_whatever_the_header_says(port):
    """RFC 9112, section 3.2.2."""
    ours, foreign = f"127.0.0.1:{port}", "evil.example"
    plain = answer_to(port, "/v1/models", f"Host: {ours}")
    assert plain[0] == 200
    for target in (f"http://{ours}/v1/models", f"HTTP://localhost:{port}/v1/models", f"http://{ours}/v1/model%73?a=/b"):
        for host in (ours, foreign, ""):
            assert answer_to(port, target, f"Host: {host}") == plain
    page = answer_to(port, "/", f"Host: {ours}")
    assert page[0] == 200
    for end in ("", "/", "?a=b"):
        assert answer_to(port, f"http://{ours}{end}", f"Host: {ours}") == page
    for target in ("http://evil.example/", f"http://evil.example:{port}/v1/models", f"http://me@{ours}/", "http:///",
                   f"http://evil.example%2F@{ours}/", f"http://{ours}.evil.example/"):
        assert answer_to(port, target, f"Host: {ours}")[0] == 403
    assert answer_to(port, f"http://{ours}/")[0] == 400  # the header must be there all the same
    assert answer_to(port, f"http://{ours}/", f"Host: {ours}", f"Host: {ours}")[0] in (400, 403)
    assert answer_to(port, f"https://{ours}/", f"Host: {ours}")[0] == 404
    assert answer_to(port, f"http://{ours}/v1/none", f"Host: {ours}")[0] == 404


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_a_refusal_reaches_a_sender_who_is_still_sending(port, late):
    """Bytes that arrive at a connection that is closed already would have it reset, and the answer lost."""
    head = f"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 300000\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sender:
            sender.sendall(head.encode())
            time.sleep(late)
            for _ in range(30):
                sender.sendall(b"x" * 10_000)
            answer = b""
            while part := sender.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 401") and b"the key is missing" in answer


BAD = [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"messages": NaN}', b"[" * 100_000, b'{"a":' * 50_000,
       b'{"max_tokens": ' + b"9" * 5000 + b"}"]
WRONG = [{"messages": []}, {"messages": "Hi"}, {"messages": [1]}, {"messages": [{"role": "user"}]},
         {"messages": [{"role": "tool", "content": "x"}]}, {"messages": [{"role": "user", "content": [1]}]},
         {"messages": [{"role": "assistant", "content": "x"}]}, {**CHAT, "n": 9}, {**CHAT, "tools": []},
         {**CHAT, "temperature": -1}, {**CHAT, "temperature": "hot"}, {**CHAT, "temperature": True},
         {**CHAT, "top_p": 0}, {**CHAT, "top_p": 1.5}, {**CHAT, "top_k": -1}, {**CHAT, "max_tokens": -1},
         {**CHAT, "max_tokens": 1e9}, {**CHAT, "max_tokens": 1 << 70}, {**CHAT, "seed": -1}, {**CHAT, "seed": 1.5},
         {**CHAT, "stop": ""}, {**CHAT, "stop": [""]}, {**CHAT, "stop": ["a"] * 17}, {**CHAT, "stop": 5},
         {**CHAT, "stream": "yes"}, {**CHAT, "model": "other"}, {**CHAT, "model": 3}, {**CHAT, "logprobs": 3},
         {**CHAT, "logprobs": True, "top_logprobs": 21}, {**CHAT, "adapter_scale": 0.5}, {**CHAT, "adapter_scale": 3},
         {**CHAT, "stop_token_ids": [999]}, {"messages": [{"role": "user", "content": "x" * 600}]},
         {"messages": [{"role": "user", "content": "\ud800"}]},
         {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}]

DEEP = [1]
for _ in range(300):
    DEEP = [DEEP]
NUMBERS = [0, -1, 9, 1e9, 1 << 70, 1.5, True, False, "2", [2], {}, -(1 << 63)]
ROWS = [[], [[]], [""] * 9, ["a"] * 10_000, [[1]] * 10_000, [1] * 10_000, [[1] * 10_000], ["a" * 10_000], [1, "a"],
        ["a", 1], ["a", [1]], [[1], "a"], [[1], 1], [[[1]]], DEEP, [True], [[True]], [None], [[None]], [1.5], [[1.5]],
        [{}], {}, {"a": "b"}, True, 5, None, ["a", None], [-1], [[-1]], [259], [[259]], ["\ud800"], [[1], []],
        [["a"]], ["a" * 100_000] * 8, [1 << 70], [[1] * 512] * 9]
TEXTS = [*({"prompt": "a", "max_tokens": 2, "n": n} for n in NUMBERS),
         *({"messages": CHAT["messages"], "max_tokens": 2, "n": n} for n in NUMBERS),
         *({"prompt": prompt, "max_tokens": 2} for prompt in ROWS), {"prompt": ["a"] * 3, "n": 3},
         {"prompt": [[1] * 500] * 8, "n": 2}]
ECHOED = [{"prompt": prompt, "n": 8, "echo": True} for prompt in ROWS]


@pytest.mark.parametrize("body", [*BAD, *WRONG], ids=range(len(BAD) + len(WRONG)))
def test_a_request_that_means_nothing_is_refused_in_one_line(port, body):
    refused(port, "/v1/chat/completions", body)


def test_rows_that_mean_nothing_are_refused_in_one_line(port):
    for body in TEXTS:
        refused(port, "/v1/chat/completions" if "messages" in body else "/v1/completions", body)
    honest(port)


@pytest.mark.long
def test_a_thousand_hostile_requests_for_rows_are_refused_in_one_line_each(monkeypatch):
    """By a server of their own: for the other tests' one they would be too many in a minute."""
    monkeypatch.setattr("minillama.web.request_guard.MOST_REQUESTS", 2000)
    with running(made_loaded()) as port:
        for body in itertools.islice(itertools.cycle([*TEXTS, *ECHOED]), 1000):
            refused(port, "/v1/chat/completions" if "messages" in body else "/v1/completions", body)
        honest(port)


@pytest.mark.parametrize("tokens", [[], [-1], [259], [1.5], ["a"], "abc", None, [1] * 513, [True], {"a": 1}])
def test_tokens_that_the_model_does_not_know_are_refused(port, tokens):
    refused(port, "/v1/inspect", {"tokens": tokens})
    refused(port, "/v1/inspect", {"tokens": [1], "said": 259})


def test_a_long_request_is_refused(port):
    assert refused(port, "/v1/chat/completions", b" " * ((1 << 20) + 1)) == 413
    assert ask(port, "/v1/chat/completions", method="PUT", body=b"{}")[0] == 405
    assert ask(port, "/v1/models", method="DELETE")[0] == 405
    honest(port)


def test_a_slow_sender_is_let_go(monkeypatch):
    monkeypatch.setattr("minillama.web.request_guard.MOST_SECONDS", 0.2)
    with running(made_loaded()) as port, socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(5)
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                    b"Content-Length: 100\r\n\r\n{" % (port, KEY.encode()))
        assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")
        honest(port)


def test_more_requests_than_a_minute_may_have_are_refused(monkeypatch):
    monkeypatch.setattr("minillama.web.request_guard.MOST_REQUESTS", 3)
    with running(made_loaded()) as port:
        assert [ask(port, "/v1/models", headers={"Authorization": key})[0]
                for key in ["Bearer no"] * 5 + [f"Bearer {KEY}"] * 5] == [401] * 5 + [200] * 3 + [429] * 2


def test_raw_bytes_that_are_no_http_end_nothing(port):
    chance = random.Random(0)
    for n in range(30):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            lines = [b"GET / HTTP/1.1\r\n" + b"Host: a\r\n" * 2, b"\x16\x03\x01", b"GET " + b"/" * 70_000,
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                     chance.randbytes(200), b"X: " + b"y" * 100_000]
            try:
                raw.sendall(lines[n % len(lines)] + b"\r\n\r\n")
            except OSError:
                pass
    honest(port)


def turned_away(port, body):
    """A request with a wrong key; a long one may find the connection closed before all of it was sent."""
    try:
        return ask(port, "/v1/chat/completions", body, {"Authorization": "Bearer no"})
    except ConnectionError:
        return 401, {}, ""


@pytest.mark.long
def test_a_thousand_hostile_requests_leave_the_server_as_it_was():
    import os
    import threading

    def memory():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to read memory")
    with running(made_loaded()) as port:
        kinds = [lambda: ask(port, "/v1/models", headers={"Authorization": "Bearer no"}),
                 lambda: ask(port, "/", headers={"Host": "evil.example"}),
                 lambda: ask(port, "/v1/chat/completions", CHAT, {"Origin": "http://evil.example"}),
                 *(lambda body=body: turned_away(port, body)
                   for body in [*BAD, *WRONG])]
        for made in itertools.islice(itertools.cycle(kinds), 100):
            made()
        before = memory()
        for made in itertools.islice(itertools.cycle(kinds), 900):
            assert 400 <= made()[0] < 500, made
        crowd = [threading.Thread(target=kinds[n % 3]) for n in range(100)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        honest(port)
        assert memory() - before < 32 << 20, json.dumps({"before": before, "after": memory()})


plant = partial(Mutant, "minillama.web.request_guard")
MUTANTS = [
    plant('found["host"][0] not in self.hosts', 'not found["host"][0].startswith(tuple(self.hosts))',
          lambda: at_a_port(test_a_foreign_name_for_this_machine_is_refused, "127.0.0.1:{port}.evil.example")),
    plant("or not origin.startswith", "and not origin.startswith",
          lambda: at_a_port(test_another_sites_page_is_refused_even_with_the_key, "127.0.0.1:{port}")),
    plant("not hmac.compare_digest(given[0].encode(),", "not hmac.compare_digest(given[0].encode()[:27],",
          lambda: at_a_port(test_without_the_key_nothing_is_told, f"Bearer {KEY}x")),
    plant("host if name.lower() == b\"host\" else value", "value",
          lambda: at_a_port(test_an_absolute_target_is_answered_by_its_own_host_whatever_the_header_says)),
    plant("(slash or b\"/\") + rest", "slash + rest",
          lambda: at_a_port(test_an_absolute_target_is_answered_by_its_own_host_whatever_the_header_says)),
    plant("            await read_away(receive)\n", "",
          lambda: at_a_port(test_a_refusal_reaches_a_sender_who_is_still_sending, 0.3)),
    plant("if len(body) > MOST_BYTES", "if len(body) < 0", lambda: at_a_port(test_a_long_request_is_refused)),
]


def at_a_port(law, *arguments):
    """A law with a server of its own."""
    with running(made_loaded()) as port:
        law(port, *arguments)
