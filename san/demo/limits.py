"""Limits of the demo, per visitor and in total."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields

from san.io.image_files import ImageLimits

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded; Pillow's other readers, some of which start programs, are not used."""


@dataclass(frozen=True)
class Limits:
    """Limits of the demo.

    Attributes:
        max_bytes: size of an uploaded file.
        max_pixels: height times width of an uploaded picture, read from its header before it is decoded.
        max_classes: classes of a vocabulary, with those of a label set.
        max_characters: length of the words' text.
        max_waiting: requests in the queue; further ones are refused.
        max_seconds: time limit of a request.
        max_decode_seconds: time limit of decoding a picture.
        requests_per_minute: of one address, on average over a minute; also the largest burst.
        max_visitors: sessions whose pictures are kept in memory; the longest idle one is dropped first.
        keep_minutes: the picture of an idle session is dropped after this time.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 8_000_000
    max_classes: int = 1000
    max_characters: int = 4000
    max_waiting: int = 16
    max_seconds: float = 60.0
    max_decode_seconds: float = 10.0
    requests_per_minute: int = 60
    max_visitors: int = 50
    keep_minutes: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value} but must be positive; use a large number for no limit")

    @property
    def of_pictures(self) -> ImageLimits:
        """Return the limits of an uploaded picture, with remedies for the visitor."""
        return ImageLimits(self.max_pixels, self.max_bytes, PICTURE_FORMATS, "choose another one", "shrink it")


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


class ConcurrencyLimit:
    """Limits concurrent requests, in total and per address; others wait in order.

    Args:
        total: maximum number of concurrent requests.
        per_address: maximum number from one address.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self._all, self._per_address = asyncio.Semaphore(total), per_address
        # an address is dropped with its last request
        self._of_address: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def take(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn, which lasts for the body of the `with`."""
        own = self._of_address.setdefault(address, asyncio.Semaphore(self._per_address))
        async with own, self._all:
            yield


def visitor_of(address: str) -> str:
    """Return the visitor of an address: an IPv4 address, or the 64-bit network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found), 64), strict=False))
