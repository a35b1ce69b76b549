"""``metrics.json``: one JSON line per logged iteration, in place before the checkpoint of that iteration.

So a run that is killed at any moment and resumed has every line once: a line without its checkpoint is taken out when
the iterations after the last checkpoint are computed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from san.d2.api import EventWriter, HookBase, get_event_storage
from san.data.metrics_lines import metrics_lines
from san.io.files import write_whole

NAME = "metrics.json"
"""Of the file, in OUTPUT_DIR."""

logger = logging.getLogger("san.d2.metrics")


class MetricsFile(EventWriter):
    """Writes each scalar of an iteration once, however often in an iteration it is asked to.

    A disk that is full costs nothing while the process lives: what could not be written is kept, and written later.

    Args:
        path: the file; lines are added to one that exists. Its folder must exist.
        window: iterations over which noisy scalars are smoothed.
    """

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self.window = window
        self._written: dict[str, int] = {}
        self._waiting: list[str] = []
        self._told = False

    def write(self) -> None:
        """Puts on the disk what came since the last call; where that cannot be, a warning says so, once."""
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self.window).items():
            if iteration > self._written.get(name, -1):
                rows.setdefault(iteration, {})[name] = value
                self._written[name] = iteration
        for iteration, values in sorted(rows.items()):
            self._waiting.append(json.dumps(values | {"iteration": iteration}, sort_keys=True) + "\n")
        if not self._waiting:
            return
        try:
            _append("".join(self._waiting).encode(), self.path)
        except OSError as error:
            if not self._told:
                logger.warning(
                    "%s cannot be written (%s); its lines are kept and written when there is room",
                    self.path,
                    error.strerror or error,
                )
            self._told = True
        else:
            self._waiting.clear()
            self._told = False

    def close(self) -> None:
        """Says what was lost, if anything was."""
        if self._waiting:
            logger.warning("%s lacks its last %d lines", self.path, len(self._waiting))
            self._waiting.clear()


class LineHook(HookBase):
    """Writes the line of an iteration before later hooks see the iteration.

    Args:
        metrics: writes it; None on all processes but the main one.
        period: iterations between two.
    """

    def __init__(self, metrics: MetricsFile | None, period: int) -> None:
        self.metrics = metrics
        self.period = period

    def reads_losses(self, done: int) -> bool:
        """See `san.d2.train.run_hooks.ReadsLosses`."""
        return done % self.period == 0

    def after_step(self) -> None:
        """Writes every `period` iterations and after the last."""
        done = self.trainer.iter + 1
        if self.metrics is not None and (self.reads_losses(done) or done == self.trainer.max_iter):
            self.metrics.write()


def _append(data: bytes, path: Path) -> None:
    """Adds to a file and waits until it is on the disk; all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    # non-blocking: a pipe that nobody reads is an error instead of a wait without end
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # the first one tells more
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def logged(path: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.json``; none where it is missing."""
    return [row for _, row in metrics_lines(path) if row is not None] if path.is_file() else []


def last_logged(path: Path) -> int:
    """The last iteration in ``metrics.json``; -1 where there is none."""
    return int(max((row["iteration"] for row in logged(path)), default=-1))


def evaluated_at(path: Path, iteration: int, names: Sequence[str]) -> dict[str, float]:
    """What a run has logged of an evaluation; empty where it has not.

    Args:
        path: ``metrics.json``; where it is missing nothing was logged.
        iteration: at which it was due.
        names: the data sets, all of which it must have.
    """
    rows = [row for row in logged(path) if row.get("iteration") == iteration]
    return next((row for row in rows if all(f"{name}/mIoU" in row for name in names)), {})


def take_out(path: Path, start_iter: int, max_iter: int) -> None:
    """Takes out the lines that a resumed run will write again, and a last one that is cut short.

    Args:
        path: ``metrics.json``; it may be missing. Where there is no room to rewrite it, a warning says so, and the
            lines stand twice.
        start_iter: the first iteration to be done. The last evaluation of a shorter run bears this number too; it
            stands before the lines of that iteration, and stays unless it will be done again.
        max_iter: the iteration after the last.
    """
    if not path.is_file():
        return
    lines, kept = [*metrics_lines(path)], []
    further = start_iter >= max_iter
    for line, row in lines:
        if row is None:
            continue
        further |= "lr" in row and row["iteration"] >= start_iter
        if row["iteration"] < start_iter or (row["iteration"] == start_iter and not further):
            kept.append(line.rstrip("\n") + "\n")
    wanted = "".join(kept)
    if wanted == "".join(line for line, _ in lines):
        return
    try:
        write_whole(path, wanted, durable=True)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s); iterations that are done again stand in it twice", path, error.strerror or error
        )
