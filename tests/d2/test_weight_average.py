"""SOLVER.EMA: the average in closed form, what skips it, what it costs, exact resuming, and which weights are used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from san.checkpoint import load_checkpoint_file
from san.cli.main import main
from san.d2.checkpoints.checkpointer import SANCheckpointer, write_checkpoint
from san.d2.run import run
from san.d2.train.iteration import NonFiniteError, Stepper
from san.d2.train.weight_average import WeightAverage
from tests.d2.conftest import as_arguments
from tests.d2.test_iteration import FloatReads, Line, batch_of, stepper_of

MakeCfg = Callable[..., Any]
ON = {"SOLVER__EMA__ENABLED": True, "SOLVER__EMA__DECAY": 0.6, "SOLVER__CHECKPOINT_PERIOD": 3}


def average_of(weights: list[float], decay: float, start: float) -> list[float]:
    """The averages after each update."""
    found, value = [], start
    for number, weight in enumerate(weights, start=1):
        kept = min(decay, (1 + number) / (10 + number))
        value = kept * value + (1 - kept) * weight
        found.append(value)
    return found


@pytest.mark.parametrize("decay", [0.3, 0.999, 1.0, 0.0])
def test_the_average_in_closed_form(decay: float) -> None:
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    nn.init.constant_(layer.weight, 5.0)
    average = WeightAverage(layer, decay)
    weights, found = [1.0, -2.0, 4.0, 0.5, 3.0], []
    for weight in weights:
        nn.init.constant_(layer.weight, weight)
        average.update(torch.tensor(False))
        found.append(average.state_dict()["model"]["weight"].item())
    assert found == pytest.approx(average_of(weights, decay, 5.0), rel=1e-6)
    assert average.state_dict()["model"].keys() == {"weight"}, "only what is trained"
    with average.applied():
        assert layer.weight.item() == found[-1]
    assert layer.weight.item() == 3.0 and average.state_dict()["model"]["weight"].item() == found[-1]


def averaging(amp_dtype: torch.dtype | None = None) -> Stepper:
    stepper = stepper_of(Line(), amp_dtype)
    stepper.average = WeightAverage(stepper.model, 0.5)
    return stepper


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_skipped_update_does_not_change_the_average(amp_dtype: torch.dtype | None, steps: int) -> None:
    """Three iterations, of which the second has a bad loss, are the first and the third; the host reads nothing."""
    first, second = averaging(amp_dtype), averaging(amp_dtype)
    outcomes = []
    with FloatReads() as reads:
        for value in (2.0, math.nan, 1.0):
            outcomes.append(first.run([batch_of(value)] * steps, 0))
        assert reads.found == []
    with pytest.raises(NonFiniteError):
        outcomes[1].read()
    for value in (2.0, 1.0):
        second.run([batch_of(value)] * steps, 0)
    assert first.average and second.average
    ours, theirs = first.average.state_dict(), second.average.state_dict()
    assert torch.equal(ours["model"]["layer.weight"], theirs["model"]["layer.weight"])
    assert ours["updates"] == theirs["updates"] == 2
    assert not torch.equal(ours["model"]["layer.weight"], first.model.layer.weight)


def test_an_overflow_of_scaled_gradients_skips_it_too() -> None:
    stepper = averaging(torch.float16)
    stepper.scaler = torch.amp.GradScaler("cpu", 2.0**60)
    stepper.run([batch_of(2.0)], 0).read()
    assert stepper.average and stepper.average.state_dict()["updates"] == 0
    assert torch.equal(stepper.average.state_dict()["model"]["layer.weight"], torch.ones(1, 2))


def test_an_optimiser_that_is_not_fused_has_an_average() -> None:
    stepper = averaging()
    stepper.optimizer = torch.optim.SGD(stepper.model.parameters(), lr=0.1)
    stepper.run([batch_of(2.0)], 0)
    stepper.run([batch_of(math.nan)], 0)
    assert stepper.average and stepper.average.updates == 1


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.fixture(scope="module")
def averaged(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an average, with checkpoints and evaluations every 3 of 6 iterations."""
    from san.d2.config.keys import load_config
    from tests.d2.conftest import TINY

    folder = tmp_path_factory.mktemp("averaged")
    options = TINY | {key.replace("__", "."): value for key, value in ON.items()}
    options |= {"TEST.EVAL_PERIOD": 3, "DATASETS.TEST": ["voc_sem_seg_val"], "DATASETS.ROOT": str(shared_voc)}
    run(load_config("", as_arguments(options | {"OUTPUT_DIR": str(folder)})))
    return folder


def losses(folder: Path) -> dict[int, float]:
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


def test_training_itself_stays_as_it_is(averaged: Path, reference: Path) -> None:
    with_average, without = content_of(averaged / "model_final.pth"), content_of(reference / "model_final.pth")
    assert losses(averaged) == losses(reference)
    assert all(torch.equal(with_average["model"][name], value) for name, value in without["model"].items())
    assert "ema" not in without and with_average["ema"]["updates"] == 6
    initial = start(reference)
    changed = {name for name, value in without["model"].items() if not torch.equal(value, initial[name])}
    assert with_average["ema"]["model"].keys() == changed


def start(reference: Path) -> dict[str, torch.Tensor]:
    return content_of(reference / "model_0000002.pth")["model"]


def resumed(averaged: Path, folder: Path) -> Path:
    """A folder in which the run can go on from its third iteration."""
    folder.mkdir(exist_ok=True)
    for name in ("model_0000002.pth", "run.json"):
        shutil.copy(averaged / name, folder / name)
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    return folder


def test_an_interrupted_run_resumes_to_the_same_bits(averaged: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(**ON)
    folder = resumed(averaged, Path(cfg.OUTPUT_DIR))
    run(cfg, resume=True)
    ours, theirs = content_of(folder / "model_final.pth"), content_of(averaged / "model_final.pth")
    assert losses(folder) == {number: losses(averaged)[number] for number in (3, 4, 5)}
    for part in (lambda content: content["model"], lambda content: content["ema"]["model"]):
        assert part(ours).keys() == part(theirs).keys()
        assert all(torch.equal(part(ours)[name], value) for name, value in part(theirs).items())
    assert ours["ema"]["updates"] == theirs["ema"]["updates"] == 6


def test_two_processes_resume_it(averaged: Path, options: dict[str, Any]) -> None:
    folder = resumed(averaged, Path(options["OUTPUT_DIR"]))
    changes = as_arguments(options | {key.replace("__", "."): value for key, value in ON.items()})
    assert main(["train", "--resume", "--num-gpus", "2", "--dist-url", "auto", *changes]) == 0
    ours, theirs = content_of(folder / "model_final.pth")["ema"], content_of(averaged / "model_final.pth")["ema"]
    assert ours["updates"] == 6
    # AdamW turns a rounding of a gradient near 0 into a whole step of that one value
    close = [torch.isclose(ours["model"][name], each, rtol=1e-3, atol=1e-4) for name, each in theirs["model"].items()]
    assert torch.cat([each.flatten() for each in close]).float().mean() > 0.99


def test_evaluation_and_prediction_use_the_average(averaged: Path, make_cfg: MakeCfg, tmp_path: Path) -> None:
    """During training, afterwards, and converted; the weights themselves are there too."""
    from san.d2.api import build_model

    final = averaged / "model_final.pth"
    content, merged = content_of(final), load_checkpoint_file(final)
    assert "ema" not in merged
    for name, value in content["model"].items():
        assert torch.equal(merged["model"][name], content["ema"]["model"].get(name, value))
    cfg = make_cfg(DATASETS__TEST=["voc_sem_seg_val"], MODEL__WEIGHTS=str(final))
    stored = json.loads((averaged / "inference/voc_sem_seg_val/metrics.json").read_text())
    assert run(cfg, eval_only=True)["voc_sem_seg_val"]["pACC"] == stored["pACC"]
    model = build_model(cfg)
    for options, wanted in (([], merged["model"]), (["--no-ema"], content["model"])):
        out = tmp_path / f"own{len(options)}.pth"
        config = ["--config-file", str(averaged / "config.yaml")]
        assert main(["convert", str(final), *config, "--to", "own", "--out", str(out), *options]) == 0
        SANCheckpointer(model).load(str(out))
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_an_average_can_start_in_the_middle_and_end(
    averaged: Path, reference: Path, make_cfg: MakeCfg, tmp_path: Path
) -> None:
    """It starts from the weights there; a run without one resumes from the weights, not from the average."""
    cfg = make_cfg(**ON)
    folder = resumed(reference, Path(cfg.OUTPUT_DIR))
    run(cfg, resume=True)
    assert content_of(folder / "model_final.pth")["ema"]["updates"] == 3
    cfg = make_cfg(OUTPUT_DIR=str(tmp_path / "without"))
    folder = resumed(averaged, Path(cfg.OUTPUT_DIR))
    run(cfg, resume=True)
    assert losses(folder) == {number: losses(reference)[number] for number in (3, 4, 5)}
    assert "ema" not in content_of(folder / "model_final.pth")


ODD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a number": (lambda ema: 5, "averaged weights .ema. are 5"),
    "nothing": (lambda ema: {}, "averaged weights .ema. are {}"),
    "no updates": (lambda ema: {"model": ema["model"]}, "instead of model and updates"),
    "negative": (lambda ema: ema | {"updates": torch.tensor(-1.0)}, "of tensor.* updates"),
    "one lacks": (lambda ema: ema | {"model": dict([*ema["model"].items()][1:])}, "is missing"),
    "another": (lambda ema: ema | {"model": ema["model"] | {"x": torch.ones(1)}}, "'x' is unknown"),
    "NaN": (lambda ema: ema | {"model": {k: v * math.nan for k, v in ema["model"].items()}}, "NaN or infinite"),
    "shape": (lambda ema: ema | {"model": {k: v[None] for k, v in ema["model"].items()}}, "torch.float32, "),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_averages_are_refused_and_nothing_is_lost(averaged: Path, make_cfg: MakeCfg, odd: str) -> None:
    change, message = ODD[odd]
    cfg = make_cfg(**ON)
    folder = resumed(averaged, Path(cfg.OUTPUT_DIR))
    path = folder / "model_0000002.pth"
    content = content_of(path)
    write_checkpoint(content | {"ema": change(content["ema"])}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(cfg, resume=True)
    assert path.read_bytes() == before
    if odd in ("a number", "another", "shape"):
        with pytest.raises(ValueError, match=r"model_0000002.pth' has averaged weights .'ema'.*--no-ema"):
            load_checkpoint_file(path)
        assert load_checkpoint_file(path, averaged=False)["model"].keys() == content["model"].keys()
