"""Hooks of a run that evaluate, decide when losses are read, and draw curves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from san.d2.api import HookBase, hooks
from san.d2.train.metrics_file import NAME as METRICS
from san.visualize import drawing, plot_curves

logger = logging.getLogger("san.d2.trainer")


@runtime_checkable
class ReadsLosses(Protocol):
    """A hook that reads the losses of an iteration right after it; other hooks find those of the iteration before."""

    def reads_losses(self, done: int) -> bool:
        """Whether the hook reads losses when `done` iterations are done; the same on every process."""


class LossReadingEvalHook(hooks.EvalHook):
    """An evaluation every `period` iterations and after the last; losses are logged before it."""

    def __init__(self, period: int, evaluation: Callable[[], dict[str, dict[str, float]]]) -> None:
        super().__init__(period, evaluation)
        self.period = period

    def reads_losses(self, done: int) -> bool:
        """See `ReadsLosses`."""
        return self.period > 0 and done % self.period == 0


class CurvesHook(HookBase):
    """Draws ``curves.png`` from ``metrics.json`` at the end of training.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_train(self) -> None:
        """Draws, where anything was logged."""
        if not (self.folder / METRICS).is_file():
            return
        with drawing(self.folder / "curves.png"):
            plot_curves(self.folder / METRICS, self.folder / "curves.png")
            logger.info("Curves: %s", self.folder / "curves.png")
