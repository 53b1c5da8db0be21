"""Who may ask, and how much: one line for each refusal, before anything is read or computed."""

import asyncio
import contextlib
import hmac
import json
import time
from collections import deque
from urllib.parse import unquote

PAGES = ("/", "/page.css", "/page.js")  # hold nothing that is secret; the key comes with the API's requests alone
MOST_BYTES = 1 << 20  # of a request's body
MOST_SECONDS = 10  # in which it must have come
MOST_REQUESTS = 600  # in a minute
HEADERS = [(b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
           (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"cache-control", b"no-store"),
           (b"cross-origin-resource-policy", b"same-origin"), (b"cross-origin-opener-policy", b"same-origin")]


class Refused(ValueError):
    """A request that is not answered: its HTTP status and one line that says why."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class RequestGuard:
    """An ASGI application around another: it lets through what comes from this machine's own page or with the key.

    key: what `Authorization: Bearer` must say for everything but the page's three files. hosts: the values of `Host`
    that are ours, so that a foreign name that points at this machine (DNS rebinding) is refused; a request with an
    `Origin` must name one of them too.
    """

    def __init__(self, app, key, hosts):
        self.app, self.key, self.hosts, self.times = app, key, set(hosts), deque()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        scope = origin_form(scope)
        try:
            self.check(scope)
        except Refused as refused:
            await read_away(receive)
            await send_refusal(send_with_headers, refused)
            return
        await self.app(scope, receive, send_with_headers)

    def check(self, scope):
        """Raise `Refused` for a request that is not ours to answer, by its headers alone."""
        found = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if len(found.get("host", [])) != 1 or found["host"][0] not in self.hosts:
            raise Refused(403, f"this server answers to {' and '.join(sorted(self.hosts))} alone: check the address")
        if any(origin.removeprefix("http://") not in self.hosts or not origin.startswith("http://")
               for origin in found.get("origin", [])):
            raise Refused(403, "this request comes from another site's page: open the address that was printed")
        if scope["path"] in PAGES:
            return
        given = found.get("authorization", [""])
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), f"Bearer {self.key}".encode()):
            raise Refused(401, "the key is missing or wrong: it stands behind # in the address that was printed")
        now = time.monotonic()
        while self.times and self.times[0] < now - 60:
            self.times.popleft()
        if len(self.times) >= MOST_REQUESTS:
            raise Refused(429, f"more than {MOST_REQUESTS} requests in a minute: wait a little")
        self.times.append(now)


def origin_form(scope):
    """The scope of `GET http://HOST/PATH` as that of `GET /PATH` with `Host: HOST`, which every server must understand
    (RFC 9112, section 3.2.2: what the header says does not count then); any other scope as it is."""
    raw = scope.get("raw_path") or b""
    if raw[:7].lower() != b"http://":
        return scope
    host, slash, rest = raw[7:].partition(b"/")
    raw = (slash or b"/") + rest
    headers = [(name, host if name.lower() == b"host" else value) for name, value in scope["headers"]]
    return {**scope, "path": unquote(raw.decode("latin-1")), "raw_path": raw, "headers": headers}


class Impatient:
    """What uvicorn's class of a connection lacks: where MOST_SECONDS bring no whole head of a request, it is closed."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.closing = self.loop.call_later(MOST_SECONDS, transport.close)

    def handle_events(self):
        super().handle_events()
        if self.cycle and not self.cycle.response_complete:
            self.closing.cancel()

    def on_response_complete(self):
        self.closing = self.loop.call_later(MOST_SECONDS, self.transport.close)
        super().on_response_complete()


async def read_away(receive):
    """Take what is left of a refused request, up to MOST_BYTES and for a second: where bytes are unread as a connection
    is closed, the system resets it, and the sender may never see the answer."""
    async def rest():
        size, more = 0, True
        while more and size <= MOST_BYTES:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), 1)


async def send_refusal(send, refused):
    """Answer with the error in OpenAI's form."""
    body = json.dumps(error_body(refused, refused.status)).encode()
    await send({"type": "http.response.start", "status": refused.status,
                "headers": [(b"content-type", b"application/json"), (b"connection", b"close"),
                            (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def error_body(error, status):
    """An error as OpenAI's clients read it, its message in one line, which a long value does not make endless."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": " ".join(str(error).split())[:1000], "type": kind, "param": None, "code": status}}


async def read_json(request):
    """The object in a request's body; `Refused` where it is too long, too slow, or no JSON object."""
    async def collect():
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise Refused(413, f"the request is longer than {MOST_BYTES} bytes: shorten it")
        return body

    def refuse(word):
        raise ValueError(f"{word} is no number of JSON")

    try:
        found = json.loads(await asyncio.wait_for(collect(), MOST_SECONDS), parse_constant=refuse)
    except asyncio.TimeoutError:
        raise Refused(408, f"the request did not come within {MOST_SECONDS} s: send it at once") from None
    except Refused:
        raise
    except (ValueError, RecursionError):
        raise Refused(400, "the request is no JSON: send one object in UTF-8") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the request is a JSON {type(found).__name__}: send an object")
    return found
