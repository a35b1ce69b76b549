"""The exponential moving average (EMA) of the trained weights, on the same device.

If an update is skipped on the device, the average is not changed, without synchronizing with the host (see
`san.d2.train.iteration.Stepper`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from san.clip.weights import listed_tensors
from san.clip.weights_file import kind_of_flaw
from san.io.errors import excerpt

RAMP = 9.0
"""After n updates the decay is at most (1 + n) / (1 + RAMP + n), to reduce the weight of the initial values."""


class WeightAverage:
    """Averages weights: after each update, average += (1 - decay) * (weights - average).

    Every process of a run has its own average; all are equal, as the weights are.

    Args:
        model: model, not wrapped; its currently trained tensors are averaged.
        decay: decay of the average; lower during the first updates, see `RAMP`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self._weights: list[Tensor] = [each for each in model.parameters() if each.requires_grad]
        self._averages = [each.detach().clone() for each in self._weights]
        self.updates = torch.zeros((), device=self._weights[0].device)
        """Scalar: updates that were done."""

    @torch.no_grad()
    def reset(self) -> None:
        """Restart from the current weights."""
        torch._foreach_copy_(self._averages, self._weights)
        self.updates.zero_()

    @torch.no_grad()
    def update(self, unless: Tensor) -> None:
        """Update the average after an update of the weights.

        Args:
            unless: scalar on the device of the weights; if true, the update was skipped, and nothing changes.
        """
        done = (~unless.bool()).float()
        self.updates += done
        # 1 - decay is computed directly, because subtracting numbers near 1 would lose digits
        share = (RAMP / (1 + RAMP + self.updates)).clamp(min=1 - self.decay) * done
        difference: list[Tensor] = [*torch._foreach_sub(self._weights, self._averages)]  # type: ignore[arg-type]
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(self._averages, difference)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange weights and averages in place, because optimiser and wrapper reference the weights."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _named(self) -> dict[str, Tensor]:
        """Return the averages by the weights' names in a checkpoint."""
        averages = dict(zip(map(id, self._weights), self._averages, strict=True))
        state = self.model.state_dict(keep_vars=True)
        return {name: averages[id(tensor)] for name, tensor in state.items() if id(tensor) in averages}

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"model": self._named(), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`.

        Raises:
            ValueError: see `check_state_dict`.
        """
        self.check_state_dict(state)
        for name, average in self._named().items():
            average.copy_(state["model"][name])
        self.updates.copy_(state["updates"])

    def check_state_dict(self, state: object) -> None:
        """Check that `load_state_dict` can load a state; changes nothing.

        Args:
            state: the state; None, from a checkpoint without an average, is accepted.

        Raises:
            ValueError: the state does not fit; the message gives the reason.
        """
        if state is None:
            return
        found = state.get("model") if isinstance(state, Mapping) else None
        updates = state.get("updates") if isinstance(state, Mapping) else None
        if not isinstance(found, Mapping) or not isinstance(updates, Tensor):
            raise ValueError(f"its averaged weights (ema) are {excerpt(state)} instead of model and updates")
        if updates.shape or updates.dtype != torch.float32 or not 0 <= updates.item() < float("inf"):
            raise ValueError(f"its average is of {excerpt(updates)} updates instead of a number that is 0 or more")
        wanted = self._named()
        wrong = [f"{excerpt(name)} is unknown" for name in found if name not in wanted]
        for name, average in wanted.items():
            value = found.get(name)
            if not isinstance(value, Tensor) or kind_of_flaw(value):
                wrong.append(f"{name} is missing or no plain tensor")
            elif value.shape != average.shape or value.dtype != average.dtype:
                wrong.append(f"{name} is {value.dtype}, {excerpt(tuple(value.shape))}")
            elif not value.isfinite().all():
                wrong.append(f"{name} is NaN or infinite")
        if wrong:
            raise ValueError(
                f"its averaged weights (ema) are not those of this run's trained tensors: {listed_tensors(wrong)}; set "
                "SOLVER.EMA.ENABLED to False to go on without them"
            )
