"""`chat --web`: the flags of the page, and its server on this machine alone."""

import secrets
import socket
import sys
import webbrowser
from copy import copy
from pathlib import Path

from minillama.config_checks import Range
from minillama.web.protocol import Loaded
from minillama.web.web_recording import record

NEEDED = "starlette", "uvicorn"


def add_web(chat):
    """--web [--port N] [--against PATH] [--record FILE]"""
    chat.add_argument("--web", action="store_true", help="talk, and look inside, on a page in the browser")
    chat.add_argument("--port", type=int, metavar="N", help="of --web, on this machine alone (default: a free one)")
    chat.add_argument("--record", metavar="FILE", help="with --web: answer the lines of stdin, and write all that the "
                      "page shows as one file instead")
    chat.add_argument("--against", metavar="PATH", help="with --web: a second model, or an adapter's "
                      "folder, side by side, of the same tokens")


def require_web(arguments):
    """The arguments; ValueError where a flag of the page stands without --web, or what it needs is not installed."""
    given = [flag for flag in ("port", "against", "record") if getattr(arguments, flag) is not None]
    if given and not arguments.web:
        raise ValueError(f"--{given[0]} belongs to the page in the browser: give --web too")
    if arguments.port is not None and arguments.port not in Range(0, 65535):
        raise ValueError(f"--port is {arguments.port}: it must be from 0 to 65535; 0 takes a free one")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        if arguments.web and arguments.record is None:
            raise ValueError(f"--web needs {error.name}, which is not here: {sys.executable} -m pip install "
                             f"{' '.join(NEEDED)}") from None
    return arguments


def load_models(arguments, model, conversation, sampling, load):
    """[`Loaded` of --model, and of --against where it is given]; `load(arguments)` gives (model, tokenizer)."""
    def loaded(path, model, tokenizer):
        return Loaded(path, model, tokenizer, conversation.template, sampling, arguments.max_new_tokens,
                      arguments.seed, arguments.system)

    made = [loaded(Path(arguments.model).name, model, conversation.tokenizer)]
    if arguments.against is not None:
        other = copy(arguments)
        other.model, other.adapter = arguments.against, None
        second, tokenizer = load(other)
        ours = conversation.tokenizer
        if [ours.id_to_piece(i) for i in range(ours.vocab_size)] != \
                [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]:
            raise ValueError(f"{arguments.against} reads other tokens than {arguments.model}: side by side they must "
                             "share a tokenizer")
        name = Path(arguments.against).name
        made.append(loaded(name if name != made[0].name else arguments.against, second, tokenizer))
    return made


def serve(models, arguments, questions):
    """Answer at http://127.0.0.1:PORT/#KEY until Ctrl-C; the address is printed, and opened where somebody looks. With
    --record: answer the `questions` instead, and write the page."""
    if arguments.record is not None:
        return record(models[0], questions, arguments.record)
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from minillama.web.request_guard import Impatient
    from minillama.web.server import application

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", arguments.port or 0))
    except OSError as error:
        raise ValueError(f"port {arguments.port} cannot be had; leave --port out for a free one") from error
    host, key = f"127.0.0.1:{listening.getsockname()[1]}", secrets.token_urlsafe(24)
    app = application(models, key, (host, host.replace("127.0.0.1", "localhost")))
    address = f"http://{host}/#{key}"
    print(f"{address}\nfor OpenAI's clients: base_url http://{host}/v1, api_key {key}; Ctrl-C ends", flush=True)
    if sys.stdout.isatty():
        webbrowser.open(address)
    config = uvicorn.Config(app, http=type("Connection", (Impatient, H11Protocol), {}), log_level="error",
                            access_log=False, ws="none", lifespan="off", server_header=False, limit_concurrency=64,
                            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=1 << 15)
    uvicorn.Server(config).run(sockets=[listening])
