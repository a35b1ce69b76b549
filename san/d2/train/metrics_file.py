"""``metrics.json``: one JSON line per logged iteration, written before the checkpoint of that iteration.

A run that is killed at any time and resumed has every line once: lines after the last checkpoint are removed when the
run resumes, because their iterations are recomputed.
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
"""Name of the file in OUTPUT_DIR."""

_OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Non-blocking: a pipe without a reader raises an error instead of blocking forever. On Windows: bytes as they are."""

logger = logging.getLogger("san.d2.metrics")


class MetricsFile(EventWriter):
    """Writes each scalar of an iteration once, also if `write` is called several times in an iteration.

    If the disk is full, lines are kept in memory and written later.

    Args:
        path: the file; lines are appended if it exists. Its folder must exist.
        window: iterations over which noisy scalars are smoothed.
    """

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self.window = window
        self._written: dict[str, int] = {}
        self._waiting: list[str] = []
        self._told = False

    def write(self) -> None:
        """Write the scalars since the last call; if that fails, log a warning once."""
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
        """Log the number of lines that could not be written, if any."""
        if self._waiting:
            logger.warning("%s lacks its last %d lines", self.path, len(self._waiting))
            self._waiting.clear()


class LineHook(HookBase):
    """Writes the line of an iteration before later hooks see the iteration.

    Args:
        metrics: writes the line; None except on the main process.
        period: iterations between two.
    """

    def __init__(self, metrics: MetricsFile | None, period: int) -> None:
        self.metrics = metrics
        self.period = period

    def reads_losses(self, done: int) -> bool:
        """See `san.d2.train.run_hooks.ReadsLosses`."""
        return done % self.period == 0

    def after_step(self) -> None:
        """Write every `period` iterations and after the last."""
        done = self.trainer.iter + 1
        if self.metrics is not None and (self.reads_losses(done) or done == self.trainer.max_iter):
            self.metrics.write()


def _append(data: bytes, path: Path) -> None:
    """Append to a file and wait until it is on the disk; all or nothing.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN_FLAGS, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is more informative
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def logged(path: Path) -> list[dict[str, float]]:
    """Return the rows of ``metrics.json``; none if it is missing."""
    return [row for _, row in metrics_lines(path) if row is not None] if path.is_file() else []


def last_logged(path: Path) -> int:
    """Return the last iteration in ``metrics.json``; -1 if there is none."""
    return int(max((row["iteration"] for row in logged(path)), default=-1))


def evaluated_at(path: Path, iteration: int, names: Sequence[str]) -> dict[str, float]:
    """Return the logged metrics of an evaluation; empty if it was not logged.

    Args:
        path: ``metrics.json``; may be missing.
        iteration: iteration at which it was due.
        names: the data sets; metrics of all must be logged.
    """
    rows = [row for row in logged(path) if row.get("iteration") == iteration]
    return next((row for row in rows if all(f"{name}/mIoU" in row for name in names)), {})


def take_out(path: Path, start_iter: int, max_iter: int) -> None:
    """Remove the lines that a resumed run will write again, and an incomplete last line.

    Args:
        path: ``metrics.json``; may be missing. If the disk is too full to rewrite it, a warning is logged, and the
            lines will be duplicated.
        start_iter: the first iteration to be done. The last evaluation of a shorter run has this number too; it is
            before the lines of that iteration, and is kept unless it will be repeated.
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
