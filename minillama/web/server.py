"""The server of the page: models in memory, one thread that runs them, requests that wait for it in their order."""

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minillama.config_checks import Range
from minillama.web.inspection import inspection
from minillama.web.protocol import Writer, check_names, read_asked, read_ids, value_of
from minillama.web.request_guard import PAGES, Refused, RequestGuard, error_body, read_json
from minillama.web.token_facts import Piece, answers, label, read_text

MOST_WAITING = 16  # requests, beside the one that is answered
KINDS = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Worker:
    """The one thread in which models run. Requests take their turns in the order in which they came."""

    def __init__(self):
        self.thread, self.turn, self.waiting = ThreadPoolExecutor(1), asyncio.Lock(), 0

    async def run(self, make):
        """Yield what the iterator that `make()` gives yields, each step made in the thread; it is closed with this."""
        if self.waiting >= MOST_WAITING:
            raise Refused(429, f"{MOST_WAITING} requests are waiting already: ask again later")
        self.waiting += 1
        try:
            await self.turn.acquire()
        finally:
            self.waiting -= 1
        loop, steps, end = asyncio.get_running_loop(), make(), object()
        try:
            while (step := await loop.run_in_executor(self.thread, next, steps, end)) is not end:
                yield step
        finally:
            self.thread.submit(steps.close)  # behind the step that may be running still
            self.turn.release()


def pieces_of(asked, loaded, scale):
    """The `Piece`s that answer a request, in the model's thread."""
    loaded.scale_adapter(scale)
    for index, ids in enumerate(asked.rows if asked.echo else ()):
        facts = read_text(loaded.model, loaded.tokenizer, ids, asked.n_top or 0)
        first = {"id": ids[0], "token": label(loaded.tokenizer, ids[0]), "top_logprobs": []}
        yield Piece(loaded.tokenizer.decode(ids), (first, *facts[1:]), None, index)
    yield from answers(loaded.model, loaded.tokenizer, asked.rows, asked.max_new_tokens, asked.sampling, asked.stop,
                       asked.seed, asked.stop_ids, asked.n_top or 0)


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
        writer, pieces = Writer(kind, asked, loaded), self.worker.run(lambda: pieces_of(asked, loaded, scale))
        first = await anext(pieces)  # what is refused is refused before the answer begins
        if asked.stream:
            return StreamingResponse(events(request, writer, first, pieces), media_type="text/event-stream")
        made = [first]
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                made.append(piece)
                if await request.is_disconnected():
                    break
        return JSONResponse(writer.whole(made))

    async def look_inside(self, request):
        """/v1/inspect: {"tokens": ids, "said": the id that came next} -> `inspection`."""
        body = await read_json(request)
        check_names(body, "inspect")
        loaded, scale = self.chosen(body)
        ids = read_ids(body, "tokens", loaded)
        said = value_of(body, "said", int, Range(0, loaded.model.config.vocab_size - 1))

        def look():
            loaded.scale_adapter(scale)
            yield inspection(loaded.model, loaded.tokenizer, ids, said)

        async with contextlib.aclosing(self.worker.run(look)) as found:
            return JSONResponse(await anext(found))

    async def list_models(self, request):
        """/v1/models"""
        return JSONResponse({"object": "list", "data": [loaded.described() for loaded in self.models.values()]})


async def events(request, writer, first, pieces):
    """The events of a stream, until it ends or nobody listens."""
    async with contextlib.aclosing(pieces):
        prompt = [{"id": index, "token": label(writer.loaded.tokenizer, index)} for index in writer.asked.prompts[0]]
        yield event({**writer.chunk(first), "prompt_tokens": prompt, "stop": list(writer.asked.stop),
                     "stop_token_ids": sorted(writer.asked.stop_ids)})
        async for piece in pieces:
            if await request.is_disconnected():
                return
            yield event(writer.chunk(piece))
        yield "data: [DONE]\n\n"


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
