"""What an iteration came to, told once the device has it: reading it earlier would make the host wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


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


class Outcome:
    """Losses and gradient norm of an iteration, on their way to the host.

    Making one does not wait for the device; `read` does, until all that had been asked of it by then is done.

    Args:
        iteration: its number, for error messages.
        shares: of each of S accumulation steps, by the N names of losses: what its losses were weighted by.
        rows: (S, N), this process's weighted losses, on the device as all the tensors.
        totals: (N,), the iteration's losses, averaged over processes.
        spoilt: scalar, above 0 where a loss is not finite on any process.
        norm: scalar, of the gradient before clipping.
        scale: scalar, by which the losses will be scaled in the next iteration; None without loss scaling.
    """

    def __init__(
        self,
        iteration: int,
        shares: Sequence[Mapping[str, float]],
        rows: Tensor,
        totals: Tensor,
        spoilt: Tensor,
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        self.iteration = iteration
        self._shares = shares
        self._scaled = scale is not None
        singles = [value.float().view(1) for value in (spoilt, norm, norm if scale is None else scale)]
        self._values = torch.cat([rows.flatten(), totals, *singles])
        self._arrived: torch.cuda.Event | None = None
        if self._values.is_cuda:
            there, self._values = self._values, torch.empty_like(self._values, device="cpu", pin_memory=True)
            self._values.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(there.device))

    def arrived(self) -> bool:
        """Whether `read` would not wait."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> tuple[dict[str, float], float]:
        """The weighted losses of the iteration by name, averaged over processes, and the gradient's norm.

        With loss scaling a gradient that is not finite is normal: the update was left out and the scale lowered. Only
        when that has fallen below 1 the gradient itself is wrong.

        Raises:
            NonFiniteError: on every process, if a loss or the gradient is not finite on any.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        *values, spoilt, norm, scale = self._values.tolist()
        names = list(self._shares[0])
        *rows, totals = (values[start : start + len(names)] for start in range(0, len(values), len(names)))
        if spoilt > 0:
            raise self._loss_error(rows)
        losses = dict(zip(names, totals, strict=True))
        if not math.isfinite(norm) and not (self._scaled and scale >= 1):
            raise NonFiniteError(f"the gradient's norm is {norm}", self.iteration, losses, norm)
        return losses, norm

    def _loss_error(self, rows: Sequence[Sequence[float]]) -> NonFiniteError:
        """What is told of the first step with a loss that is not finite, or of the last one if here all are."""
        wrong = [index for index, row in enumerate(rows) if not all(map(math.isfinite, row))]
        index = wrong[0] if wrong else len(rows) - 1
        values = {
            name: value / share for (name, share), value in zip(self._shares[index].items(), rows[index], strict=True)
        }
        told = ", ".join(f"{name} is {value}" for name, value in values.items())
        problem = f"a loss is not finite ({told})" if wrong else "a loss of another process is not finite"
        return NonFiniteError(problem, self.iteration, values)
