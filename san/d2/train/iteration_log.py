"""The log of iterations: writes losses to the event storage one iteration late, and counts skipped updates."""

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
"""Origin of the samples of an accumulation step; see `sources_of`."""


def sources_of(batches: Iterable[list[BatchSample]]) -> list[StepSource]:
    """Return ``positions`` in the stream and ``files`` of batches, one entry per accumulation step, for a dump."""
    return [
        {"positions": [s.get("position") for s in batch], "files": [str(s.get("file_name")) for s in batch]}
        for batch in batches
    ]


class IterationLog:
    """Writes losses to the event storage one iteration late, and counts skipped updates.

    Every process has its own log, and all call the same methods in the same order.

    Args:
        model: model, not wrapped; its weights are written when training stops.
        max_skipped: number of consecutive skipped updates that stops training.
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
        """Store an iteration for the next `settle`, after settling the previous one.

        Args:
            losses: losses of the iteration.
            sources: sources of its samples.
            data_time: seconds of waiting for them.
        """
        self._pending = losses, sources, data_time

    def settle(self) -> None:
        """Log the pending iteration, if there is one: its losses, or a skipped update.

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
        """Log an iteration without an update.

        Args:
            iteration: its number.
            error: error of this process.
            sources: sources of this process's samples, by accumulation step.

        Raises:
            FloatingPointError: too many updates in a row were skipped; a dump for `san.cli.replay` is written.
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
        """Log the pending iteration after an error, if its losses have arrived; does not communicate."""
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
        """Log losses, gradient norm and waiting time of an iteration with an update.

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
        """Write ``nonfinite_<iteration>.json`` and the weights next to it; return the JSON file's path."""
        path = self.folder / f"nonfinite_{iteration:07d}.json"
        if not comm.is_main_process():
            return path
        weights = path.with_suffix(".pth")  # unchanged since the first of these updates, as all were skipped
        try:
            write_checkpoint({"model": self.model.state_dict(), "iteration": iteration}, weights)
        except OSError as error:
            logger.warning("%s cannot be written (%s); replay with MODEL.WEIGHTS of a checkpoint", weights, error)
        write_json(path, {"seed": self.seed(), "weights": weights.name, "iterations": self._in_a_row})
        return path


def plain(value: float | None) -> float | str | None:
    """Return a number in a form that JSON supports: "nan", "inf" and "-inf" become text."""
    return value if value is None or math.isfinite(value) else str(value)
