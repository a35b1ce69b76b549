"""Bounds on connections, which uvicorn has none of: for requests that do not arrive, answers that nobody reads, crowds.

uvicorn's own limit (`limit_concurrency`) answers 503 to everybody once there are too many, and counts requests of lost
connections until they are noticed. Here whoever holds most connections makes room instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from san.demo.limits import visitor_of

_REQUEST_SECONDS = 10.0  # for a request's head, and between requests
_ANSWER_SECONDS = 60.0  # for the visitor to take what was sent
_TICK_SECONDS = 1.0


class BoundedConnection:
    """To be mixed into uvicorn's `H11Protocol`: one connection.

    Behind a trusted proxy a connection counts for the visitor whose request it carried last.

    Attributes:
        max_connections: of all visitors; set by the subclass.
    """

    max_connections: int
    connections: set[Any]  # of the server; this and what follows are uvicorn's
    loop: asyncio.AbstractEventLoop
    transport: Any
    cycle: Any
    scope: Any
    client: tuple[str, int] | None

    def connection_made(self, transport: Any) -> None:
        """Starts the clocks; if there are too many connections, the oldest of whoever holds most is cut."""
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
        """Stops the clocks."""
        self._timer.cancel()
        super().connection_lost(error)  # type: ignore[misc]

    def on_response_complete(self) -> None:
        """The next request is waited for from now on."""
        self._asked = self.loop.time()
        super().on_response_complete()  # type: ignore[misc]

    def shutdown(self) -> None:
        """The server ends: nothing is waited for, above all not a page's open stream."""
        super().shutdown()  # type: ignore[misc]
        self.transport.abort()

    def visitor(self) -> str:
        """Whose it is; uvicorn has replaced the address of a trusted proxy by the one that it names."""
        client = self.client if self.scope is None else self.scope["client"]
        return visitor_of(client[0]) if client else ""

    def rank(self) -> tuple[bool, float]:
        """What is cut first: connections without a request, the oldest of them."""
        return self._is_answering(), self.since

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread:
            self._read = now
        if unread or self._is_answering():
            self._asked = now
        if now - self._asked > _REQUEST_SECONDS or now - self._read > _ANSWER_SECONDS:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(_TICK_SECONDS, self._look)
