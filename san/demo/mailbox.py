"""Keeps pictures and results in memory between two requests.

Nothing is written to disk, and no name or path of a visitor is opened.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Content = TypeVar("Content", bytes, npt.NDArray[np.uint8])
_TOKEN_BYTES = 32


class Mailbox(Generic[Content]):
    """Stores items under random names; each can be taken once.

    Args:
        max_bytes: of all items together; beyond it the oldest are dropped.
        keep_seconds: items that are not taken in this time are dropped.
        clock: returns seconds.
    """

    def __init__(
        self, max_bytes: int, *, keep_seconds: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._keep_seconds, self._clock = max_bytes, keep_seconds, clock
        self._waiting: OrderedDict[str, tuple[float, Content]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, content: Content) -> str:
        """Store an item, and return its name for `take`."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._lock:
            self._waiting[token] = (self._clock(), content)
            self._drop_old()
        return token

    def take(self, token: object) -> Content | None:
        """Remove and return an item; None if there is none of this name."""
        with self._lock:
            self._drop_old()
            found = self._waiting.pop(token, None) if isinstance(token, str) else None
        return None if found is None else found[1]

    def __len__(self) -> int:
        return len(self._waiting)

    def _drop_old(self) -> None:
        oldest_kept = self._clock() - self._keep_seconds
        total = sum(_size(content) for _, content in self._waiting.values())
        for token, (when, content) in list(self._waiting.items()):
            if len(self._waiting) == 1 and when >= oldest_kept:
                break  # the newest stays; other limits bound its size
            if when < oldest_kept or total > self._max_bytes:
                del self._waiting[token]
                total -= _size(content)


def _size(content: bytes | npt.NDArray[np.uint8]) -> int:
    return content.nbytes if isinstance(content, np.ndarray) else len(content)
