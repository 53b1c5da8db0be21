"""`chat --web` on the command line: what is missing is told in one line, and only this machine is listened to."""

import contextlib
import http.client
import socket
import sys
import time
from argparse import Namespace
from functools import partial

import pytest
from mutants import Mutant
from test_generate import ByteTokenizer
from web_server import Bytes, ask, at_work, made_model, need_libraries

from minillama.chat import ChatSampling, Conversation
from minillama.web.web_command import load_models, require_web, serve

NOTHING = {"web": False, "port": None, "against": None, "record": None}


@pytest.mark.parametrize(("given", "word"), [({"port": 8000}, "--port"), ({"against": "x"}, "--against"),
                                             ({"record": "x.html"}, "--record"),
                                             ({"web": True, "port": 70000}, "70000"),
                                             ({"web": True, "port": -1}, "-1")])
def test_flags_of_the_page_without_it_and_ports_that_are_none_are_refused(given, word):
    need_libraries()
    with pytest.raises(ValueError, match=word):
        require_web(Namespace(**{**NOTHING, **given}))
    require_web(Namespace(**NOTHING))
    require_web(Namespace(**{**NOTHING, "web": True, "port": 0}))


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch):
    need_libraries()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match="needs uvicorn.* -m pip install starlette uvicorn"):
        require_web(Namespace(**{**NOTHING, "web": True}))
    require_web(Namespace(**NOTHING))


def models_of(tokenizer, name="b"):
    arguments = Namespace(model="x/b", against=f"y/{name}", adapter=None, max_new_tokens=5, seed=3, system="")
    conversation = Conversation(Bytes(), "vicuna")
    return load_models(arguments, made_model(), conversation, ChatSampling(), lambda _: (made_model(1), tokenizer))


def test_two_models_side_by_side_share_a_tokenizer_and_have_two_names():
    class Other(Bytes):
        def id_to_piece(self, index):
            return "x"

    assert [loaded.name for loaded in models_of(Bytes())] == ["b", "y/b"]
    assert [loaded.name for loaded in models_of(Bytes(), "c")] == ["b", "c"]
    with pytest.raises(ValueError, match="share a tokenizer"):
        models_of(Other())
    assert issubclass(Bytes, ByteTokenizer)


def test_the_second_model_is_loaded_without_the_adapter_of_the_first():
    seen = []

    def load(arguments):
        seen.append((arguments.model, arguments.adapter))
        return made_model(1), Bytes()

    arguments = Namespace(model="x/b", against="y/c", adapter="z", max_new_tokens=5, seed=3, system="")
    load_models(arguments, made_model(), Conversation(Bytes(), "vicuna"), ChatSampling(), load)
    assert seen == [("y/c", None)] and (arguments.model, arguments.adapter) == ("x/b", "z")


def test_the_server_listens_on_this_machine_alone_and_tells_its_address(monkeypatch, capsys):
    uvicorn = need_libraries()
    seen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: seen.extend([self.config.app, *sockets]))
    serve(models_of(Bytes()), Namespace(**NOTHING), [])
    app, listening = seen
    host, port = listening.getsockname()
    assert host == "127.0.0.1" and app.hosts == {f"127.0.0.1:{port}", f"localhost:{port}"}
    assert f"http://127.0.0.1:{port}/#{app.key}\n" in capsys.readouterr().out and len(app.key) >= 32
    with pytest.raises(ValueError, match=f"port {port} cannot be had"):
        listening.listen()
        serve(models_of(Bytes()), Namespace(**{**NOTHING, "port": port}), [])
    listening.close()
    serve(models_of(Bytes()), Namespace(**NOTHING), [])
    assert seen[2].key != app.key
    seen[3].close()
    assert isinstance(seen[3], socket.socket)


def test_a_connection_without_a_whole_head_is_closed_and_one_that_is_answered_is_not():
    """Half a head, one that comes by drops, and half a second one: 64 of them leave the server open to others."""
    uvicorn, seen, models = need_libraries(), [], models_of(Bytes())
    inner = models[0].model.logits
    models[0].model.logits = lambda hidden_BTD: (time.sleep(0.1), inner(hidden_BTD))[1]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        patch.setattr("minillama.web.request_guard.MOST_SECONDS", 0.4)
        with patch.context() as inside:
            inside.setattr(uvicorn.Server, "run", lambda self, sockets: seen.extend([self, *sockets]))
            serve(models, Namespace(**NOTHING), [])
        runner, listening = seen
        held.enter_context(at_work(runner, listening))
        port = listening.getsockname()[1]
        kept = held.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)))
        kept.request("GET", "/")
        assert kept.getresponse().read()
        halves = [kept.sock, *(held.enter_context(socket.create_connection(("127.0.0.1", port), 1)) for _ in range(63))]
        for half in halves:
            half.sendall(b"GET / HT")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                halves[-1].sendall(b"T")
                time.sleep(0.02)
        assert all(half.recv(1) == b"" for half in halves[:-1])
        body = {"prompt": "x", "max_tokens": 8, "temperature": 5}
        assert ask(port, "/v1/completions", body, {"Authorization": f"Bearer {runner.config.app.key}"})[0] == 200


plant = partial(Mutant, "minillama.web.web_command")
MUTANTS = [
    plant('http=type("Connection", (Impatient, H11Protocol), {}), ', "",
          test_a_connection_without_a_whole_head_is_closed_and_one_that_is_answered_is_not),
    Mutant("minillama.web.request_guard", "self.closing.cancel()", "pass",
           test_a_connection_without_a_whole_head_is_closed_and_one_that_is_answered_is_not),
    Mutant("minillama.web.request_guard", "self.closing = self.loop.call_later(MOST_SECONDS, self.transport.close)",
           "pass", test_a_connection_without_a_whole_head_is_closed_and_one_that_is_answered_is_not),
    plant('(("127.0.0.1", arguments.port', '(("", arguments.port',
          lambda: run_listening()),
    plant("other.adapter = arguments.against, None", "_ = arguments.against, None",
          test_the_second_model_is_loaded_without_the_adapter_of_the_first),
    plant("!= \\\n", "== \\\n", test_two_models_side_by_side_share_a_tokenizer_and_have_two_names),
    plant("if given and not arguments.web:", "if False:", lambda:
          test_flags_of_the_page_without_it_and_ports_that_are_none_are_refused({"port": 8000}, "--port")),
]


def run_listening():
    """The law of the address, with what pytest would bring."""
    from types import SimpleNamespace

    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        test_the_server_listens_on_this_machine_alone_and_tells_its_address(
            patch, SimpleNamespace(readouterr=lambda: SimpleNamespace(out="\n".join(printed))))
