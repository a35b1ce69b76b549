"""One iteration: how often the host reads from the device, and the effect of a loss that is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder, WallClock
from san.benchmark.measure import host_synchronisations
from san.benchmark.workload import make_workload
from san.d2.solver import SolverConfig, build_optimizer, clip_gradient
from san.d2.train.across_processes import distribute
from san.d2.train.iteration import NonFiniteError, PendingLosses, StepConfig, Stepper
from san.losses import LossConfig, MatchedLayer, Normalisers, SetCriterion, Target, Term
from tests.forks import fork_as_spawn

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
    """A loss that is linear in one weight, and one that is constant over the steps of an iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, batch: list[dict[str, Any]], norm: Normalisers) -> dict[str, Tensor]:
        value = self.layer(batch[0]["x"]).sum().float() / norm.images
        return {"loss_ce": value, "loss_mask": torch.ones(()) * batch[0]["num_masks"] / norm.masks}


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

    def made(*args: Any) -> PendingLosses:
        reads.found.append("losses")
        return PendingLosses(*args)

    monkeypatch.setattr("san.d2.train.iteration.PendingLosses", made)
    with reads:
        for _ in range(3):
            workload.run(Recorder(WallClock()))
    assert reads.found == ["cpu", "losses", "cpu", "tolist", "losses", "cpu", "tolist", "losses"]


@pytest.mark.gpu
def test_a_whole_step_waits_once_on_a_gpu() -> None:
    case = Case("training", model="tiny", height=96, width=96, classes=12, batch=2)
    workload = make_workload(case, torch.device("cuda"), plain=False)
    workload.run(Recorder(WallClock()))
    assert host_synchronisations(workload, torch.device("cuda")) == 1


def test_a_conditional_update_is_the_plain_one() -> None:
    """A fused optimiser with found_inf 0 gives the same bits as one without."""
    recorded, plain = Line(), Line()
    stepper = stepper_of(recorded)
    optimizer = build_optimizer(plain, stepper.config.solver)
    for iteration in range(3):
        stepper.run([batch_of(2.0 + iteration)], iteration).read()
        optimizer.zero_grad()
        plain(batch_of(2.0 + iteration), Normalisers(1, 1, 1))["loss_ce"].backward()
        clip_gradient(optimizer, stepper.config.solver)
        optimizer.step()
        assert torch.equal(recorded.layer.weight, plain.layer.weight)


def test_the_earlier_outcome_can_be_read_before_anything_changes() -> None:
    """An error there leaves the weights of the earlier iterations."""
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


def test_the_error_has_the_losses_of_the_bad_accumulation_step(stepper: Stepper) -> None:
    batches = [batch_of(1.0, num_masks=3), batch_of(math.inf, num_masks=1), batch_of(1.0)]
    with pytest.raises(NonFiniteError) as caught:
        stepper.run(batches, 0).read()
    assert caught.value.losses == {"loss_ce": math.inf, "loss_mask": pytest.approx(1 / 5)}
    assert caught.value.norm is None


class EdgeCriterion(SetCriterion):
    """Adds a loss of the masks, which is divided by `per`."""

    def __init__(self, per: Any) -> None:
        super().__init__(LossConfig(num_points=50))
        self.per = per

    def terms(self, layer: MatchedLayer) -> dict[str, Term]:
        matched = layer.mask_logits[layer.pairs.images, layer.pairs.queries]
        return super().terms(layer) | {"loss_edges": Term(matched.square().mean((1, 2)).sum(), per=self.per)}


class Masks(nn.Module):
    """Ten learnt queries for every image, and targets of the samples."""

    def __init__(self, per: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.classes = nn.Parameter(torch.randn(10, 6, generator=generator))
        self.masks = nn.Parameter(torch.randn(10, 8, 8, generator=generator))
        self.criterion = EdgeCriterion(per)

    def forward(self, batch: list[dict[str, Any]], norm: Normalisers | None = None) -> dict[str, Tensor]:
        layer = {"pred_logits": self.classes.expand(len(batch), -1, -1)}
        layer["pred_masks"] = self.masks.expand(len(batch), -1, -1, -1)
        losses: dict[str, Tensor] = self.criterion(
            layer | {"aux_outputs": [layer]},
            [sample["target"] for sample in batch],
            seeds=[sample["seed"] for sample in batch],
            norm=norm,
        )
        return losses


def sample_with(num_masks: int, seed: int) -> dict[str, Any]:
    masks = torch.rand(num_masks, 8, 8, generator=torch.Generator().manual_seed(seed)) > 0.5
    return {"target": Target(torch.arange(num_masks), masks), "num_masks": num_masks, "seed": seed}


@pytest.mark.parametrize("per", ["masks", "images", "class_weight"])
def test_accumulation_gives_a_new_loss_its_value(per: str) -> None:
    """Whatever it is divided by; the steps have no, 1 and 8 masks."""
    samples = [sample_with(num_masks, seed) for seed, num_masks in enumerate((0, 0, 1, 0, 5, 3))]
    found = []
    for batches in ([samples], [samples[:2], samples[2:4], samples[4:]]):
        model = Masks(per)
        losses, norm = stepper_of(model).run(batches, 0).read()
        found.append((losses, norm, *(parameter.detach() for parameter in model.parameters())))
    assert {"loss_edges", "loss_edges_0"} < found[0][0].keys()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_a_loss_divided_by_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="divided by 'pixels', which is not counted; choose one of masks,"):
        Masks("pixels")([sample_with(1, 0)])


class WithoutNorm(Line):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss_ce": self.layer(batch[0]["x"]).sum()}


class PassesOn(Line):
    def forward(self, *args: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(*args, **options)


def test_a_model_that_passes_everything_on_gets_the_counts() -> None:
    losses, _ = stepper_of(PassesOn()).run([batch_of(2.0)] * 2, 0).read()
    assert losses == {"loss_ce": pytest.approx(3.0), "loss_mask": pytest.approx(1.0)}


def test_a_model_that_takes_no_counts_serves_for_a_single_step() -> None:
    stepper = stepper_of(WithoutNorm())
    assert stepper.run([batch_of(2.0)], 0).read()[0] == {"loss_ce": pytest.approx(3.0)}
    with pytest.raises(ValueError, match=r"STEPS is 2, but WithoutNorm.forward has no parameter norm.* to 1"):
        stepper.run([batch_of(2.0)] * 2, 0)


class Unused(Line):
    """A model that trains a parameter no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))


def test_a_parameter_without_a_gradient_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stepper = stepper_of(Unused())
    for iteration in range(2):
        stepper.run([batch_of(1.0)], iteration).read()
    (record,) = [each for each in caplog.records if "no gradient" in each.getMessage()]
    assert record.getMessage() == "1 trained parameters have no gradient (idle); they stay as they are"


def train_unused(rank: int, folder: str) -> None:
    """One of two processes, with the switch and without; writes the errors."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    messages = []
    try:
        for find_unused in (True, False):
            model, solver = distribute(Unused(), find_unused=find_unused), SolverConfig(base_lr=0.1)
            config = StepConfig(solver, "cpu", None, 4, 0.1, find_unused)
            stepper = Stepper(model, build_optimizer(model, solver), config)
            try:
                for iteration in range(2):
                    stepper.run([batch_of(1.0 + rank)], iteration).read()
                messages.append("")
            except ValueError as error:
                messages.append(str(error))
        (Path(folder) / f"{rank}.json").write_text(json.dumps(messages))
        dist.barrier()  # no process ends while another still communicates with it
    finally:
        dist.destroy_process_group()


def test_two_processes_need_a_switch_for_unused_parameters(tmp_path: Path) -> None:
    fork_as_spawn(train_unused, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        allowed, refused = json.loads((tmp_path / f"{rank}.json").read_text())
        assert allowed == ""
        assert refused.startswith("1 trained parameters have no gradient (idle); use them in every loss, freeze them")
        assert "set SOLVER.FIND_UNUSED_PARAMETERS to True" in refused
