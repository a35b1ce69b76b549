"""Limits on connections, which uvicorn lacks: on slow requests, unread answers, and their number.

uvicorn's own limit (`limit_concurrency`) answers 503 to all visitors, and still counts requests of lost connections.
Here the oldest connection of the visitor with most connections is closed instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from san.web.limits import visitor_of

_REQUEST_SECONDS = 10.0  # to receive a request's head, and between requests
_ANSWER_SECONDS = 60.0  # for the visitor to read what was sent
_TICK_SECONDS = 1.0


class BoundedConnection:
    """One connection: a mixin for uvicorn's `H11Protocol`.

    Behind a trusted proxy, a connection belongs to the visitor of its last request.

    Attributes:
        max_connections: of all visitors; set by the subclass.
        pause_seconds: to receive a request's head, and between requests; None is 10 s.
    """

    max_connections: int
    pause_seconds: float | None = None
    connections: set[Any]  # of the server; this and the following attributes are uvicorn's
    loop: asyncio.AbstractEventLoop
    transport: Any
    cycle: Any
    scope: Any
    client: tuple[str, int] | None

    def connection_made(self, transport: Any) -> None:
        """Start the timers; if there are too many connections, close the oldest of the visitor with most."""
        super().connection_made(transport)  # type: ignore[misc]
        self.since = self._asked = self._read = self.loop.time()
        self._timer = self.loop.call_later(_TICK_SECONDS, self._look)
        if len(self.connections) > self.max_connections:
            holders = {each: each.visitor() for each in self.connections if each is not self}
            (most, _), *_ = Counter(holders.values()).most_common(1)
            oldest = min((each for each in holders if holders[each] == most), key=lambda each: each.rank())
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the timers."""
        self._timer.cancel()
        super().connection_lost(error)  # type: ignore[misc]

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._asked = self.loop.time()
        super().on_response_complete()  # type: ignore[misc]

    def visitor(self) -> str:
        """The visitor; uvicorn has replaced the address of a trusted proxy by that of its visitor."""
        client = self.client if self.scope is None else self.scope["client"]
        return visitor_of(client[0]) if client else ""

    def rank(self) -> tuple[bool, float]:
        """Sort key for closing: connections without a request first, then the oldest."""
        return self._is_answering(), self.since

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread:
            self._read = now
        if unread or self._is_answering():
            self._asked = now
        if now - self._asked > (self.pause_seconds or _REQUEST_SECONDS) or now - self._read > _ANSWER_SECONDS:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(_TICK_SECONDS, self._look)
