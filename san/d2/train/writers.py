"""Writers of the training log: progress line, JSON lines, TensorBoard, and optionally Weights & Biases.

Only this file imports wandb, and only if WANDB.ENABLED is set.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import logging
import math
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import torch

from san.d2.api import CfgNode, EventStorage, EventWriter, TensorboardXWriter, get_event_storage
from san.d2.train.metrics_file import MetricsFile, last_logged
from san.d2.train.report_writer import COLUMNS, NewReports, Report, ReportWriter
from san.io.errors import one_line, require_extra
from san.io.redaction import redact, redact_home, without_folders

MIB = 1024**2

ARTIFACT_FILES = ("model_final.pth", "model_best.pth")
"""Files that WANDB.LOG_CHECKPOINT logs if they exist."""

RETRY_SECONDS = 600.0
"""Seconds before a failed writer is retried."""

logger = logging.getLogger("san.d2.writers")


def build_writers(cfg: CfgNode, max_iter: int, metrics: MetricsFile, run_id: str) -> list[EventWriter]:
    """Return the writers of a configuration.

    Args:
        cfg: the configuration; files are written to OUTPUT_DIR.
        max_iter: number of iterations, for the ETA.
        metrics: JSON lines; it already has the losses of the iteration, and adds those of an evaluation.
        run_id: id of the run.

    Returns:
        Progress line, JSON lines, TensorBoard, and Weights & Biases if enabled.
    """
    window = cfg.SOLVER.LOG_PERIOD
    tensorboard = RetryingWriter("TensorBoard", lambda: TensorboardXWriter(cfg.OUTPUT_DIR, window_size=window))
    writers: list[EventWriter] = [ProgressLine(max_iter, window), metrics, tensorboard]
    if cfg.TEST.LOG_REPORTS:
        folder, names = Path(cfg.OUTPUT_DIR), [*cfg.DATASETS.TEST]
        make = functools.partial(ReportWriter, folder, NewReports(folder, names))
        writers.append(RetryingWriter("TensorBoard's part of evaluations", make))
    if cfg.WANDB.ENABLED:
        writers.append(WandbWriter(cfg, run_id, last_logged(metrics.path)))
    return writers


class RetryingWriter(EventWriter):
    """Wraps a writer so that its errors do not end training; while the disk is full, its output is lost.

    Args:
        name: name of the writer, for a warning.
        make: makes the writer; called again `RETRY_SECONDS` after an error.
    """

    def __init__(self, name: str, make: Callable[[], EventWriter]) -> None:
        self.name = name
        self._make = make
        self._writer: EventWriter | None = None
        self._not_before = 0.0

    def write(self) -> None:
        """Call the writer."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._writer = self._writer or self._make()
            self._writer.write()
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s) and gets nothing for %d minutes; metrics.json has all",
                self.name,
                error.strerror or error,
                RETRY_SECONDS // 60,
            )
            self.close()
            self._not_before = time.monotonic() + RETRY_SECONDS

    def close(self) -> None:
        """Close the writer; nothing is written afterwards."""
        with contextlib.suppress(OSError):  # the same error as in `write`
            if self._writer is not None:
                self._writer.close()
        self._writer = None
        self._not_before = math.inf


def memory_mib() -> tuple[str, float] | None:
    """Return the peak memory of this process: its kind ("GPU" or "RAM") and size in MiB; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return "GPU", torch.cuda.max_memory_allocated() / MIB
    try:
        import resource
    except ImportError:  # only on Unix
        return None
    per_unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return "RAM", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * per_unit / MIB


class ProgressLine(EventWriter):
    """Logs a line of iteration, ETA, losses, learning rate, seconds per iteration, data time and memory.

    Args:
        max_iter: number of iterations of the run.
        window: number of iterations over which losses and times are smoothed.
    """

    def __init__(self, max_iter: int, window: int = 20) -> None:
        self.max_iter = max_iter
        self.window = window
        self.logger = logging.getLogger("san.d2.progress")
        self._previous: tuple[int, float] | None = None
        self._written = -1

    def write(self) -> None:
        """Log the line of the current iteration."""
        storage = get_event_storage()
        iteration = storage.iter
        if iteration >= self.max_iter or iteration == self._written:  # nothing is new
            return
        self._written = iteration
        parts = [f"iter {iteration + 1}/{self.max_iter}"]
        seconds = self._seconds_per_iteration(storage)
        if seconds is not None:
            left = datetime.timedelta(seconds=int(seconds * (self.max_iter - iteration - 1)))
            parts.append(f"eta {left}")
        losses = {k: v.median(self.window) for k, v in storage.histories().items() if "loss" in k}
        parts += [f"{name} {value:.4g}" for name, value in sorted(losses.items(), key=lambda x: x[0] != "total_loss")]
        parts += self._latest(storage, "lr", "lr {:.3g}")
        parts += self._latest(storage, "grad_norm", "grad {:.3g}")
        parts += [] if seconds is None else [f"{seconds:.3f} s/iter"]
        parts += self._latest(storage, "data_time", "data {:.3f} s")
        memory = memory_mib()
        parts += [] if memory is None else [f"{memory[0]} {memory[1]:.0f} MiB"]
        self.logger.info("  ".join(parts))

    def _seconds_per_iteration(self, storage: EventStorage) -> float | None:
        """Return the time of the iteration timer; before its first value, the time between two lines."""
        if "time" in storage.histories():
            return float(storage.history("time").global_avg())
        now, before = (storage.iter, time.perf_counter()), self._previous
        self._previous = now
        if before is None or now[0] == before[0]:
            return None
        return (now[1] - before[1]) / (now[0] - before[0])

    def _latest(self, storage: EventStorage, name: str, form: str) -> list[str]:
        """Return a scalar smoothed over the window; None if it was never logged."""
        if name not in storage.histories():
            return []
        history = storage.history(name)
        return [form.format(history.latest() if name == "lr" else history.avg(self.window))]


class WandbWriter(EventWriter):
    """Logs every scalar, and the configuration, to Weights & Biases.

    TEST.LOG_REPORTS adds panels and per-class tables of evaluations, WANDB.LOG_CHECKPOINT adds weights.

    Nothing about the machine is recorded: no host or user name, command line, terminal output, code or repository.
    Absolute paths in the configuration are reduced to their last part, and tokens are masked (SECURITY.md).

    Offline (the default) nothing is sent and no account is needed: the run is stored in OUTPUT_DIR and can be uploaded
    later with ``wandb sync``.

    A resumed run continues the same run of Weights & Biases after its last step; repeated iterations are logged once.

    Args:
        cfg: the configuration, logged too.
        run_id: id of the run, also in its checkpoints.
        logged: the last iteration that was already logged; -1 for a new run.

    Raises:
        MissingExtraError: wandb is not installed.
        ValueError: it cannot start, for example without a key if WANDB.MODE is online.
    """

    def __init__(self, cfg: CfgNode, run_id: str, logged: int) -> None:
        require_extra("train", "WANDB.ENABLED True", "wandb")
        import wandb

        self.window = cfg.SOLVER.LOG_PERIOD
        self._wandb: Any = wandb
        self._folder = Path(cfg.OUTPUT_DIR)
        self._reports = NewReports(self._folder, [*cfg.DATASETS.TEST] if cfg.TEST.LOG_REPORTS else [])
        self._artifact = f"weights-{run_id}" if cfg.WANDB.LOG_CHECKPOINT else ""
        try:
            with _without_prompts():
                self.run: Any = wandb.init(
                    project=cfg.WANDB.PROJECT,
                    name=redact_home(redact(cfg.WANDB.NAME or Path(cfg.OUTPUT_DIR).resolve().name)),
                    dir=cfg.OUTPUT_DIR,
                    mode=cfg.WANDB.MODE,
                    id=run_id,
                    resume="allow",
                    config=without_folders(_plain(cfg)),
                    settings=wandb.Settings(**_private_settings(wandb.Settings.model_fields)),
                )
        except Exception as error:
            raise ValueError(
                f"Weights & Biases cannot start with WANDB.MODE {cfg.WANDB.MODE} ({one_line(error, limit=300)}); log "
                "in with `wandb login` or set the environment variable WANDB_API_KEY, or set WANDB.MODE offline"
            ) from error
        step = getattr(self.run, "step", None) if cfg.WANDB.MODE == "online" else None
        self._first = logged + 1 if step is None else step
        """The first step that is not there yet; an offline run does not know it itself."""
        self._last_written = -1

    def write(self) -> None:
        """Log new scalars and reports since the last call."""
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, Any]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self.window).items():
            if iteration > self._last_written:
                by_iteration.setdefault(iteration, {})[name] = value
        for report in self._reports.take():
            by_iteration.setdefault(report.iteration, {}).update(self._media(report))
        for iteration in sorted(by_iteration):
            values = by_iteration[iteration]
            if iteration < self._first:  # only an unfinished evaluation is not logged yet
                values = {name: value for name, value in values.items() if "/" in name}
            if values:
                self.run.log(values, step=max(iteration, self._first))
            self._last_written = iteration

    def _media(self, report: Report) -> dict[str, Any]:
        """Return the table of an evaluation, and its picture if there is one."""
        rows = [[redact_home(redact(name)), *numbers] for name, *numbers in report.rows]
        found = {f"{report.dataset}/per_class": self._wandb.Table(columns=[*COLUMNS], data=rows)}
        if report.panel is not None:
            found[f"{report.dataset}/panel"] = self._wandb.Image(str(report.panel))
        return found

    def close(self) -> None:
        """Log the weights if WANDB.LOG_CHECKPOINT is set, and end the run."""
        try:
            self._log_weights()
        except OSError as error:  # the disk is too full for wandb's copy
            logger.warning("Weights & Biases does not get the weights (%s); they are in OUTPUT_DIR", error)
        self.run.finish()

    def _log_weights(self) -> None:
        """Log the weights as an artifact, if WANDB.LOG_CHECKPOINT is set and they exist."""
        present = [path for name in ARTIFACT_FILES if (path := self._folder / name).is_file()]
        if self._artifact and present:
            artifact = self._wandb.Artifact(self._artifact, type="model")
            for path in present:
                artifact.add_file(str(path), name=path.name)
            self.run.log_artifact(artifact)


@contextlib.contextmanager
def _without_prompts() -> Iterator[None]:
    """Context manager in which stdin is not a terminal; wandb would ask for a key there, and block the run."""
    terminal, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = terminal


def _private_settings(known: Container[str]) -> dict[str, Any]:
    """Return wandb's settings that exclude data about the machine; older versions lack some."""
    wanted = {
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "host": "",
        "username": "",
    }
    return {name: value for name, value in wanted.items() if name in known}


def _plain(node: Any) -> Any:
    """Return a configuration as plain dictionaries."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, dict) else node
