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
from san.benchmark.measure import host_synchronisations
from san.benchmark.workload import make_workload
from san.d2.outcome import NonFiniteError, Outcome
from san.d2.solver import SolverConfig, build_optimizer, clip_gradient
from san.d2.step import StepConfig, Stepper
from san.losses.criterion import NUM_IMAGES, NUM_MASKS, SetCriterion

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
def test_an_iteration_reads_nothing_before_its_outcome_is_asked_for(amp_dtype: torch.dtype | None, steps: int) -> None:
    stepper = stepper_of(Line(), amp_dtype)
    with FloatReads() as reads:
        outcome = stepper.run([batch_of(2.0)] * steps, 0)
        assert reads.found == []
        losses, norm = outcome.read()
    assert reads.found == ["tolist"]
    assert losses == {"loss_ce": pytest.approx(3.0), "loss_mask": pytest.approx(1.0)}
    assert norm == pytest.approx(math.sqrt(5), rel=1e-6 if amp_dtype is None else 1e-2)


def test_a_whole_step_waits_in_the_matching_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own outcome is left on the device, and read after the next iteration's matching, which came after it."""
    case = Case("training", model="tiny", height=96, width=96, classes=12, batch=2)
    workload = make_workload(case, torch.device("cpu"), plain=False)
    reads = FloatReads()

    def made(*args: Any) -> Outcome:
        reads.found.append("outcome")
        return Outcome(*args)

    monkeypatch.setattr("san.d2.step.Outcome", made)
    with reads:
        for _ in range(3):
            workload.run(Recorder(WallClock()))
    assert reads.found == ["cpu", "outcome", "cpu", "tolist", "outcome", "cpu", "tolist", "outcome"]


@pytest.mark.gpu
def test_a_whole_step_waits_once_on_a_gpu() -> None:
    case = Case("training", model="tiny", height=96, width=96, classes=12, batch=2)
    workload = make_workload(case, torch.device("cuda"), plain=False)
    workload.run(Recorder(WallClock()))
    assert host_synchronisations(workload, torch.device("cuda")) == 1


def test_a_conditional_update_is_the_plain_one() -> None:
    """A fused optimiser that is told to go on gives the bits of one that is told nothing."""
    told, plain = Line(), Line()
    stepper = stepper_of(told)
    optimizer = build_optimizer(plain, stepper.config.solver)
    for iteration in range(3):
        stepper.run([batch_of(2.0 + iteration)], iteration).read()
        optimizer.zero_grad()
        plain(batch_of(2.0 + iteration))["loss_ce"].backward()
        clip_gradient(optimizer, stepper.config.solver)
        optimizer.step()
        assert torch.equal(told.layer.weight, plain.layer.weight)


def test_the_earlier_outcome_can_be_heard_before_anything_changes() -> None:
    """What stops a run there leaves the weights of the earlier iterations."""
    stepper = stepper_of(Line())
    weight = stepper.model.layer.weight
    outcome = stepper.run([batch_of(math.inf)], 0)
    before = weight.detach().clone()

    def settle() -> None:
        assert torch.equal(weight, before)
        outcome.read()

    with pytest.raises(NonFiniteError, match="iteration 0: a loss is not finite"):
        stepper.run([batch_of(1.0)], 1, settle)
    assert torch.equal(weight, before)


@pytest.fixture(params=[None, torch.float16])
def stepper(request: pytest.FixtureRequest) -> Stepper:
    return stepper_of(Line(), request.param)


def test_a_bad_loss_leaves_weights_and_moments_as_they_were(stepper: Stepper) -> None:
    """Three iterations, of which the second has a bad loss, are the first and the third."""
    weight = stepper.model.layer.weight
    other = stepper_of(Line(), stepper.config.amp_dtype)
    for each in (stepper, other):
        each.run([batch_of(2.0)], 4).read()
    before = weight.detach().clone()
    outcome = stepper.run([batch_of(math.nan)], 5)
    assert torch.equal(weight, before)
    with pytest.raises(NonFiniteError, match=r"iteration 5: a loss is not finite \(loss_ce is nan, loss_mask is 1\.0"):
        outcome.read()
    assert stepper.scaler.get_scale() == other.scaler.get_scale(), "no gradient has overflowed"
    for each in (stepper, other):
        each.run([batch_of(1.0)], 6).read()
    assert torch.equal(weight, other.model.layer.weight) and not torch.equal(weight, before)


def test_a_bad_loss_without_a_gradient_leaves_the_update_out(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the gradient alone would not show it."""
    weight = stepper.model.layer.weight
    before = weight.detach().clone()
    monkeypatch.setattr(torch, "ones", lambda *_: torch.tensor(math.inf))
    outcome = stepper.run([batch_of(1.0)], 0)
    assert torch.equal(weight, before)
    with pytest.raises(NonFiniteError, match="loss_mask is inf"):
        outcome.read()


def test_the_bad_accumulation_step_is_told_without_its_share(stepper: Stepper) -> None:
    batches = [batch_of(1.0, num_masks=3), batch_of(math.inf, num_masks=1), batch_of(1.0)]
    with pytest.raises(NonFiniteError) as caught:
        stepper.run(batches, 0).read()
    assert caught.value.losses == {"loss_ce": math.inf, "loss_mask": pytest.approx(1.0)}
    assert caught.value.norm is None


class Terms(nn.Module):
    """Losses as a criterion divides them: by the class weight, the masks and, of a name of one's own, by the images."""

    def __init__(self, name: str, divided_by: dict[str, str]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        self.name = name
        self.criterion = SetCriterion()
        self.criterion.divided_by = {**SetCriterion.divided_by, **divided_by}

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        values = torch.stack([self.layer(sample["x"]).sum() for sample in batch])
        by = self.criterion.divided_by.get(self.name, NUM_IMAGES)
        divisor = len(batch) if by == NUM_IMAGES else sum(sample["num_masks"] for sample in batch)
        return {self.name: values.sum() / divisor, "loss_mask": torch.ones(())}


@pytest.mark.parametrize("divisor", [NUM_IMAGES, NUM_MASKS])
@pytest.mark.parametrize("name", ["edges", "loss_ce_edges", "loss_mask_edges"])
def test_accumulation_gives_a_term_its_value_whatever_its_name(name: str, divisor: str) -> None:
    """A mean over the images as it is, and one over the masks that says so; the steps have 1 and 5 masks an image."""
    batches = [batch_of(1.0) + batch_of(2.0), batch_of(5.0, 5) + batch_of(9.0, 5)]
    outcomes = []
    divided_by = {} if divisor == NUM_IMAGES else {name: divisor}
    for given in ([batches[0] + batches[1]], batches):
        model = Terms(name, divided_by)
        losses, norm = stepper_of(model).run(given, 0).read()
        outcomes.append((losses[name], norm, model.layer.weight.detach()))
    torch.testing.assert_close(outcomes[0], outcomes[1])
