"""One training iteration: forward and backward passes in mixed precision, accumulation, clipping, the update.

An iteration divided into accumulation steps gives the losses and gradients of the undivided one: each step's losses,
which the criterion has divided by that step's number of masks and class weight, are weighted by the step's share of the
whole iteration's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from san.d2.loaders import Sample
from san.d2.solver import SolverConfig, clip_gradient


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite, on some process; no process has changed its weights.

    Attributes:
        losses: of this process and accumulation step, by name, before its share was taken; empty where there are none.
        norm: of the gradient; None where a loss is not finite.
        problem: in words.
    """

    def __init__(
        self, problem: str, iteration: int, losses: dict[str, float] | None = None, norm: float | None = None
    ) -> None:
        super().__init__(f"iteration {iteration}: {problem}")
        self.problem = problem
        self.losses = losses or {}
        self.norm = norm


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
        model: maps a list of samples to weighted losses by name; may be wrapped for distribution.
        optimizer: of its trained parameters.
        config: how.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: StepConfig) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.amp_dtype == torch.float16)

    def run(self, batches: Sequence[list[Sample]], iteration: int) -> tuple[dict[str, Tensor], Tensor]:
        """Updates the weights once.

        With loss scaling a gradient that is not finite is normal: the scaler leaves the update out and lowers the
        scale. Only when it has fallen below 1 the gradient itself is wrong.

        Args:
            batches: one list of samples per accumulation step.
            iteration: its number, for error messages.

        Returns:
            The weighted losses of the iteration by name, and the norm of the gradient before clipping; scalars, on the
            CPU unless there are other processes.

        Raises:
            NonFiniteError: on every process, if a loss or the gradient is not finite on any; the weights have not been
                changed then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        steps: list[dict[str, Tensor]] = []
        shares = self._shares(batches)
        for index, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            with self._no_sync_unless(index == len(batches) - 1):
                losses = self._forward(batch, share, iteration)
                self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            steps.append({name: value.detach() for name, value in losses.items()})
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradient(self.optimizer, self.config.solver).detach()
        rows, size, spoilt = self._read(steps, norm)
        scaled = self.scaler.is_enabled()
        if spoilt:
            if scaled:
                self.scaler.update(self.scaler.get_scale())  # stays as it was: the gradient has not overflowed
            raise self._loss_error(steps, shares, rows, iteration)
        finite = math.isfinite(size)  # the same on every process, as the gradients are
        if finite or scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        totals = torch.tensor(rows).sum(dim=0)
        if not finite and (not scaled or self.scaler.get_scale() < 1):
            values = dict(zip(steps[0], totals.tolist(), strict=True))
            raise NonFiniteError(f"the gradient's norm is {size}", iteration, values, size)
        if _distributed():  # the processes' exchange wants them where the model is
            return {name: torch.stack([step[name] for step in steps]).sum() for name in steps[0]}, norm
        return dict(zip(steps[0], totals, strict=True)), torch.tensor(size)

    def _forward(self, batch: list[Sample], shares: dict[str, float], iteration: int) -> dict[str, Tensor]:
        """Losses of one accumulation step, which there are on every process, times its share of the iteration."""
        problem = ""
        losses: dict[str, Tensor] = {}
        try:
            losses = self.losses(batch)
        except FloatingPointError as error:
            problem = str(error)
        # Together, before the backward pass: there the processes exchange gradients, and one that stays away stops all.
        if self._anywhere(bool(problem)):
            problem = problem or "a loss of another process is not finite"
            raise NonFiniteError(problem, iteration, {name: float(value) for name, value in losses.items()})
        return {name: value * shares[_kind(name)] for name, value in losses.items()}

    def _read(self, steps: Sequence[dict[str, Tensor]], norm: Tensor) -> tuple[list[list[float]], float, bool]:
        """Losses and gradient norm, in one transfer: on a GPU the host waits here and in the matching only.

        Args:
            steps: losses of each accumulation step, of the same names.
            norm: of the gradient.

        Returns:
            Losses of each step, the norm, and whether a loss is not finite on any process.
        """
        losses = torch.stack([value.float() for step in steps for value in step.values()])
        spoilt = (~losses.isfinite()).any().float()
        if _distributed():
            dist.all_reduce(spoilt)
        *values, size, anywhere = torch.cat([losses, norm.float().view(1), spoilt.view(1)]).tolist()
        count = len(steps[0])
        return [values[i : i + count] for i in range(0, len(values), count)], size, anywhere > 0

    @staticmethod
    def _loss_error(
        steps: Sequence[dict[str, Tensor]],
        shares: Sequence[dict[str, float]],
        rows: Sequence[Sequence[float]],
        iteration: int,
    ) -> NonFiniteError:
        """What is told of the first step with a loss that is not finite, or of the last one if here all are."""
        wrong = [index for index, row in enumerate(rows) if not all(map(math.isfinite, row))]
        index = wrong[0] if wrong else len(rows) - 1
        values = {
            name: value / shares[index][_kind(name)] for name, value in zip(steps[index], rows[index], strict=True)
        }
        told = ", ".join(f"{name} is {value}" for name, value in values.items())
        problem = f"a loss is not finite ({told})" if wrong else "a loss of another process is not finite"
        return NonFiniteError(problem, iteration, values)

    def losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        """The model's losses of a batch, in the run's precision."""
        dtype = self.config.amp_dtype
        with torch.autocast(self.config.device, dtype or torch.bfloat16, enabled=dtype is not None):
            losses: dict[str, Tensor] = self.model(batch)
        return losses

    def _anywhere(self, flag: bool) -> bool:
        """Whether it is true on any process."""
        if not _distributed():
            return flag
        flags = torch.tensor([float(flag)], device=torch.device(self.config.device))
        dist.all_reduce(flags)
        return bool(flags.item())

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged between workers in the last accumulation step only."""
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _shares(self, batches: Sequence[list[Sample]]) -> list[dict[str, float]]:
        """Each accumulation step's share of the iteration's class weight ("ce") and number of masks ("mask")."""
        if len(batches) == 1:
            return [{"ce": 1.0, "mask": 1.0}]
        config = self.config
        sums = torch.zeros(len(batches), 2, dtype=torch.float64)
        for row, batch in zip(sums, batches, strict=True):
            counts = [sample["num_masks"] for sample in batch]
            matched = sum(min(config.num_queries, count) for count in counts)
            row[0] = matched + config.no_object_weight * (len(batch) * config.num_queries - matched)
            row[1] = sum(counts)
        if _distributed():
            sums = sums.to(torch.device(config.device))
            dist.all_reduce(sums)
        parts = torch.stack([sums[:, 0], sums[:, 1].clamp(min=1)], dim=1)  # the criterion divides by at least 1 mask
        wholes = torch.stack([sums[:, 0].sum(), sums[:, 1].sum().clamp(min=1)])
        return [{"ce": ce, "mask": mask} for ce, mask in (parts / wholes).tolist()]


def _kind(name: str) -> str:
    """Which share a loss is weighted by."""
    return "ce" if name.startswith("loss_ce") else "mask"


def _distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
