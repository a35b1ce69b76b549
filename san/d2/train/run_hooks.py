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
    """A hook that reads the losses of the current iteration; other hooks see those of the previous one."""

    def reads_losses(self, done: int) -> bool:
        """Whether the hook reads losses after `done` iterations; the same on every process."""


class LossReadingEvalHook(hooks.EvalHook):
    """Evaluates every `period` iterations and after the last; losses are logged before."""

    def __init__(self, period: int, evaluation: Callable[[], dict[str, dict[str, float]]]) -> None:
        super().__init__(period, evaluation)
        self.period = period

    def reads_losses(self, done: int) -> bool:
        """See `ReadsLosses`."""
        return self.period > 0 and done % self.period == 0


class CurvesHook(HookBase):
    """Draws ``curves.png`` from ``metrics.json`` at the end of training.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_train(self) -> None:
        """Draw the curves, if metrics were logged."""
        if not (self.folder / METRICS).is_file():
            return
        with drawing(self.folder / "curves.png"):
            plot_curves(self.folder / METRICS, self.folder / "curves.png")
            logger.info("Curves: %s", self.folder / "curves.png")
