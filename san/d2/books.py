"""What the iterations came to, entered in the event storage one iteration late, so that the host waits for no GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from san.d2.api import comm, get_event_storage
from san.d2.faults import NonFiniteUpdates, StepSource
from san.d2.outcome import NonFiniteError, Outcome

logger = logging.getLogger("san.d2.books")


@dataclass(frozen=True)
class _Entry:
    """An iteration whose outcome was not read yet."""

    outcome: Outcome
    iteration: int
    sources: Sequence[StepSource]
    data_time: float


class Books:
    """Keeps the account of a run; every process keeps its own, and all call the same methods in the same order.

    Args:
        skipped: counts the updates that were left out.
    """

    def __init__(self, skipped: NonFiniteUpdates) -> None:
        self.skipped = skipped
        self._open: _Entry | None = None

    def open(self, outcome: Outcome, iteration: int, sources: Sequence[StepSource], data_time: float) -> None:
        """Takes up an iteration, to be entered by the next `settle`.

        Args:
            outcome: of the iteration; the earlier one has been settled.
            iteration: its number.
            sources: of its samples.
            data_time: seconds it waited for them.
        """
        self._open = _Entry(outcome, iteration, sources, data_time)

    def settle(self) -> None:
        """Enters the open iteration, if there is one: its losses, or that its update was left out.

        Raises:
            FloatingPointError: too many updates in a row were left out.
        """
        entry, self._open = self._open, None
        if entry is None:
            return
        try:
            self._enter(entry)
        except NonFiniteError as error:
            self.left_out(entry.iteration, error, entry.sources)
        else:
            self.skipped.went_well()

    def left_out(self, iteration: int, error: NonFiniteError, sources: Sequence[StepSource]) -> None:
        """Enters an iteration without an update.

        Raises:
            FloatingPointError: it is one too many in a row.
        """
        self.skipped.skipped(iteration, error, sources)
        get_event_storage().put_scalar("skipped_updates", self.skipped.total, smoothing_hint=False, cur_iter=iteration)

    def close(self) -> None:
        """After an error elsewhere: enters the open iteration if it has come through, and asks no other process."""
        entry, self._open = self._open, None
        if entry is None:
            return
        try:
            if entry.outcome.arrived():
                self._enter(entry)
        except NonFiniteError as error:
            files = ", ".join(file for step in entry.sources for file in step["files"])
            logger.warning("%s (images %s). Its update was left out", error, files)
        except Exception as error:
            logger.debug("Iteration %d is not in the logs: %s", entry.iteration, error)

    @staticmethod
    def _enter(entry: _Entry) -> None:
        """Losses, gradient norm and waiting time of an iteration whose update was done.

        Raises:
            NonFiniteError: it was not.
        """
        losses, norm = entry.outcome.read()
        if comm.is_main_process():
            get_event_storage().put_scalars(
                cur_iter=entry.iteration,
                total_loss=sum(losses.values()),
                **losses,
                data_time=entry.data_time,
                grad_norm=norm,
            )
