"""Keeps items in memory between two requests: pictures, results, encoded images.

Nothing is written to disk, and no name or path of a visitor is opened.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
_TOKEN_BYTES = 32


class TokenStore(Generic[Item]):
    """Stores items under random names of 256 bits.

    Args:
        max_bytes: of all items together; beyond it the longest unused are dropped. The newest stays in any case.
        size_of: returns the bytes of an item.
        keep_seconds: items that are not used for this time are dropped.
        clock: returns seconds.
    """

    def __init__(
        self,
        max_bytes: int,
        size_of: Callable[[Item], int],
        *,
        keep_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes, self._size_of, self._keep_seconds, self._clock = max_bytes, size_of, keep_seconds, clock
        self._items: OrderedDict[str, tuple[float, int, Item]] = OrderedDict()  # name -> (last use, bytes, item)
        self._lock = threading.Lock()

    def put(self, item: Item) -> str:
        """Store an item, and return its name."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._lock:
            self._items[token] = (self._clock(), self._size_of(item), item)
            self._drop_old()
        return token

    def get(self, token: object) -> Item | None:
        """Return an item, which is kept for longer; None if there is none of this name."""
        with self._lock:
            self._drop_old()
            if not isinstance(token, str) or token not in self._items:
                return None
            _, size, item = self._items.pop(token)
            self._items[token] = (self._clock(), size, item)
        return item

    def take(self, token: object) -> Item | None:
        """Remove and return an item; None if there is none of this name."""
        with self._lock:
            self._drop_old()
            found = self._items.pop(token, None) if isinstance(token, str) else None
        return None if found is None else found[-1]

    def usage(self) -> tuple[int, int]:
        """Return the number of items and their bytes."""
        with self._lock:
            self._drop_old()
            return len(self._items), sum(size for _, size, _ in self._items.values())

    def _drop_old(self) -> None:
        oldest_kept = self._clock() - self._keep_seconds
        total = sum(size for _, size, _ in self._items.values())
        for token, (when, size, _) in list(self._items.items()):
            if when >= oldest_kept and (total <= self._max_bytes or len(self._items) == 1):
                break
            del self._items[token]
            total -= size
