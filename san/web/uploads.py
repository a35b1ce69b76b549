"""The body of a request, read with limits on size and time; and the types of ASGI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY_SECONDS, _FIRST_SECONDS, _BYTES_PER_SECOND = 60.0, 10.0, 10_000  # limits of slow uploads


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """An error answer.

    Args:
        status: HTTP status.
        detail: message for the sender.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


async def body_chunks(scope: Scope, receive: Receive, max_bytes: int, late: str) -> AsyncGenerator[bytes, None]:
    """Yield a request's body as it arrives.

    Args:
        scope: of the request.
        receive: of the request.
        max_bytes: largest body; if its stated length is larger, nothing is read.
        late: message for a sender that is too slow: 10 s, plus 1 s per 10 kB received, at most 60 s.

    Raises:
        Refusal: it is too large or too slow, or the sender has gone.
    """
    too_large = Refusal(413, f"The file is too large; the limit here is {max_bytes / 1e6:.1f} MB. Shrink it.")
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large

    received, start = 0, time.monotonic()
    while True:
        patience = min(_BODY_SECONDS, _FIRST_SECONDS + received / _BYTES_PER_SECOND)
        try:
            message = await asyncio.wait_for(receive(), start + patience - time.monotonic())
        except asyncio.TimeoutError:
            raise Refusal(408, late) from None
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The upload was interrupted; try again.")
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk
        if not message.get("more_body"):
            return


async def read_body(scope: Scope, receive: Receive, max_bytes: int, late: str) -> bytes:
    """Return a request's body, see `body_chunks`."""
    body = bytearray()
    async for chunk in body_chunks(scope, receive, max_bytes, late):
        body += chunk
    return bytes(body)
