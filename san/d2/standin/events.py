"""Stands in for `detectron2.utils.events`: scalars of a run, kept while it runs, and the writers that put them to disk.

fvcore's `HistoryBuffer` keeps each scalar's recent values.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from fvcore.common.history_buffer import HistoryBuffer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# State of the process: the storages whose `with` block is open, the innermost last.
_open_storages: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost open ``with EventStorage(...)`` block.

    Raises:
        AssertionError: outside of such a block.
    """
    assert _open_storages, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _open_storages[-1]


class EventStorage:
    """Scalars by name, each with the iteration at which it was put.

    Args:
        start_iter: the iteration to start with.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._iter = start_iter

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Adds one value.

        Args:
            name: of the scalar.
            value: a number or a tensor with one element.
            smoothing_hint: whether it is noisy, so that writers show a median; the same on every call for a name.
            cur_iter: iteration it belongs to; the current one by default.

        Raises:
            AssertionError: if the hint differs from the name's earlier one.
        """
        number = float(value)
        iteration = self._iter if cur_iter is None else cur_iter
        self._history[name].update(number, iteration)
        self._latest[name] = (number, iteration)
        known = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Adds several values; see `put_scalar`.

        Args:
            smoothing_hint: of all of them.
            cur_iter: of all of them.
            **kwargs: name and value of each.
        """
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        """The recent values of a scalar; KeyError if it was never put."""
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """The recent values of all scalars."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of every scalar, and its iteration."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return the last value of every scalar, smoothed if its hint is set.

        Args:
            window_size: iterations back from the scalar's last one, over whose values the median is taken.

        Returns:
            Name → median or last value, and the last value's iteration.
        """
        result: dict[str, tuple[float, int]] = {}
        for name, (value, iteration) in self._latest.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Number of values of a scalar in its last iterations.

        Args:
            name: of the scalar.
            window_size: number of iterations, the last one that has a value included.

        Returns:
            A number from 1 on.
        """
        values = self._history[name].values()  # (value, iteration), oldest first
        last = self._latest[name][1]
        count = 0
        for _, iteration in reversed(values):
            if iteration <= last - window_size:
                break
            count += 1
        return count

    @property
    def iter(self) -> int:
        """The current iteration; inside a trainer the trainer's."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    def __enter__(self) -> EventStorage:
        _open_storages.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        innermost = _open_storages.pop()
        assert innermost is self, "the 'with' blocks of event storages were closed out of order"


class EventWriter:
    """Base class of writers, which periodically write the scalars of the open `EventStorage`."""

    def write(self) -> None:
        """Write the scalars since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the writer; does nothing by default."""


class _ScalarFilter:
    """Yields each scalar once: those of iterations after the last one yielded."""

    def __init__(self) -> None:
        self._last_iteration = -1

    def __call__(self, scalars: dict[str, tuple[float, int]]) -> list[tuple[str, float, int]]:
        fresh = [(name, value, at) for name, (value, at) in scalars.items() if at > self._last_iteration]
        self._last_iteration = max((at for _, _, at in fresh), default=self._last_iteration)
        return fresh


class TensorboardXWriter(EventWriter):
    """Writes scalars as a TensorBoard event file, which is created on the first `write`.

    Args:
        log_dir: folder of the event file.
        window_size: of `EventStorage.latest_with_smoothing_hint`.
        **kwargs: further arguments of `torch.utils.tensorboard.SummaryWriter`.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._writer: SummaryWriter | None = None
        self._window_size = window_size
        self._fresh = _ScalarFilter()

    def write(self) -> None:
        """Write the scalars since the last call."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only worker 0 writes

            self._writer = SummaryWriter(**self._arguments)
        for name, value, iteration in self._fresh(get_event_storage().latest_with_smoothing_hint(self._window_size)):
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._writer is not None:
            self._writer.close()
