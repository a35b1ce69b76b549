"""One iteration: how often the host reads from the device, and what a loss that is not finite leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder, WallClock
from san.benchmark.workload import make_workload
from san.d2.solver import SolverConfig, build_optimizer
from san.d2.step import NonFiniteError, StepConfig, Stepper

READS = ("cpu", "item", "tolist", "nonzero", "unique", "__bool__", "__float__", "__int__")
"""Methods of a tensor for which the host waits when it is on a GPU."""


class FloatReads(TorchFunctionMode):
    """Notes every read of a float32 tensor's values; integers (labels, matches) and float64 live in the main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and args and isinstance(args[0], Tensor) and args[0].dtype == torch.float32:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Line(nn.Module):
    """A loss that is linear in one weight, and one that is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss_ce": self.layer(batch[0]["x"]).sum().float(), "loss_mask": torch.ones(())}


def stepper_of(model: nn.Module, amp_dtype: torch.dtype | None = None) -> Stepper:
    solver = SolverConfig(base_lr=0.1, weight_decay=0.0)
    stepper = Stepper(model, build_optimizer(model, solver), StepConfig(solver, "cpu", amp_dtype, 4, 0.1))
    stepper.scaler = torch.amp.GradScaler("cpu", 8.0, enabled=amp_dtype == torch.float16)  # that no gradient overflows
    return stepper


def batch_of(value: float, num_masks: int = 1) -> list[dict[str, Any]]:
    return [{"x": torch.tensor([value, 1.0]), "num_masks": num_masks}]


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 3])
def test_losses_and_norm_are_read_in_one_transfer(amp_dtype: torch.dtype | None, steps: int) -> None:
    stepper = stepper_of(Line(), amp_dtype)
    with FloatReads() as reads:
        losses, norm = stepper.run([batch_of(2.0)] * steps, 0)
    assert reads.found == ["tolist"]
    assert float(losses["loss_ce"]) == pytest.approx(3.0) and float(losses["loss_mask"]) == pytest.approx(1.0)
    assert float(norm) == pytest.approx(math.sqrt(5), rel=1e-6 if amp_dtype is None else 1e-2)


def test_a_whole_step_reads_twice() -> None:
    """The matching's costs, and losses with norm."""
    case = Case("training", model="tiny", height=96, width=96, classes=12, batch=2)
    workload = make_workload(case, torch.device("cpu"), plain=False)
    with FloatReads() as reads:
        workload.run(Recorder(WallClock()))
    assert reads.found == ["cpu", "tolist"]


@pytest.fixture(params=[None, torch.float16])
def stepper(request: pytest.FixtureRequest) -> Stepper:
    return stepper_of(Line(), request.param)


def test_a_bad_loss_leaves_everything_as_it_was(stepper: Stepper) -> None:
    """Weights, moments and loss scale; and the next iteration is done."""
    weight = stepper.model.layer.weight
    before, scale = weight.detach().clone(), stepper.scaler.get_scale()
    with pytest.raises(NonFiniteError, match=r"iteration 5: a loss is not finite \(loss_ce is nan, loss_mask is 1\.0"):
        stepper.run([batch_of(math.nan)], 5)
    assert torch.equal(weight, before) and not stepper.optimizer.state
    assert stepper.scaler.get_scale() == scale
    stepper.run([batch_of(1.0)], 6)
    assert weight.isfinite().all() and not torch.equal(weight, before)


def test_the_bad_accumulation_step_is_told_without_its_share(stepper: Stepper) -> None:
    batches = [batch_of(1.0, num_masks=3), batch_of(math.inf, num_masks=1), batch_of(1.0)]
    with pytest.raises(NonFiniteError) as caught:
        stepper.run(batches, 0)
    assert caught.value.losses == {"loss_ce": math.inf, "loss_mask": pytest.approx(1.0)}
    assert caught.value.norm is None
