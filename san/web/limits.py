"""Limits of what strangers send, for the demo and the service."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields

from san.io.image_files import ImageLimits

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded; Pillow's other readers, some of which start programs, are not used."""


@dataclass(frozen=True)
class InputLimits:
    """Limits of a request.

    Attributes:
        max_bytes: size of an uploaded file.
        max_pixels: height times width of an uploaded picture, read from its header before it is decoded.
        max_classes: classes of a vocabulary, with those of a label set.
        max_characters: length of the words' text.
        max_waiting: requests in the queue; further ones are refused.
        max_seconds: time limit of a request.
        max_decode_seconds: time limit of decoding a picture.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 8_000_000
    max_classes: int = 1000
    max_characters: int = 4000
    max_waiting: int = 16
    max_seconds: float = 60.0
    max_decode_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value} but must be positive; use a large number for no limit")

    @property
    def of_pictures(self) -> ImageLimits:
        """Return the limits of an uploaded picture, with remedies for the sender."""
        return ImageLimits(self.max_pixels, self.max_bytes, PICTURE_FORMATS, "choose another one", "shrink it")


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
