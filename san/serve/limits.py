"""Limits of the service."""

from __future__ import annotations

from dataclasses import dataclass

from san.web.limits import InputLimits


@dataclass(frozen=True)
class ServeLimits(InputLimits):
    """Limits of the service.

    Attributes:
        max_waiting: requests that are read, wait or are computed; further ones are answered with 429.
        max_batch: pictures of one size that are encoded together.
        keep_bytes: memory of kept images; beyond it the longest unused ones are dropped.
        keep_minutes: an image that is not used for this time is dropped.
        grace_seconds: time to finish requests after SIGTERM.
    """

    max_waiting: int = 32
    max_batch: int = 4
    keep_bytes: int = 1_000_000_000
    keep_minutes: float = 10.0
    grace_seconds: float = 30.0
