"""A server of the page for the tests: a small model without training, on a real port of this machine."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
import torch
from test_generate import ByteTokenizer

from minillama.chat import ChatSampling
from minillama.config import ModelConfig
from minillama.transformer import Transformer
from minillama.web.protocol import Loaded

CONFIG = ModelConfig(32, 3, 4, 259, n_kv_heads=2, hidden_dim=48, max_seq_len=512)
KEY = "the-key-of-the-tests"


class Bytes(ByteTokenizer):
    """Ids are UTF-8 bytes, with names that a page can show."""

    special_tokens = {"<s>": 256, "</s>": 257}
    chat_template = None

    def id_to_piece(self, index):
        return chr(index) if index < 128 else {256: "<s>", 257: "</s>", 258: ""}.get(index, f"<0x{index:02X}>")


def made_model(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    return Transformer(config).eval()


def made_loaded(seed=0, name="small", config=CONFIG):
    return Loaded(name, made_model(seed, config), Bytes(), "vicuna", ChatSampling(), 12)


def need_libraries():
    """Skip the test where what the page is served with is not installed."""
    pytest.importorskip("starlette", reason="an extra: pip install 'minillama[web]'")
    return pytest.importorskip("uvicorn", reason="an extra: pip install 'minillama[web]'")


@contextlib.contextmanager
def running(*models):
    """The port at which `models` answer."""
    uvicorn = need_libraries()
    from minillama.web.server import application

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = application(list(models), KEY, (f"127.0.0.1:{port}", f"localhost:{port}"))
    runner = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none", lifespan="off",
                                           timeout_graceful_shutdown=1))
    with at_work(runner, listening):
        yield port


@contextlib.contextmanager
def at_work(runner, listening):
    """uvicorn's server in a thread of its own, from when it listens to its end."""
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        runner.should_exit = True
        thread.join(5)


def ask(port, path, body=None, headers=None, method=None, timeout=20):
    """(status, headers, parsed or raw body) of one request with the right key, unless `headers` say otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
    given = {name: value for name, value in given.items() if value is not None}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, data, given)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    with contextlib.suppress(ValueError):
        return answer.status, answer.headers, json.loads(text)
    return answer.status, answer.headers, text.decode()
