"""One training iteration: forward and backward passes in mixed precision, accumulation, clipping, the update.

An iteration divided into accumulation steps gives the losses and gradients of the undivided one: each step's losses,
which the criterion has divided by that step's number of masks, class weight or images (`SetCriterion.divided_by`), are
weighted by the step's share of the whole iteration's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from san.d2.api import comm
from san.d2.batches import Sample
from san.d2.outcome import NonFiniteError, Outcome
from san.d2.solver import SolverConfig, clip_gradient
from san.losses.criterion import CLASS_WEIGHT, NUM_IMAGES, NUM_MASKS, SetCriterion


@dataclass(frozen=True)
class StepConfig:
    """How an iteration is computed.

    Attributes:
        solver: for the clipping.
        device: "cuda" or "cpu".
        amp_dtype: of mixed precision; None computes in float32. float16 comes with loss scaling.
        num_queries: Q, of the model.
        no_object_weight: of the criterion.
    """

    solver: SolverConfig
    device: str
    amp_dtype: torch.dtype | None
    num_queries: int
    no_object_weight: float


class Stepper:
    """Runs iterations of a model.

    Args:
        model: maps a list of samples to weighted losses by name; may be wrapped for distribution. Where it has a
            ``criterion``, that says what each loss is divided by.
        optimizer: of its trained parameters.
        config: how.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: StepConfig) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        self.divided_by = getattr(getattr(inner, "criterion", None), "divided_by", SetCriterion.divided_by)
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.amp_dtype == torch.float16)

    def run(
        self, batches: Sequence[list[Sample]], iteration: int, before_update: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Updates the weights once, unless a loss or the gradient is not finite on any process.

        A fused optimiser is told on the device whether to do the update. The host waits for a GPU in the matching
        only, once per accumulation step.

        Args:
            batches: one list of samples per accumulation step.
            iteration: its number, for error messages.
            before_update: called after the first forward pass, where the outcome of the iteration before can be read
                without waiting for it, and nothing of this one has changed yet.

        Returns:
            What it came to, which can be read at once or later.

        Raises:
            NonFiniteError: on every process, if a matching cost is not finite on any; nothing has changed then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        rows: list[Tensor] = []
        parts = self._shares(batches)
        shares: list[dict[str, float]] = []
        for index, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            with self._no_sync_unless(index == len(batches) - 1):
                losses = self._forward(batch, iteration)
                if not index:
                    before_update()
                shares.append({name: part[self._divisor(name)] for name in losses})
                weighted = torch.stack([value * shares[index][name] for name, value in losses.items()])
                self.scaler.scale(weighted.sum()).backward()
            rows.append(weighted.detach().float())
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradient(self.optimizer, self.config.solver).detach()
        together = torch.stack(rows)
        totals, spoilt = self._over_processes(together)
        self._update(unless=(spoilt > 0) | ~norm.isfinite())
        return Outcome(iteration, shares, together, totals, spoilt, norm, self._next_scale(spoilt))

    def _forward(self, batch: list[Sample], iteration: int) -> dict[str, Tensor]:
        """Losses of one accumulation step, which there are on every process."""
        problem = ""
        losses: dict[str, Tensor] = {}
        try:
            losses = self.losses(batch)
        except FloatingPointError as error:
            problem = str(error)
        # Together, before the backward pass: there the processes exchange gradients, and one that stays away stops all.
        # By the host's way: the device need not have computed the losses yet.
        if any(comm.all_gather(bool(problem))):
            problem = problem or "a loss of another process is not finite"
            raise NonFiniteError(problem, iteration, {name: float(value) for name, value in losses.items()})
        return losses

    @staticmethod
    def _over_processes(rows: Tensor) -> tuple[Tensor, Tensor]:
        """What all processes' losses come to, in one exchange.

        Args:
            rows: (S, N), losses of this process, by accumulation step.

        Returns:
            Their sums over the steps, (N,), averaged over processes; and a scalar that is above 0 where a loss is not
            finite on any.
        """
        world = comm.get_world_size()
        shared = torch.cat([rows.sum(dim=0) / world, (~rows.isfinite()).any().float().view(1)])
        if world > 1:
            dist.all_reduce(shared)
        return shared[:-1], shared[-1]

    def _update(self, *, unless: Tensor) -> None:
        """The optimiser's step, or none.

        Args:
            unless: scalar; where it is true the weights, moments and the count of updates stay.
        """
        optimizer: Any = self.optimizer
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = unless.float()  # as torch's GradScaler tells it
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf
        elif not unless:  # the host waits
            optimizer.step()

    def _next_scale(self, spoilt: Tensor) -> Tensor | None:
        """Tells the loss scaler of the gradient; returns the scale of the next iteration, None without loss scaling.

        Args:
            spoilt: scalar; where it is above 0 the scale stays as it was, as no gradient has overflowed.
        """
        if not self.scaler.is_enabled():
            return None
        one = torch.ones_like(spoilt)
        before = self.scaler.scale(one)
        self.scaler.update()
        scale = torch.where(spoilt > 0, before, self.scaler.scale(one))
        self.scaler.update(scale)
        return scale

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """The model's losses of a batch, in the run's precision."""
        dtype = self.config.amp_dtype
        with torch.autocast(self.config.device, dtype or torch.bfloat16, enabled=dtype is not None):
            losses: dict[str, Tensor] = self.model(batch)
        return losses

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged between workers in the last accumulation step only."""
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _divisor(self, name: str) -> str:
        """What a loss is divided by, a key of `_shares`; those of earlier layers have a number at the end."""
        found: str = self.divided_by.get(re.sub(r"_\d+$", "", name), NUM_IMAGES)
        return found

    def _shares(self, batches: Sequence[list[Sample]]) -> list[dict[str, float]]:
        """Each accumulation step's share of the iteration's class weight, number of masks and number of images."""
        keys = (CLASS_WEIGHT, NUM_MASKS, NUM_IMAGES)
        if len(batches) == 1:
            return [dict.fromkeys(keys, 1.0)]
        config = self.config
        sums = torch.zeros(len(batches), len(keys), dtype=torch.float64)
        for row, batch in zip(sums, batches, strict=True):
            counts = [sample["num_masks"] for sample in batch]
            matched = sum(min(config.num_queries, count) for count in counts)
            row[0] = matched + config.no_object_weight * (len(batch) * config.num_queries - matched)
            row[1] = sum(counts)
            row[2] = len(batch)
        sums = torch.tensor(comm.all_gather(sums.tolist()), dtype=torch.float64).sum(dim=0)
        wholes = sums.sum(dim=0)
        least = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # the criterion divides by at least 1 mask
        shares = sums.maximum(least) / wholes.maximum(least)
        return [dict(zip(keys, row, strict=True)) for row in shares.tolist()]
