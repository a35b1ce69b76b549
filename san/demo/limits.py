"""Limits of the demo, per visitor and in total."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from san.web.limits import InputLimits


@dataclass(frozen=True)
class Limits(InputLimits):
    """Limits of the demo.

    Attributes:
        requests_per_minute: of one address, on average over a minute; also the largest burst.
        max_visitors: sessions whose pictures are kept in memory; the longest idle one is dropped first.
        keep_minutes: the picture of an idle session is dropped after this time.
    """

    requests_per_minute: int = 60
    max_visitors: int = 50
    keep_minutes: float = 60.0


class RateLimit:
    """Limits the rate of requests per address (token bucket).

    Args:
        per_minute: requests per minute, and size of a bucket.
        clock: returns seconds.
        max_addresses: maximum number of buckets; the longest unused one is dropped.
    """

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, max_addresses: int = 10_000
    ) -> None:
        self._per_minute, self._clock, self._max_addresses = per_minute, clock, max_addresses
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (left, when)
        self._lock = threading.Lock()

    def admit(self, address: str) -> bool:
        """Count a request of an address; return False if its limit is reached."""
        now = self._clock()
        with self._lock:
            left, when = self._buckets.pop(address, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - when) * self._per_minute / 60)
            admitted = left >= 1
            self._buckets[address] = (left - admitted, now)
            while len(self._buckets) > self._max_addresses:
                self._buckets.popitem(last=False)
        return admitted
