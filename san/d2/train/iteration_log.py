"""The log of iterations: losses enter the event storage one iteration late, and skipped updates are counted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from san.d2.api import comm, get_event_storage
from san.d2.checkpoints.checkpointer import write_checkpoint
from san.d2.data.bad_data import MAX_NAMED_FILES, write_json
from san.d2.data.batches import BatchSample
from san.d2.train.iteration import NonFiniteError, PendingLosses
from san.io.errors import listed

logger = logging.getLogger("san.d2.iteration_log")

StepSource = dict[str, list[Any]]
"""Where the samples of an accumulation step come from; see `sources_of`."""


def sources_of(batches: Iterable[list[BatchSample]]) -> list[StepSource]:
    """What a dump says of batches, one per accumulation step: ``positions`` in the stream, and ``files``."""
    return [
        {"positions": [s.get("position") for s in batch], "files": [str(s.get("file_name")) for s in batch]}
        for batch in batches
    ]


class IterationLog:
    """Enters losses in the event storage one iteration late, and counts skipped updates.

    Every process has one, and all call the same methods in the same order.

    Args:
        model: whose weights are written when training stops; not wrapped.
        max_skipped: so many skipped updates in a row stop training.
        folder: OUTPUT_DIR.
        seed: returns the seed of the sample stream, which a resumed run may change.
    """

    def __init__(self, model: nn.Module, max_skipped: int, folder: Path, *, seed: Callable[[], int]) -> None:
        self.model = model
        self.max_skipped = max_skipped
        self.folder = folder
        self.seed = seed
        self.num_skipped = 0
        self._in_a_row: list[dict[str, Any]] = []
        self._pending: tuple[PendingLosses, Sequence[StepSource], float] | None = None

    def add(self, losses: PendingLosses, sources: Sequence[StepSource], data_time: float) -> None:
        """Takes an iteration, which the next `settle` enters; the one before it is settled.

        Args:
            losses: of the iteration.
            sources: of its samples.
            data_time: seconds it waited for them.
        """
        self._pending = losses, sources, data_time

    def settle(self) -> None:
        """Enters the iteration that is pending, if there is one: its losses, or that its update was skipped.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        losses, sources, data_time = pending
        try:
            self._enter(losses, data_time)
        except NonFiniteError as error:
            self.skip(losses.iteration, error, sources)
        else:
            self._in_a_row.clear()

    def is_sound(self) -> bool:
        """Whether the latest update was done."""
        return not self._in_a_row

    def skip(self, iteration: int, error: NonFiniteError, sources: Sequence[StepSource]) -> None:
        """Enters an iteration without an update.

        Args:
            iteration: its number.
            error: what is wrong on this process.
            sources: of this process's samples, by accumulation step.

        Raises:
            FloatingPointError: it is one too many in a row; a dump for `san.cli.replay` is written.
        """
        mine = {
            "process": comm.get_rank(),
            "problem": error.problem,
            "losses": {name: plain(value) for name, value in error.losses.items()},
            "grad_norm": plain(error.norm),
            "steps": [*sources],
        }
        everyone = comm.all_gather(mine)
        self.num_skipped += 1
        self._in_a_row.append({"iteration": iteration, "processes": everyone})
        problems = "; ".join(dict.fromkeys(each["problem"] for each in everyone))
        files = [file for each in everyone for step in each["steps"] for file in step["files"]]
        what = f"iteration {iteration}, images {listed(files, MAX_NAMED_FILES)}: {problems}"
        count = len(self._in_a_row)
        if count >= self.max_skipped:
            raise FloatingPointError(
                f"{what}. {count} updates in a row (SOLVER.MAX_NONFINITE) were left out and training stops, "
                f"earlier checkpoints are untouched; san replay {self._dump(iteration)} computes "
                "these batches again; lower SOLVER.BASE_LR, or set SOLVER.AMP.DTYPE bf16 or SOLVER.AMP.ENABLED False, "
                "or look at these images, then go on with --resume"
            )
        logger.warning("%s. The update is left out (%d in a row, %d in all)", what, count, self.num_skipped)
        get_event_storage().put_scalar("skipped_updates", self.num_skipped, smoothing_hint=False, cur_iter=iteration)

    def close(self) -> None:
        """After an error elsewhere: enters the pending iteration if its losses have arrived; asks no other process."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        losses, sources, data_time = pending
        try:
            if losses.arrived():
                self._enter(losses, data_time)
        except NonFiniteError as error:
            files = ", ".join(file for step in sources for file in step["files"])
            logger.warning("%s (images %s). Its update was left out", error, files)
        except Exception as error:
            logger.debug("Iteration %d is not in the logs: %s", losses.iteration, error)

    @staticmethod
    def _enter(losses: PendingLosses, data_time: float) -> None:
        """Losses, gradient norm and waiting time of an iteration whose update was done.

        Raises:
            NonFiniteError: it was not.
        """
        values, norm = losses.read()
        if comm.is_main_process():
            total = sum(values.values())
            get_event_storage().put_scalars(
                cur_iter=losses.iteration, total_loss=total, **values, data_time=data_time, grad_norm=norm
            )

    def _dump(self, iteration: int) -> Path:
        """Writes ``nonfinite_<iteration>.json`` and the weights beside it; returns the former's path."""
        path = self.folder / f"nonfinite_{iteration:07d}.json"
        if not comm.is_main_process():
            return path
        weights = path.with_suffix(".pth")  # the same before all of these updates, as none was done
        try:
            write_checkpoint({"model": self.model.state_dict(), "iteration": iteration}, weights)
        except OSError as error:
            logger.warning("%s cannot be written (%s); replay with MODEL.WEIGHTS of a checkpoint", weights, error)
        write_json(path, {"seed": self.seed(), "weights": weights.name, "iterations": self._in_a_row})
        return path


def plain(value: float | None) -> float | str | None:
    """A number as JSON can hold it: "nan", "inf" and "-inf" become text."""
    return value if value is None or math.isfinite(value) else str(value)
