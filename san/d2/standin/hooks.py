"""Stands in for `detectron2.engine.hooks`: timing, learning rate, evaluation, writing."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from fvcore.common.timer import Timer

from san.d2.standin import comm
from san.d2.standin.events import EventWriter
from san.d2.standin.train_loop import HookBase

__all__ = ["EvalHook", "IterationTimer", "LRScheduler", "PeriodicWriter"]


class IterationTimer(HookBase):
    """Records ``time``, the seconds of an iteration without hooks, and logs a summary at the end.

    Register it first.

    Args:
        warmup_iter: number of first iterations that are not timed, except the last of them.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        """Starts the clocks."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self) -> None:
        """Starts the iteration's clock."""
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        """Record the iteration's time; during the warm-up, reset the clocks instead."""
        iterations_done = self.trainer.iter - self.trainer.start_iter + 1
        if iterations_done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        """Logs the mean time of an iteration, and the time spent on hooks."""
        logger = logging.getLogger(__name__)
        total_seconds = time.perf_counter() - self._start_time
        step_seconds = self._total_timer.seconds()
        num_iterations = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_iterations > 0 and step_seconds > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                num_iterations,
                datetime.timedelta(seconds=int(step_seconds)),
                step_seconds / num_iterations,
            )
        logger.info(
            "Total training time: %s (%s on hooks)",
            datetime.timedelta(seconds=int(total_seconds)),
            datetime.timedelta(seconds=int(total_seconds - step_seconds)),
        )


class LRScheduler(HookBase):
    """Records ``lr`` and steps the learning rate schedule after every iteration.

    Args:
        optimizer: optimizer whose learning rate is recorded; the trainer's ``optimizer`` by default.
        scheduler: of torch; the trainer's ``scheduler`` by default. Its state is the hook's state.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._group = 0

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule that is stepped."""
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def before_train(self) -> None:
        """Select the parameter group whose learning rate is recorded."""
        self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        self._group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Select the parameter group whose learning rate represents all.

        Args:
            optimizer: its groups.

        Returns:
            Index of the first group with the most parameter tensors; where all have one, of the first with the
            commonest learning rate.
        """
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        largest = max(sizes)
        if largest > 1:
            return sizes.index(largest)
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        """Record the learning rate of the completed iteration, then step the schedule."""
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the schedule's state."""
        logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
        self.scheduler.load_state_dict(state_dict)


def _flatten(results: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, with the keys joined by ``/``."""
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class EvalHook(HookBase):
    """Evaluates periodically and at the end, and records the results as scalars such as ``sem_seg/mIoU``.

    Args:
        eval_period: iterations between evaluations; 0 only evaluates at the end.
        eval_function: takes nothing and returns a nested dictionary of numbers, or None; called on every worker.
        eval_after_train: whether to evaluate after the last iteration.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None], eval_after_train: bool = True
    ) -> None:
        self._period = eval_period
        self._evaluate = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        """Evaluate, record the results, wait for all workers."""
        results = self._evaluate()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            flat = dict(_flatten(results))
            for name, value in flat.items():
                try:
                    flat[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        comm.synchronize()  # evaluation takes longer on some workers

    def after_step(self) -> None:
        """Evaluate periodically, except after the last iteration, after which `after_train` evaluates."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate if training is complete."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()


class PeriodicWriter(HookBase):
    """Calls writers periodically and at the end, and closes them.

    Args:
        writers: to be called in this order.
        period: iterations between two calls.
    """

    def __init__(self, writers: Iterable[EventWriter], period: int = 20) -> None:
        self._writers = [*writers]
        for writer in self._writers:
            assert isinstance(writer, EventWriter), f"a writer must be an EventWriter, but got {writer!r}"
        self._period = period

    def after_step(self) -> None:
        """Write periodically and after the last iteration."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Write the remaining scalars, such as those of the final evaluation, and close the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()
