"""ASGI middleware that protects Gradio: it admits few routes, small requests and no files.

Gradio serves dozens of routes: files by path, uploads to disk, fetching addresses for a client, its development tools.
The page needs a few of them. Pictures and results have routes of the guard; everything else is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt

from san.demo.limits import Limits, RateLimit
from san.io.errors import excerpt
from san.web.decoding import Decoder
from san.web.limits import ConcurrencyLimit, visitor_of
from san.web.store import TokenStore
from san.web.uploads import App, Message, Receive, Refusal, Scope, Send, read_body

Check = Callable[[list[Any]], None]

UPLOAD, RESULT = "/san/image", "/san/result/"
_STREAM, _JOIN = "/gradio_api/queue/data", "/gradio_api/queue/join"
_GET = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt)"
    r"|/(assets|static)(/[\w.@-]+)+"
    r"|/gradio_api/(startup-events|theme\.css|queue/data|heartbeat/\w+)"
)
_POST = (UPLOAD, _JOIN, "/gradio_api/cancel", "/gradio_api/reset")
_SESSION = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MAX_UPLOADS, _MAX_UPLOADS_OF_ADDRESS = 24, 6  # concurrent; others wait
_MAX_RESULT_BYTES = 100_000_000  # of all results that are not fetched yet
_MAX_AWAITED = 1000
_PIECE = 2**16
_ROOT_PATH = re.compile(r"(/[\w.~-]+)*/?", re.ASCII)
_FRAME_ANCESTOR = re.compile(r"\*|https?://(\*\.)?[\w.-]+(:\d+)?", re.ASCII)


class Guard:
    """ASGI middleware around Gradio's application.

    Args:
        app: answers admitted requests.
        limits: sizes and rates.
        functions: the page's functions, by number: a check of the inputs that raises ValueError.
        first: the result that the page opens with.
        root_path: the folder under which a proxy serves the page, such as /demo; "" for none.
        frame_ancestors: sites whose pages may show this one in a frame, such as https://huggingface.co.

    Attributes:
        pictures: uploaded pictures, by the name that the page received.
        results: results that the page will fetch.

    Raises:
        ValueError: the root path or a site is not valid.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        functions: Mapping[int, Check] | None = None,
        *,
        first: bytes = b"{}",
        root_path: str = "",
        frame_ancestors: Iterable[str] = (),
    ) -> None:
        self._app, self._limits, self._first = app, limits, first
        self._functions = {} if functions is None else functions
        if not _ROOT_PATH.fullmatch(root_path):
            raise ValueError(f"--root-path is {excerpt(root_path)} but must be a path such as /demo, without http://")
        self._root_path, self._headers = root_path.rstrip("/"), _headers(frame_ancestors)
        self.pictures: TokenStore[npt.NDArray[np.uint8]] = TokenStore(
            8 * 3 * limits.max_pixels, lambda each: each.nbytes
        )
        self.results: TokenStore[bytes] = TokenStore(_MAX_RESULT_BYTES, len)
        self._decoder = Decoder(limits)
        self._rate = RateLimit(limits.requests_per_minute)
        self._awaited: OrderedDict[str, None] = OrderedDict()  # sessions with an unread answer
        self._uploads = ConcurrencyLimit(_MAX_UPLOADS, _MAX_UPLOADS_OF_ADDRESS)
        # the words, escaped in the worst case, and what Gradio adds
        self._max_body = 6 * limits.max_characters + 20_000

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send, self._headers))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def ending(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await self._decoder.end()
            await send(message)

        await self._decoder.start()
        await self._app(scope, receive, ending)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the proxy may keep or remove the folder's name
        path = scope["path"]
        if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path)
        # no other route needs a query, and one would open a file of that name
        query = scope["query_string"] if path == _STREAM else b""
        inner = {**scope, "path": path, "query_string": query}
        try:
            if scope["method"] in ("GET", "HEAD"):
                await self._get(inner, receive, send)
            elif scope["method"] == "POST" and path in _POST:
                await self._post(inner, receive, send)
            else:
                raise _not_found()
        except Refusal as refusal:
            await answer(send, refusal.status, {"detail": refusal.detail})
        except asyncio.CancelledError:
            pass  # the server ends

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not path:  # otherwise relative URLs of the page would leave the folder
            await answer(send, 307, {}, (b"location", f"{self._root_path}/".encode()))
        elif path == "/manifest.json":  # every page of Gradio refers to it
            await answer(send, 200, {"name": "SAN"})
        elif path.startswith(RESULT):
            name = path.removeprefix(RESULT)
            content = self._first if name == "first" else self.results.take(name)
            if content is None:
                raise Refusal(404, "The result is no longer there; press Segment again.")
            await answer(send, 200, content)
        elif path == _STREAM:
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
            if session not in self._awaited:  # Gradio would log a long trace
                raise Refusal(404, "No answer is pending; press Segment again.")
            del self._awaited[session]
            await self._app(scope, receive, send)
        elif _GET.fullmatch(path) and ".." not in path:
            await self._app(scope, receive, send)
        else:
            raise _not_found()

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        visitor = visitor_of((scope.get("client") or ("unknown",))[0])
        _check_origin(scope)
        if not self._rate.admit(visitor):
            raise Refusal(429, "Too many requests from your address; wait a minute and try again.")
        if scope["path"] == UPLOAD:
            pixels = await self._upload(scope, receive, visitor)
            await answer(send, 200, {"token": self.pictures.put(pixels)})
            return
        body = await read_body(scope, receive, self._max_body, "The request took too long; try again.")
        if scope["path"] == _JOIN:
            body, send = _checked(body, self._functions), _with_queue_message(send)
            self._awaited[json.loads(body)["session_hash"]] = None
            while len(self._awaited) > _MAX_AWAITED:
                self._awaited.popitem(last=False)
        else:
            body = _checked(body)
        await self._app(scope, _replay(body, receive), send)

    async def _upload(self, scope: Scope, receive: Receive, visitor: str) -> npt.NDArray[np.uint8]:
        async with self._uploads.take(visitor):
            late = "The upload took too long; choose a smaller picture, or try again with a better connection."
            content = await read_body(scope, receive, self._limits.max_bytes, late)
            try:
                return await self._decoder.read(content, visitor)
            except ValueError as error:
                raise Refusal(422, str(error)) from None


def _not_found() -> Refusal:
    return Refusal(404, "This page does not exist; open the demo's first page.")


def _check_origin(scope: Scope) -> None:
    """Refuse requests from pages of other sites."""
    headers = dict(scope["headers"])
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    if origin is not None and origin.split(b"://")[-1] != host:
        raise Refusal(
            403,
            "This request comes from a page of another address than the one it went to. Open the demo at its own "
            "address; a proxy in between must pass on the Host header.",
        )


def _checked(body: bytes, functions: Mapping[int, Check] | None = None) -> bytes:
    """Check a request to Gradio, and reduce it to what the page itself sends.

    Gradio would accept a file record for any input, and open its path or fetch its URL. It logs unexpected values, and
    a lone surrogate ends the visitor's stream of answers.

    Args:
        body: JSON.
        functions: the permitted functions; None for a request that only ends another.
    """
    try:
        request = json.loads(body)
        names = ["session_hash", "fn_index"] + (
            ["event_id"] if functions is None else ["trigger_id", "data", "event_data"]
        )
        if functions is not None:
            values = [*request["data"], *(request.get("event_data") or {}).values()]
            if any(isinstance(value, (dict, list)) for value in values):
                raise Refusal(400, "files and records are not an input of this page; upload pictures instead")
            functions[request["fn_index"]](request["data"])
            if not _SESSION.fullmatch(request["session_hash"]):
                raise ValueError("no session")
        kept = {name: request[name] for name in names if name in request}
        return json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Refusal(400, "This is not a request of the page; reload the page.") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that repeats the body, then continues."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _headers(frame_ancestors: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer."""
    ancestors = ["'self'"]
    for site in frame_ancestors:
        if not _FRAME_ANCESTOR.fullmatch(site):
            raise ValueError(
                f"--embed-in holds {excerpt(site)}; give sites such as https://huggingface.co, without a path"
            )
        ancestors.append(site)
    # the page loads from this server only, and can send data only to it
    # Gradio's front end compiles templates and handlers, which needs eval and inline code
    policy = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
        f"base-uri 'self'; form-action 'self'; frame-ancestors {' '.join(ancestors)}"
    )
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    ]


def _with_headers(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return wrapped


def _with_queue_message(send: Send) -> Send:
    """Replace the answer of a full queue by a clear message."""
    full = False

    async def wrapped(message: Message) -> None:
        nonlocal full
        if message["type"] == "http.response.start":
            full = message["status"] == 503
            if full:
                await answer(send, 503, {"detail": "Too many visitors at the moment; try again in a minute."})
        if not full:
            await send(message)

    return wrapped


async def answer(send: Send, status: int, content: dict[str, str] | bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send JSON in pieces, so that unread data does not fill the connection's buffer."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status in (408, 413):
        fixed.append((b"connection", b"close"))  # does not wait for the rest of the body
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    for start in range(0, len(body), _PIECE):
        piece = body[start : start + _PIECE]
        await send({"type": "http.response.body", "body": piece, "more_body": start + _PIECE < len(body)})
