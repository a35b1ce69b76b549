"""SOLVER.EARLY_STOP: the end of a run whose metric no longer rises."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from san.d2.api import HookBase, broadcast

logger = logging.getLogger("san.d2.early_stop")

Results = Mapping[str, Mapping[str, float]]


class EarlyStopHook(HookBase):
    """Counts evaluations since the best one; every process has one, and all count the same.

    Args:
        metric: "data set/metric"; higher is better.
        patience: so many evaluations in a row without a better value end the run.
        results: gives the latest evaluation's metrics by data set; empty on all processes but the main one.
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
        """Whether the run is to end."""
        return self.since >= self.patience

    def before_train(self) -> None:
        """Nothing is evaluated yet."""
        self._seen = self.results()

    def after_step(self) -> None:
        """Counts the latest evaluation, if there is a new one."""
        results = self.results()
        if results is not self._seen:
            self._seen = results
            self.count(broadcast(self.value_in(results)), self.trainer.iter)

    def value_in(self, results: Results) -> float | None:
        """The metric, where the results have it."""
        dataset, _, metric = self.name.partition("/")
        return results.get(dataset, {}).get(metric)

    def count(self, value: float, iteration: int) -> None:
        """Counts an evaluation, unless it is counted already.

        Args:
            value: of the metric; NaN is never better.
            iteration: after which it was made.
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
        """What was counted, and of what."""
        if self.iteration < 0:
            return {}
        return {"metric": self.name, "best": self.best, "since": self.since, "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave; where it is of another metric, or odd, a warning says that it is not."""
        kinds = {"metric": str, "best": float, "since": int, "iteration": int}
        if any(type(state.get(name)) is not kind for name, kind in kinds.items()):
            logger.warning("The checkpoint's SOLVER.EARLY_STOP state cannot be read: evaluations are counted from zero")
        elif state["metric"] != self.name:
            logger.warning("SOLVER.EARLY_STOP.METRIC is %s from here on: evaluations are counted from zero", self.name)
        else:
            self.best, self.since, self.iteration = state["best"], state["since"], state["iteration"]
