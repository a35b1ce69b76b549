"""Stamps between the parts of a run: of time, on the CPU or a GPU, or of multiply-adds counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


class Clock(Protocol):
    """Anything whose stamps can be subtracted."""

    def stamp(self) -> Any:
        """Now."""

    def between(self, earlier: Any, later: Any) -> float:
        """What passed between two stamps."""


class WallClock:
    """Seconds of the processor's clock."""

    def stamp(self) -> float:
        """Now."""
        return time.perf_counter()

    def between(self, earlier: float, later: float) -> float:
        """Seconds."""
        return later - earlier


class CudaClock:
    """Seconds on the GPU's own clock: events in its queue, so that measuring makes nothing wait."""

    def stamp(self) -> torch.cuda.Event:
        """Now, in the order of the GPU's work."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> float:
        """Seconds; waits for the later event."""
        later.synchronize()
        return float(earlier.elapsed_time(later)) / 1000


class MultiplyAdds:
    """Multiply-adds of all matrix products and convolutions so far (half the floating-point operations)."""

    def __init__(self, counter: FlopCounterMode) -> None:
        """Read an active counter."""
        self._counter = counter

    def stamp(self) -> int:
        """Floating-point operations so far."""
        return int(self._counter.get_total_flops())

    def between(self, earlier: int, later: int) -> float:
        """Multiply-adds."""
        return (later - earlier) / 2


class Recorder:
    """The parts of one run: each ends with a mark."""

    def __init__(self, clock: Clock) -> None:
        """Starts the first part."""
        self._clock = clock
        self._stamps: list[tuple[str, Any]] = [("", clock.stamp())]

    def mark(self, part: str) -> None:
        """The named part ends here and the next begins; a name may come again, its parts are added up."""
        self._stamps.append((part, self._clock.stamp()))

    def parts(self) -> dict[str, float]:
        """What each part took, in the order of their first marks."""
        result: dict[str, float] = {}
        for (_, earlier), (name, later) in zip(self._stamps, self._stamps[1:], strict=False):
            result[name] = result.get(name, 0.0) + self._clock.between(earlier, later)
        return result


def clock_of(device: torch.device) -> Clock:
    """The clock that tells time on a device."""
    return CudaClock() if device.type == "cuda" else WallClock()


@contextmanager
def counting() -> Iterator[Callable[[], Recorder]]:
    """Counts multiply-adds of what is done meanwhile; yields what makes a recorder of them."""
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton along, 70 MB that a case's peak is without

    with FlopCounterMode(display=False) as counter:
        yield lambda: Recorder(MultiplyAdds(counter))
