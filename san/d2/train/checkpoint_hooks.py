"""Hooks that write checkpoints, remove old ones, and keep the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from san.checkpoint import load_checkpoint_file
from san.d2.api import HookBase, TrainerBase, comm
from san.d2.checkpoints.checkpointer import (
    SANCheckpointer,
    damage_of,
    identity_of,
    latest_checkpoint,
    remove_checkpoint,
)
from san.d2.checkpoints.trainer_state import flat_state
from san.io.files import PARTIAL

FINAL = "model_final"
BEST = "model_best"

logger = logging.getLogger("san.d2.checkpoints")


def last_done(trainer: TrainerBase) -> int:
    """Return the last completed or current iteration; after training, a trainer's own number is one more."""
    return min(trainer.iter, max(trainer.start_iter, trainer.max_iter) - 1)


class CheckpointHook(HookBase):
    """Writes ``model_<iteration>.pth`` every `period` iterations, and ``model_final.pth`` after the last.

    Args:
        checkpointer: writes them.
        period: iterations between two.
        keep: number of the run's latest checkpoints to keep besides the final one; None keeps all. The last one is
            removed only after a newer one is complete; those of other runs are never removed.
        sound: returns whether the last update was done. While updates are skipped, the weights may be invalid: only
            the final checkpoint and requested ones are written, and none is removed.
        check: called with the last iteration before each save, on every process; raises if weights are not finite.
    """

    def __init__(
        self,
        checkpointer: SANCheckpointer,
        period: int,
        keep: int | None = None,
        sound: Callable[[], bool] = lambda: True,
        check: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.sound = sound
        self.check = check
        self._last_saved: int | None = None
        self._final = False

    def before_train(self) -> None:
        """Clean up after a killed run: remove incomplete files, and write the final checkpoint if it is missing."""
        if comm.is_main_process():
            for path in Path(self.checkpointer.save_dir).glob(f".*{PARTIAL}*"):
                path.unlink(missing_ok=True)
        if self.trainer.start_iter < self.trainer.max_iter:
            return
        latest = latest_checkpoint(self.checkpointer.save_dir)
        self._final = latest is not None and latest.stem == FINAL
        self._last_saved = last_done(self.trainer)
        self.finish()

    def reads_losses(self, done: int) -> bool:
        """See `san.d2.train.run_hooks.ReadsLosses`: `sound` depends on them."""
        return done % self.period == 0

    def after_step(self) -> None:
        """Write a checkpoint every `period` iterations, and after the last."""
        iteration = self.trainer.iter
        if self.reads_losses(iteration + 1) and self.sound():
            self.save(f"model_{iteration:07d}")
        if iteration + 1 >= self.trainer.max_iter:
            self.save(FINAL)

    def save_now(self) -> bool:
        """Write the current state unless it is already written; return whether the checkpoint exists."""
        done = last_done(self.trainer)
        if self._last_saved == done:
            return True
        return self.save(FINAL if done + 1 >= self.trainer.max_iter else f"model_{done:07d}")

    def finish(self) -> bool:
        """Write the final checkpoint unless it is already written; return whether it exists."""
        return self._final or self.save(FINAL)

    def save(self, name: str) -> bool:
        """Write a checkpoint, and remove old ones; return whether it was written.

        Raises:
            FloatingPointError: raised by `check`.
        """
        done = last_done(self.trainer)
        self.check(done)
        if not self.checkpointer.save(name, iteration=done):
            return False
        self._last_saved = done
        self._final |= name == FINAL
        if self.keep is not None and self.sound() and comm.is_main_process():
            folder = Path(self.checkpointer.save_dir)
            numbered = sorted(path for path in folder.glob("model_*.pth") if path.stem.removeprefix("model_").isdigit())
            own = [path for path in numbered if self._is_own(path)]
            for path in own[: -self.keep]:
                remove_checkpoint(path)
        return True

    def _is_own(self, path: Path) -> bool:
        """Whether a checkpoint belongs to this run."""
        identity = identity_of(path)
        return identity is not None and (identity.run or "") == self.checkpointer.run_id


class BestCheckpointHook(HookBase):
    """Writes ``model_best.pth`` after each evaluation that improves a metric.

    Args:
        checkpointer: writes it.
        metric: "data set/metric", such as shapes_sem_seg_val_seen/mIoU; higher is better.
        results: returns the latest evaluation's metrics by data set; empty if there is none.
    """

    def __init__(
        self, checkpointer: SANCheckpointer, metric: str, results: Callable[[], Mapping[str, Mapping[str, float]]]
    ) -> None:
        self.checkpointer = checkpointer
        self.name = metric
        self.dataset, _, self.metric = metric.partition("/")
        self.results = results
        self.best = -math.inf
        self._seen: object = None

    def before_train(self) -> None:
        """Read the best value so far from ``model_best.pth``."""
        path = Path(self.checkpointer.save_dir) / f"{BEST}.pth"
        self.best = -math.inf
        if not self.trainer.start_iter or not comm.is_main_process() or not path.is_file():
            return
        problem = damage_of(path)
        if problem is not None:
            logger.warning("%s; the next evaluation rewrites it", problem)
            return
        try:
            state = flat_state(load_checkpoint_file(path).get("trainer"))["hooks"][type(self).__qualname__]
            metric, best = state["metric"], float(state["best"])
        except (ValueError, TypeError, LookupError):  # another checkpoint with this name
            return
        if metric == self.name and math.isfinite(best):
            self.best = best

    def after_step(self) -> None:
        """Compare the latest evaluation with the best, if there is a new one."""
        results = self.results()
        if results is self._seen or self.dataset not in results:
            return
        self._seen = results
        value, before = results[self.dataset][self.metric], self.best
        if not value > before:
            return
        logger.info("%s is %.2f, the best so far (before: %.2f)", self.name, value, before)
        self.best = value
        if not self.checkpointer.save(BEST, latest=False, iteration=last_done(self.trainer)):
            self.best = before  # the value of the existing file

    after_train = after_step

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and its metric."""
        return {} if self.best == -math.inf else {"metric": self.name, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load nothing: `before_train` reads ``model_best.pth``, which may be newer, or missing."""
