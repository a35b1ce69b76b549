"""SOLVER.EARLY_STOP: ends a run when its metric no longer improves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from san.d2.api import HookBase, broadcast

logger = logging.getLogger("san.d2.early_stop")

Results = Mapping[str, Mapping[str, float]]


class EarlyStopHook(HookBase):
    """Counts evaluations since the best one; every process has its own hook, and all have the same count.

    Args:
        metric: "data set/metric"; higher is better.
        patience: number of consecutive evaluations without a better value that ends the run.
        results: returns the latest evaluation's metrics by data set; empty except on the main process.
    """

    def __init__(self, metric: str, patience: int, results: Callable[[], Results]) -> None:
        self.name = metric
        self.patience = patience
        self.results = results
        self.best = -math.inf
        self.since = 0
        self.iteration = -1
        """The last one whose evaluation is counted."""
        self._seen: object = None

    @property
    def due(self) -> bool:
        """Whether the run should end."""
        return self.since >= self.patience

    def before_train(self) -> None:
        """Ignore results that exist before training."""
        self._seen = self.results()

    def after_step(self) -> None:
        """Count the latest evaluation, if there is a new one."""
        results = self.results()
        if results is not self._seen:
            self._seen = results
            self.count(broadcast(self.value_in(results)), self.trainer.iter)

    def value_in(self, results: Results) -> float | None:
        """Return the metric; None if the results do not have it."""
        dataset, _, metric = self.name.partition("/")
        return results.get(dataset, {}).get(metric)

    def count(self, value: float, iteration: int) -> None:
        """Count an evaluation, unless it is already counted.

        Args:
            value: value of the metric; NaN is never better.
            iteration: iteration of the evaluation.
        """
        if iteration <= self.iteration:
            return
        self.iteration = iteration
        better = value > self.best
        self.since = 0 if better else self.since + 1
        self.best = float(value) if better else self.best
        if not better:
            logger.info(
                "%s is %.2f, not above %.2f: evaluation %d of %d without a better value (SOLVER.EARLY_STOP.PATIENCE)",
                self.name,
                value,
                self.best,
                self.since,
                self.patience,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and their metric."""
        if self.iteration < 0:
            return {}
        return {"metric": self.name, "best": self.best, "since": self.since, "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`; if it is invalid or of another metric, log a warning and count from zero."""
        kinds = {"metric": str, "best": float, "since": int, "iteration": int}
        if any(type(state.get(name)) is not kind for name, kind in kinds.items()):
            logger.warning("The checkpoint's SOLVER.EARLY_STOP state cannot be read: evaluations are counted from zero")
        elif state["metric"] != self.name:
            logger.warning("SOLVER.EARLY_STOP.METRIC is %s from here on: evaluations are counted from zero", self.name)
        else:
            self.best, self.since, self.iteration = state["best"], state["since"], state["iteration"]
