"""What stands between the network and Gradio, in plain ASGI: few doors, small requests, no files.

Gradio serves dozens of routes: files by path, uploads to disk, fetching addresses for a client, its development tools.
The page needs a handful, and takes its pictures through a route of its own, so everything else does not exist here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Container, MutableMapping
from typing import Any

from san.demo.limits import Limits, RateLimit
from san.demo.pictures import Inbox

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "/san/image"
_GET = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt)"
    r"|/(assets|static)(/[\w.@-]+)+"
    r"|/gradio_api/(startup-events|theme\.css|queue/data|heartbeat/\w+)"
)
_JOIN = "/gradio_api/queue/join"
_POST = (UPLOAD, _JOIN, "/gradio_api/cancel", "/gradio_api/reset")
_MAX_UPLOADS = 8  # received at a time
_UPLOAD_SECONDS = 60.0
_HEADERS = {
    # Everything comes from this server: nothing is fetched from elsewhere, and the page can send nothing elsewhere.
    # Gradio's front end compiles templates and handlers, hence eval and inline code.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """An answer other than yes.

    Args:
        status: HTTP status.
        detail: what the visitor is told.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """ASGI middleware around Gradio's application.

    Args:
        app: what answers the requests that are let through.
        inbox: where uploaded pictures go.
        limits: sizes and rates.
        functions: numbers of what the page may ask for.
    """

    def __init__(self, app: App, inbox: Inbox, limits: Limits, functions: Container[int] = ()) -> None:
        self._app, self._inbox, self._limits, self._functions = app, inbox, limits, functions
        self._rate = RateLimit(limits.requests_per_minute)
        self._uploads = asyncio.Semaphore(_MAX_UPLOADS)
        # the words, escaped at worst, and what Gradio adds
        self._max_body = 6 * limits.max_characters + 20_000

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        try:
            if scope["method"] in ("GET", "HEAD"):
                if path == "/manifest.json":  # every page of Gradio's names it
                    await answer(send, 200, {"name": "SAN"})
                    return
                if not _GET.fullmatch(path) or ".." in path:
                    raise Refusal(404, "there is no such page")
                await self._app(scope, receive, send)
                return
            if scope["method"] != "POST" or path not in _POST:
                raise Refusal(404, "there is no such page")
            self._check_sender(scope)
            if path == UPLOAD:
                await self._receive_picture(scope, receive, send)
                return
            try:
                body = await asyncio.wait_for(_read(scope, receive, self._max_body), _UPLOAD_SECONDS)
            except asyncio.TimeoutError:
                raise Refusal(408, "The request took too long; try again.") from None
            if path == _JOIN:
                _check_plain(body, self._functions)
                send = _in_our_words(send)
            await self._app(scope, _replay(body, receive), send)
        except Refusal as refusal:
            await answer(send, refusal.status, {"detail": refusal.detail})

    def _check_sender(self, scope: Scope) -> None:
        """Not from another site's page, and not too often."""
        headers = dict(scope["headers"])
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin is not None and origin.split(b"://")[-1] != host:
            raise Refusal(403, "this request comes from another site's page")
        if not self._rate.admit((scope.get("client") or ("unknown",))[0]):
            raise Refusal(429, "Too many requests from your address; wait a minute and try again.")

    async def _receive_picture(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._uploads.locked():
            raise Refusal(503, "Too many uploads at the moment; try again shortly.")
        async with self._uploads:
            try:
                content = await asyncio.wait_for(_read(scope, receive, self._limits.max_bytes), _UPLOAD_SECONDS)
            except asyncio.TimeoutError:
                raise Refusal(408, "The upload took too long; try a smaller picture.") from None
        await answer(send, 200, {"token": self._inbox.put(content)})


async def _read(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """A request's body; one that is too large is refused as soon as that is known."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    body = bytearray()
    too_large = Refusal(413, f"The file is too large; the limit here is {max_bytes / 1e6:.1f} MB. Shrink it.")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the upload was cut off")
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large
        if not message.get("more_body"):
            return bytes(body)


def _check_plain(body: bytes, functions: Container[int]) -> None:
    """Inputs are texts, numbers and switches; the page has none that is a file, so none is let through to Gradio.

    Gradio would take a record of a file for any input, look for its path, or fetch its address.
    """
    try:
        request = json.loads(body)
        values = [*request["data"], *(request.get("event_data") or {}).values()]
        known = request["fn_index"] in functions
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refusal(400, "this is no request of the page") from None
    if not known:
        raise Refusal(400, "this is no request of the page")
    if any(isinstance(value, (dict, list)) for value in values):
        raise Refusal(400, "files and records are no input of this page; pictures go to its upload")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once more, then what comes after it."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _with_headers(send: Send) -> Send:
    extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return wrapped


def _in_our_words(send: Send) -> Send:
    """What a full queue tells its visitor."""
    full = False

    async def wrapped(message: Message) -> None:
        nonlocal full
        if message["type"] == "http.response.start":
            full = message["status"] == 503
            if full:
                await answer(send, 503, {"detail": "Too many visitors ask at the moment; try again in a minute."})
        if not full:
            await send(message)

    return wrapped


async def answer(send: Send, status: int, content: dict[str, str]) -> None:
    """Sends a small JSON answer."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not waited for
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
