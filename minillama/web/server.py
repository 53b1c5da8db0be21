"""The server of the page: OpenAI's routes, a look inside, and the page's own files."""

import asyncio
import contextlib
import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minillama.config_checks import Range
from minillama.web.inspection import inspection
from minillama.web.protocol import Writer, check_names, read_asked, read_ids, value_of
from minillama.web.request_guard import PAGES, Refused, RequestGuard, error_body, read_json
from minillama.web.token_facts import Piece, answer_rows, label, read_text
from minillama.web.worker import Turn, Worker

LOOK_EVERY = 1  # second, whether who waits for an answer is still there
KINDS = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Service:
    """What the routes do with `models`, a list of `Loaded`: the first answers where a request names none."""

    def __init__(self, models):
        self.models, self.worker = {loaded.name: loaded for loaded in models}, Worker()

    def chosen(self, body):
        """(the model that a request names, the strength of its adapter)."""
        name = value_of(body, "model", str, None, next(iter(self.models)))
        if name not in self.models:
            raise Refused(404, f"there is no model {name[:80]!r} here: choose one of {', '.join(self.models)}")
        return self.models[name], value_of(body, "adapter_scale", float, Range(0, 2), 1.0)

    async def complete(self, request):
        """/v1/chat/completions and /v1/completions, as a stream or whole."""
        kind, body = ("chat" if "chat" in request.url.path else "text"), await read_json(request)
        loaded, scale = self.chosen(body)
        asked = read_asked(body, kind, loaded)
        writer = Writer(kind, asked, loaded)
        turn = Turn(loaded, scale, lambda: begin(asked, loaded), len(asked.rows), max(map(len, asked.prompts)),
                    asked.max_new_tokens)
        first, news = await self.ask(turn, request)  # what is refused is refused before the answer begins
        if asked.stream:
            return StreamingResponse(events(writer, first, news), media_type="text/event-stream")
        made = first
        async with contextlib.aclosing(news):
            async for pieces in news:
                made += pieces
                if await request.is_disconnected():
                    break
        return JSONResponse(writer.whole(made))

    async def ask(self, turn, request):
        """(what the turn tells first, its later news); its place is given up where its asker leaves before that."""
        news = self.worker.ask(turn).news()
        first = asyncio.ensure_future(anext(news))
        while not (await asyncio.wait([first], timeout=LOOK_EVERY))[0]:
            if await request.is_disconnected():
                first.cancel()
                raise Refused(408, "the connection was closed before the answer began")
        return first.result(), news

    async def look_inside(self, request):
        """/v1/inspect: {"tokens": ids, "said": the id that came next} -> `inspection`."""
        body = await read_json(request)
        check_names(body, "inspect")
        loaded, scale = self.chosen(body)
        ids = read_ids(body, "tokens", loaded)
        said = value_of(body, "said", int, Range(0, loaded.model.config.vocab_size - 1))
        turn = Turn(loaded, scale, lambda: ([inspection(loaded.model, loaded.tokenizer, ids, said)], []))
        return JSONResponse((await self.ask(turn, request))[0][0])

    async def list_models(self, request):
        """/v1/models"""
        return JSONResponse({"object": "list", "data": [loaded.described() for loaded in self.models.values()]})


def begin(asked, loaded):
    """(the echo's `Piece`s, the rows that answer a request), in the model's thread."""
    model, tokenizer = loaded.model, loaded.tokenizer
    rows = answer_rows(model, tokenizer, asked.rows, asked.max_new_tokens, asked.sampling, asked.stop, asked.seed,
                       asked.stop_ids, asked.n_top)
    echo = []
    for index, ids in enumerate(asked.rows if asked.echo else ()):
        first = {"id": ids[0], "token": label(tokenizer, ids[0]), "top_logprobs": []}
        echo.append(Piece(tokenizer.decode(ids), (first, *read_text(model, tokenizer, ids, asked.n_top or 0)[1:]),
                          None, index))
    return echo, rows


async def events(writer, first, news):
    """The events of a stream, until it ends or nobody listens: what has come meanwhile goes out at once."""
    async with contextlib.aclosing(news):
        prompt = [{"id": index, "token": label(writer.loaded.tokenizer, index)} for index in writer.asked.prompts[0]]
        head = {"prompt_tokens": prompt, "stop": list(writer.asked.stop),
                "stop_token_ids": sorted(writer.asked.stop_ids)}
        yield event({**writer.chunk(first[0]), **head}) + "".join(event(writer.chunk(piece)) for piece in first[1:])
        try:
            async for pieces in news:
                yield "".join(event(writer.chunk(piece)) for piece in pieces)
            yield "data: [DONE]\n\n"
        except ValueError as error:
            yield event(error_body(error, getattr(error, "status", 400)))


async def refuse(request, error):
    """An error of a request's making as a response."""
    status = getattr(error, "status", 400)
    return JSONResponse(error_body(error, status), status)


def application(models, key, hosts):
    """The ASGI application for `models`, a list of `Loaded`: the page, OpenAI's routes, and /v1/inspect."""
    service = Service(models)
    posts = {"/v1/chat/completions": service.complete, "/v1/completions": service.complete,
             "/v1/inspect": service.look_inside}
    routes = [Route(path, made, methods=["POST"]) for path, made in posts.items()]
    routes += [Route(path, page(path), methods=["GET"]) for path in PAGES]
    app = Starlette(routes=[*routes, Route("/v1/models", service.list_models, methods=["GET"])],
                    exception_handlers={ValueError: refuse, TypeError: refuse})
    return RequestGuard(app, key, hosts)


def event(found):
    """One event of a stream of server-sent events."""
    return f"data: {json.dumps(found)}\n\n"


def page(path):
    """The route of one of the page's files, read when the server starts: no request names a file."""
    name = path.strip("/") or "page.html"
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")

    async def send(request):
        return Response(text, media_type=KINDS[Path(path).suffix])

    return send
