"""One training iteration: forward and backward passes in mixed precision, accumulation, clipping, the update.

Losses stay on the device until they are read, so that the host does not wait. If a loss or gradient is not finite, all
processes skip the update.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from san.clip.weights import listed_tensors
from san.d2.api import comm
from san.d2.data.batches import BatchSample
from san.d2.solver import SolverConfig, clip_gradient
from san.d2.train.weight_average import WeightAverage
from san.losses.terms import Normalisers, average_counts, count_batch

logger = logging.getLogger("san.d2.trainer")


class NonFiniteError(FloatingPointError):
    """A loss or gradient is not finite on some process; no process has changed its weights.

    Attributes:
        problem: description of the error, without the iteration.
        losses: of this process and accumulation step, by name; empty if there are none.
        norm: norm of the gradient; None if a loss is not finite.
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
    """Options of the computation of an iteration.

    Attributes:
        solver: options of gradient clipping.
        device: "cuda" or "cpu".
        amp_dtype: type for mixed precision; None computes in float32. float16 uses loss scaling.
        num_queries: Q of the model.
        no_object_weight: option of the criterion.
        find_unused: whether trained parameters may have no gradient in distributed training.
    """

    solver: SolverConfig
    device: str
    amp_dtype: torch.dtype | None
    num_queries: int
    no_object_weight: float
    find_unused: bool = False


class PendingLosses:
    """Losses and gradient norm of an iteration, copied to the host asynchronously.

    The constructor does not wait for the device; `read` waits until all work queued before it is done.

    Args:
        iteration: its number, for error messages.
        names: names of the N losses.
        rows: (S, N), this process's losses by accumulation step; on the device, as all tensors here.
        totals: (N,), the iteration's losses, averaged over processes.
        bad: scalar, above 0 if a loss is not finite on any process.
        norm: scalar, norm of the gradient before clipping.
        scale: scalar, the loss scale of the next iteration; None without loss scaling.
    """

    def __init__(
        self,
        iteration: int,
        names: Sequence[str],
        rows: Tensor,
        totals: Tensor,
        bad: Tensor,
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        self.iteration = iteration
        self._names = names
        self._scaled = scale is not None
        singles = [value.float().view(1) for value in (bad, norm, norm if scale is None else scale)]
        self._values = torch.cat([rows.flatten(), totals, *singles])
        self._arrived: torch.cuda.Event | None = None
        if self._values.is_cuda:
            there, self._values = self._values, torch.empty_like(self._values, device="cpu", pin_memory=True)
            self._values.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(there.device))

    def arrived(self) -> bool:
        """Whether `read` would return without waiting."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> tuple[dict[str, float], float]:
        """Return the weighted losses of the iteration by name, averaged over processes, and the gradient's norm.

        With loss scaling, a non-finite gradient is normal: the update was skipped and the scale reduced. It is an error
        only if the scale has fallen below 1.

        Raises:
            NonFiniteError: on every process, if a loss or the gradient is not finite on any.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        *values, bad, norm, scale = self._values.tolist()
        width = len(self._names)
        *rows, totals = (values[start : start + width] for start in range(0, len(values), width))
        if bad > 0:
            raise self._loss_error(rows)
        losses = dict(zip(self._names, totals, strict=True))
        if not math.isfinite(norm) and not (self._scaled and scale >= 1):
            raise NonFiniteError(f"the gradient's norm is {norm}", self.iteration, losses, norm)
        return losses, norm

    def _loss_error(self, rows: Sequence[Sequence[float]]) -> NonFiniteError:
        """Return the error of the first accumulation step with a bad loss; of the last step if all are finite here."""
        bad = [row for row in rows if not all(map(math.isfinite, row))]
        values = dict(zip(self._names, bad[0] if bad else rows[-1], strict=True))
        listed = ", ".join(f"{name} is {value}" for name, value in values.items())
        problem = f"a loss is not finite ({listed})" if bad else "a loss of another process is not finite"
        return NonFiniteError(problem, self.iteration, values)


class Stepper:
    """Runs iterations of a model.

    Accumulation steps give the same losses and gradients as one large batch: counts are summed over all steps and
    processes, and the model divides its sums by them.

    Args:
        model: maps a list of samples to weighted losses by name; may be wrapped for distribution. Its ``forward`` takes
            `Normalisers` as ``norm`` and divides by them, as losses are added over accumulation steps; a model without
            this parameter supports only a single step.
        optimizer: optimizer of its trained parameters.
        config: options.
        average: average of the weights, updated after each update; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: StepConfig,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.average = average
        self._inner = model.module if isinstance(model, DistributedDataParallel) else model
        parameters = inspect.signature(self._inner.forward).parameters
        self._takes_norm = "norm" in parameters or any(each.kind == each.VAR_KEYWORD for each in parameters.values())
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.amp_dtype == torch.float16)
        self._checked = False

    def run(
        self, batches: Sequence[list[BatchSample]], iteration: int, before_update: Callable[[], None] = lambda: None
    ) -> PendingLosses:
        """Update the weights once, unless a loss or the gradient is not finite on any process.

        A fused optimiser reads on the device whether to skip the update. The host waits for a GPU only in the matching,
        once per accumulation step.

        Args:
            batches: one list of samples per accumulation step.
            iteration: its number, for error messages.
            before_update: called after the first forward pass, before any state changes; the losses of the previous
                iteration can be read without waiting.

        Returns:
            Its losses, to be read now or later.

        Raises:
            NonFiniteError: on every process, if a matching cost is not finite on any; no state is changed.
            ValueError: there are several accumulation steps, and the model's ``forward`` has no ``norm``; or
                several processes train, and a trained parameter has no gradient.
        """
        if len(batches) > 1 and not self._takes_norm:
            name = type(self._inner).__name__
            raise ValueError(
                f"SOLVER.ACCUMULATION_STEPS is {len(batches)}, but {name}.forward has no parameter norm, so its losses "
                "would depend on the number of steps; define forward(self, batched_inputs, norm=None) and hand norm to "
                "SAN's forward, or set SOLVER.ACCUMULATION_STEPS to 1"
            )
        self.optimizer.zero_grad(set_to_none=True)
        rows: list[Tensor] = []
        norm, names = self._normalisers(batches), list[str]()
        for index, batch in enumerate(batches):
            with self._no_sync_unless(index == len(batches) - 1):
                losses = self._forward(batch, norm, iteration)
                if not index:
                    before_update()
                names, values = list(losses), torch.stack([*losses.values()])
                self.scaler.scale(values.sum()).backward()
            rows.append(values.detach().float())
        self._check_unused()
        self.scaler.unscale_(self.optimizer)
        length = clip_gradient(self.optimizer, self.config.solver).detach()
        together = torch.stack(rows)
        totals, bad = self._over_processes(together)
        self._update(unless=(bad > 0) | ~length.isfinite())
        return PendingLosses(iteration, names, together, totals, bad, length, self._next_scale(bad))

    def _check_unused(self) -> None:
        """Report trained parameters without a gradient, after the first backward pass.

        Distributed training would wait for these gradients, and compute wrong ones for others in their bucket.
        """
        if self._checked:
            return
        self._checked = True
        unused = [name for name, each in self._inner.named_parameters() if each.requires_grad and each.grad is None]
        if not unused:
            return
        found = f"{len(unused)} trained parameters have no gradient ({listed_tensors(unused)})"
        if isinstance(self.model, DistributedDataParallel) and not self.config.find_unused:
            raise ValueError(
                f"{found}; use them in every loss, freeze them with SOLVER.PARAM_RULES, or set "
                "SOLVER.FIND_UNUSED_PARAMETERS to True, which costs time"
            )
        logger.warning("%s; they stay as they are", found)

    def _normalisers(self, batches: Sequence[list[BatchSample]]) -> Normalisers:
        """Return the counts of the iteration over all processes, without waiting for the device."""
        config = self.config
        counts = (sample["num_masks"] for batch in batches for sample in batch)
        everyone = comm.all_gather(count_batch(counts, config.num_queries, config.no_object_weight))
        masks, class_weight, images, pairs = map(sum, zip(*everyone, strict=True))
        return average_counts(masks, class_weight, images, pairs, len(everyone))

    def _forward(self, batch: list[BatchSample], norm: Normalisers, iteration: int) -> dict[str, Tensor]:
        """Return the losses of one accumulation step; an error on one process is raised on all."""
        problem = ""
        losses: dict[str, Tensor] = {}
        try:
            losses = self.losses(batch, norm)
        except FloatingPointError as error:
            problem = str(error)
        # Errors are exchanged before the backward pass, which exchanges gradients and would deadlock without a process.
        # They are exchanged on the host, without waiting for the device to compute the losses.
        if any(comm.all_gather(bool(problem))):
            problem = problem or "a loss of another process is not finite"
            raise NonFiniteError(problem, iteration, {name: float(value) for name, value in losses.items()})
        return losses

    @staticmethod
    def _over_processes(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the losses of all processes with one collective operation.

        Args:
            rows: (S, N), losses of this process, by accumulation step.

        Returns:
            Their sums over the steps, (N,), averaged over processes; and a scalar that is above 0 if a loss is not
            finite on any.
        """
        world = comm.get_world_size()
        shared = torch.cat([rows.sum(dim=0) / world, (~rows.isfinite()).any().float().view(1)])
        if world > 1:
            dist.all_reduce(shared)
        return shared[:-1], shared[-1]

    def _update(self, *, unless: Tensor) -> None:
        """Do the optimiser's step, or skip it.

        Args:
            unless: scalar; if true, the weights, their average, moments and the number of updates are not changed.
        """
        optimizer: Any = self.optimizer
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = unless.float()  # the attribute that torch's GradScaler sets
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf
        elif not unless:  # synchronizes with the device
            optimizer.step()
        if self.average is not None:
            self.average.update(unless)

    def _next_scale(self, bad: Tensor) -> Tensor | None:
        """Update the loss scale; return that of the next iteration, None without loss scaling.

        Args:
            bad: scalar; if above 0, the scale is not changed, as no gradient has overflowed.
        """
        if not self.scaler.is_enabled():
            return None
        one = torch.ones_like(bad)
        before = self.scaler.scale(one)
        self.scaler.update()
        scale = torch.where(bad > 0, before, self.scaler.scale(one))
        self.scaler.update(scale)
        return scale

    def losses(self, batch: list[BatchSample], norm: Normalisers | None = None) -> dict[str, Tensor]:
        """Return the model's losses of a batch in the run's precision; without `norm`, the batch's counts are used."""
        dtype = self.config.amp_dtype
        with torch.autocast(self.config.device, dtype or torch.bfloat16, enabled=dtype is not None):
            losses: dict[str, Tensor] = self.model(batch, norm=norm) if self._takes_norm else self.model(batch)
        return losses

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which workers exchange gradients only in the last accumulation step."""
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()
