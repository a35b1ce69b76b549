"""Stands in for `detectron2.engine.train_loop`: the loop over iterations, and the hooks called around each."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import Any

from san.d2.standin.events import EventStorage


class HookBase:
    """Base class of hooks, which a trainer calls around its iterations.

    Order: ``before_train``; per iteration ``before_step``, the trainer's ``run_step`` (which may call
    ``after_backward``), ``after_step``; ``after_train``, also when training fails. ``before_step`` must be fast,
    so that iterations are timed accurately.

    Attributes:
        trainer: the trainer, set by `TrainerBase.register_hooks`; a weak reference.
    """

    trainer: TrainerBase

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called after each backward pass, by trainers that support it."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return the hook's state for checkpoints; a hook with a state also has a ``load_state_dict``."""
        return {}


class TrainerBase:
    """Base class of trainers: runs `run_step` from one iteration to another, with hooks.

    Attributes:
        iter: the current iteration, from 0; after training the number of iterations done.
        start_iter: the first iteration of this run.
        max_iter: the iteration before which training ends.
        storage: the run's `EventStorage`, from `train` on.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which are called in this order.

        Args:
            hooks: the hooks; None is skipped.
        """
        kept = [hook for hook in hooks if hook is not None]
        for hook in kept:
            assert isinstance(hook, HookBase), f"a hook must be a HookBase, but got {hook!r}"
            hook.trainer = weakref.proxy(self)  # a strong one would keep trainer and model alive in a cycle
        self._hooks.extend(kept)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs the loop.

        Args:
            start_iter: the first iteration, from 0.
            max_iter: the iteration before which to end.
        """
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # iter is now max_iter, by which hooks know in after_train that training did not fail
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Calls the hooks' ``before_train``."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Calls the hooks' ``after_train``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Calls the hooks' ``before_step``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Calls the hooks' ``after_backward``."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Calls the hooks' ``after_step``."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Run one iteration; implemented by subclasses."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints.

        Returns:
            ``iteration``, and ``hooks``: class name → state, for hooks that have one.
        """
        state: dict[str, Any] = {"iteration": self.iter}
        hook_states: dict[str, Any] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            if hook_state:
                hook_states.setdefault(type(hook).__qualname__, hook_state)  # the first of a class
        if hook_states:
            state["hooks"] = hook_states
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of `state_dict`; the state of a hook that is not registered is skipped with a warning.

        Args:
            state_dict: as returned by `state_dict`.
        """
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            for hook in self._hooks:
                if type(hook).__qualname__ == name:
                    hook.load_state_dict(hook_state)  # type: ignore[attr-defined]
                    break
            else:
                logging.getLogger(__name__).warning("Cannot find the hook '%s', its state_dict is ignored.", name)
