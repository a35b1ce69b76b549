"""When checkpoints are written, which are kept, and which is the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from san.d2.api import HookBase, comm
from san.d2.checkpointer import SANCheckpointer, remove_checkpoint
from san.d2.writers import logged

logger = logging.getLogger("san.d2.checkpoints")


class CheckpointHook(HookBase):
    """Writes ``model_<iteration>.pth`` every so many iterations, and ``model_final.pth`` after the last.

    Args:
        checkpointer: writes them.
        period: iterations between two.
        keep: how many of the latest are kept beside the final one; None keeps all. The last one written is removed
            only after a newer one lies there whole.
        sound: tells whether the last update was done; while updates are left out, nothing is written but the final
            checkpoint or one asked for, and nothing removed, as the weights may be what is wrong.
    """

    def __init__(
        self,
        checkpointer: SANCheckpointer,
        period: int,
        keep: int | None = None,
        sound: Callable[[], bool] = lambda: True,
    ) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.sound = sound
        self._last_saved: int | None = None

    def after_step(self) -> None:
        """Writes, where it is time."""
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0 and self.sound():
            self.save(f"model_{iteration:07d}")
        if iteration + 1 >= self.trainer.max_iter:
            self.save("model_final")

    def save_now(self) -> bool:
        """Writes the present state, unless it lies there already; returns whether it does then."""
        iteration = self.trainer.iter
        if self._last_saved == iteration:
            return True
        return self.save(f"model_{iteration:07d}")

    def save(self, name: str) -> bool:
        """Writes one, and removes what need not be kept; returns whether it is written."""
        written = self.checkpointer.save(name, iteration=self.trainer.iter)
        if not written:
            return False
        self._last_saved = self.trainer.iter
        if self.keep is not None and self.sound() and comm.is_main_process():
            folder = Path(self.checkpointer.save_dir)
            numbered = sorted(path for path in folder.glob("model_*.pth") if path.stem.removeprefix("model_").isdigit())
            for path in numbered[: -self.keep]:
                remove_checkpoint(path)
        return True


class BestCheckpointHook(HookBase):
    """Writes ``model_best.pth`` whenever an evaluation gives a metric its best value so far.

    Args:
        checkpointer: writes it.
        metric: "data set/metric", such as shapes_sem_seg_val_seen/mIoU; higher is better.
        results: gives the latest evaluation's metrics by data set, empty where there is none.
    """

    def __init__(
        self, checkpointer: SANCheckpointer, metric: str, results: Callable[[], Mapping[str, Mapping[str, float]]]
    ) -> None:
        self.checkpointer = checkpointer
        self.dataset, _, self.metric = metric.partition("/")
        self.results = results
        self.best = -math.inf
        self._seen: object = None

    def before_train(self) -> None:
        """Looks at what the run has logged: a checkpoint is written before the evaluation of its own iteration."""
        key = f"{self.dataset}/{self.metric}"
        for row in logged(Path(self.checkpointer.save_dir) / "metrics.json"):
            if row.get("iteration", 0) < self.trainer.start_iter and row.get(key, -math.inf) > self.best:
                self.best = row[key]

    def after_step(self) -> None:
        """Looks at the latest evaluation, if there is a new one."""
        results = self.results()
        if results is self._seen or self.dataset not in results:
            return
        self._seen = results
        value = results[self.dataset][self.metric]
        if not value > self.best:
            return
        logger.info("%s/%s is %.2f, the best so far (before: %.2f)", self.dataset, self.metric, value, self.best)
        self.best = value
        self.checkpointer.save("model_best", latest=False, iteration=min(self.trainer.iter, self.trainer.max_iter - 1))

    after_train = after_step

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {} if self.best == -math.inf else {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.best = state["best"]
