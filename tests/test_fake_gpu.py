"""The paths for a GPU, on one that computes nothing: every tensor is where it must be, and the host seldom waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder, WallClock
from san.benchmark.inference import make_workload as make_inference
from san.benchmark.text import make_workload as make_text
from san.benchmark.training import make_workload as make_training
from san.benchmark.workload import Workload
from san.d2.api import build_model
from san.d2.config.keys import solver_config
from san.d2.data.datasets import register_datasets
from san.d2.evaluate.out_of_memory import _copy_on_cpu
from san.d2.solver import build_optimizer
from san.d2.train.iteration import StepConfig, Stepper
from san.d2.train.weight_average import WeightAverage
from san.evaluation.oracle import OracleCounts, Proposals
from san.inference.predictor import Predictor
from san.model.san import SANModel
from san.postprocess import Geometry
from tests.d2.conftest import make_cfg, options, own_voc, shared_voc
from tests.d2.test_review_cases import sample_of
from tests.fake_gpu import FakeGPU

__all__ = ["make_cfg", "options", "own_voc", "shared_voc"]

SIZES: dict[str, Any] = {"model": "tiny", "height": 96, "width": 128, "classes": 12}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)  # mixed precision by
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)  # the rules for CUDA
    monkeypatch.setattr("san.losses.criterion.seeded_generator", lambda *_: None)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    with FakeGPU() as gpu:
        try:
            torch.ones(1).to("cuda")
        except RuntimeError as error:  # older releases ask a real driver first
            pytest.skip(f"torch {torch.__version__} makes no tensors on a GPU that is not there: {str(error)[:60]}")
        gpu.waits.clear()
        monkeypatch.setattr("torch.cuda.Event", gpu.event)
        yield gpu


@pytest.fixture
def backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for backward passes: gradients are there from the start of an iteration."""

    def give_gradients(optimizer: torch.optim.Optimizer, set_to_none: bool) -> None:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", lambda _: None)
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", give_gradients)


def run(workload: Workload) -> None:
    workload.run(Recorder(WallClock()))


def test_it_distinguishes_devices_and_counts(gpu: FakeGPU) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert here.sum() == 3 and not gpu.waits
    with pytest.raises(RuntimeError, match="same device|two different devices"):
        here + there
    assert float(there.sum()) == 0
    there.cpu(), here.to("cuda"), here.copy_(there), there.copy_(here)
    there.to("cpu", non_blocking=True), here.to("cuda", non_blocking=True), here.copy_(there, non_blocking=True)
    assert gpu.waits == [
        "a number is read", "copied to the CPU", "copied to the GPU", "copied in place", "copied in place",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_waits_for_the_matching_only(gpu: FakeGPU, backward: None, dtype: str) -> None:
    workload = make_training(Case("training", batch=2, dtype=dtype, **SIZES), torch.device("cuda"), plain=False)
    for _ in range(2):
        gpu.waits.clear()
        run(workload)
        assert gpu.waits == ["copied to the CPU"]


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_waits_for_the_matching_only(
    gpu: FakeGPU,
    backward: None,
    make_cfg: Callable[..., Any],
    averaged: bool,
    steps: int,
    amp_dtype: torch.dtype | None,
) -> None:
    """With the registered model and its samples, once per accumulation step; an average of the weights adds none."""
    cfg = make_cfg()
    register_datasets(cfg.DATASETS.ROOT)
    model = build_model(cfg).train().to("cuda")
    solver = solver_config(cfg)
    optimizer, average = build_optimizer(model, solver), WeightAverage(model, 0.9) if averaged else None
    stepper = Stepper(model, optimizer, StepConfig(solver, "cuda", amp_dtype, 6, 0.1), average)
    batches = [[sample_of(seed, seed + step) for seed in range(3)] for step in range(steps)]
    outcome = stepper.run(batches, 0)
    for iteration in (1, 2):
        gpu.waits.clear()
        outcome = stepper.run(batches, iteration, outcome.read)
        assert stepper.scaler.is_enabled() == (amp_dtype is not None)
        assert gpu.waits == ["copied to the CPU"] * steps
    outcome.read()
    assert gpu.waits[steps:] == ["an event"], "read at once it is a wait"


def test_an_image_of_known_words_is_labelled_without_a_wait(gpu: FakeGPU) -> None:
    workload = make_inference(Case("inference", batch=2, **SIZES), torch.device("cuda"), plain=False)
    gpu.waits.clear()
    run(workload)
    assert gpu.waits == []


def test_an_image_is_evaluated_with_one_wait(gpu: FakeGPU) -> None:
    workload = make_inference(Case("evaluation", **SIZES), torch.device("cuda"), plain=False)
    gpu.waits.clear()
    run(workload)
    assert gpu.waits == ["copied to the CPU"]


def test_the_registered_model_waits_once_for_label_maps(gpu: FakeGPU, make_cfg: Callable[..., Any]) -> None:
    """To check that the outputs are finite, after all label maps are queued."""
    cfg = make_cfg()
    register_datasets(cfg.DATASETS.ROOT)
    model = build_model(cfg).eval().to("cuda")
    samples = [sample_of(seed, seed) for seed in range(2)]
    with torch.inference_mode():
        for _ in range(2):  # the first embeds the words
            gpu.waits.clear()
            results = model(samples)
    assert gpu.waits == ["copied to the CPU"]
    assert {result["sem_seg_labels"].device.type for result in results} == {"cuda"}


def test_an_error_analysis_mixes_no_devices(gpu: FakeGPU) -> None:
    geometry = Geometry((8, 8), (8, 6), (8, 6))
    found = Proposals(torch.zeros(3, 4, 4, device="cuda"), torch.zeros(3, 3, device="cuda"), geometry)
    counts = OracleCounts(2, 255)
    counts.update(found, np.repeat([[0], [1]], 4, axis=0).repeat(6, axis=1))
    assert counts.segments[:, 0].tolist() == [1, 1]


def test_a_copy_for_the_cpu_is_made_there_and_not_compiled(gpu: FakeGPU, make_cfg: Callable[..., Any]) -> None:
    """A GPU whose memory is full has no room for a copy on the way."""
    model = build_model(make_cfg()).eval().to("cuda")
    model.model.text_classifier.embed(["cat", "dog"])
    model.model.image_side.compile()
    cloned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Tensor, torch.nn.Parameter):
            patch.setattr(kind, "__deepcopy__", lambda self, memo: cloned.append(self.device.type) or self)
        copied = _copy_on_cpu(model)
    assert "cuda" not in cloned
    tensors, originals = ([*each.parameters(), *each.buffers()] for each in (copied, model))
    assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in originals]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {tensor.device.type for tensor in model.parameters()} == {"cuda"}
    assert model.model.image_side._compiled_call_impl is not None
    assert copied.model.image_side._compiled_call_impl is None


def test_prompts_are_embedded_there(gpu: FakeGPU) -> None:
    workload = make_text(Case("text", model="tiny", classes=12), torch.device("cuda"), plain=False)
    gpu.waits.clear()
    run(workload)
    assert gpu.waits == []


@pytest.fixture
def shapes_model() -> SANModel:
    return Predictor.from_pretrained("shapes").model


def test_a_predictor_waits_when_it_hands_out_the_result(
    shapes_model: SANModel, gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per array, and to check that they are finite; not to encode the picture or to find known words."""
    monkeypatch.setattr("san.inference.predictor.checked_device", torch.device)
    predictor = Predictor(shapes_model, short_side=128, device="cuda")
    predictor.set_text_cache(None)
    picture = np.zeros((48, 64, 3), np.uint8)
    predictor.predict(picture, "red star, plain ground")
    gpu.waits.clear()
    predictor.set_image(picture)
    assert gpu.waits == []
    result = predictor.segment("plain ground, red star")
    assert gpu.waits == ["copied to the CPU"] * 3
    assert result.labels.shape == (48, 64)
