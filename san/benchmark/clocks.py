"""Clocks that measure the parts of a run: time on a CPU or GPU, or multiply-adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


class Clock(Protocol):
    """Interface of a clock: time stamps and their differences."""

    def stamp(self) -> Any:
        """Now."""

    def between(self, earlier: Any, later: Any) -> float:
        """Return the difference between two stamps."""


class WallClock:
    """Measures seconds on the CPU."""

    def stamp(self) -> float:
        """Now."""
        return time.perf_counter()

    def between(self, earlier: float, later: float) -> float:
        """Return seconds."""
        return later - earlier


class CudaClock:
    """Measures seconds on the GPU with events in its queue, without synchronisation."""

    def stamp(self) -> torch.cuda.Event:
        """Record an event in the GPU's queue."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> float:
        """Return seconds; waits for the later event."""
        later.synchronize()
        return float(earlier.elapsed_time(later)) / 1000


class MultiplyAdds:
    """Counts multiply-adds of matrix products and convolutions (half the floating-point operations)."""

    def __init__(self, counter: FlopCounterMode) -> None:
        """Read from an active counter."""
        self._counter = counter

    def stamp(self) -> int:
        """Return the number of floating-point operations so far."""
        return int(self._counter.get_total_flops())

    def between(self, earlier: int, later: int) -> float:
        """Return multiply-adds."""
        return (later - earlier) / 2


class Recorder:
    """Records the parts of a run; each ends with a mark."""

    def __init__(self, clock: Clock) -> None:
        """Start the first part."""
        self._clock = clock
        self._stamps: list[tuple[str, Any]] = [("", clock.stamp())]

    def mark(self, part: str) -> None:
        """End the named part and begin the next. Parts with the same name are added up."""
        self._stamps.append((part, self._clock.stamp()))

    def parts(self) -> dict[str, float]:
        """Return the total of each part, in the order of their first marks."""
        result: dict[str, float] = {}
        for (_, earlier), (name, later) in zip(self._stamps, self._stamps[1:], strict=False):
            result[name] = result.get(name, 0.0) + self._clock.between(earlier, later)
        return result


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else WallClock()


@contextmanager
def counting() -> Iterator[Callable[[], Recorder]]:
    """Context manager that counts multiply-adds in its body; yields a function that makes a recorder of them."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, 70 MB that must not count as a case's memory

    with FlopCounterMode(display=False) as counter:
        yield lambda: Recorder(MultiplyAdds(counter))
