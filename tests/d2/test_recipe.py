"""SAN in Detectron2's own loop: the script of docs/detectron2.md, the recipe's parts, and Detectron2's keys."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from san.cli.main import main
from san.d2 import SANCheckpointer, SANRecipe, add_san_config, prepare_datasets, san_cfg
from san.d2.api import BACKEND, META_ARCH_REGISTRY, build_model, get_cfg
from san.d2.config import yaml_file as config_file
from san.d2.config.foreign_keys import INSTEAD, foreign_name
from san.d2.config.keys import load_config, solver_config
from san.d2.config.schema import KEYS
from san.d2.config.yaml_file import leaf_keys, warn_without_effect
from san.d2.run import run
from san.d2.solver import SolverConfig
from san.hub import SHAPES_CHECKPOINT
from san.shapes.dataset import ShapesSizes, write_shapes
from tests.d2.conftest import as_arguments

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs/detectron2.md"
SHAPES = str(REPO / "configs/shapes/san_shapes_quick.yaml")


def real(test: Callable[..., None]) -> Callable[..., None]:
    """Marks what needs Detectron2 itself, as the engine of this process."""
    skip = pytest.mark.skipif(BACKEND != "detectron2", reason="Detectron2 is not the engine")
    return pytest.mark.detectron2(skip(test))


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def short(tmp_path: Path) -> dict[str, Any]:
    """Options of a short run on a tiny shapes set."""
    write_shapes(tmp_path / "data", ShapesSizes(num_train=6, num_val=2))
    return {
        "DATASETS.ROOT": tmp_path / "data",
        "MODEL.DEVICE": "cpu",
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.TEST": ["shapes_sem_seg_val_novel"],
        "TEST.NUM_PANELS": 0,
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return state


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the page's script with a command line, in this process."""
    path = tmp_path / "train_san.py"
    path.write_text(snippets()[0])

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", [str(path), "--config-file", SHAPES, *arguments])
        runpy.run_path(str(path), run_name="__main__")

    return call


def test_the_script_is_short() -> None:
    assert snippets()[0].count("\n") <= 40


def test_the_class_of_the_page_is_a_model() -> None:
    scope: dict[str, Any] = {}
    exec(snippets()[1], scope)
    META_ARCH_REGISTRY._obj_map.pop("MySAN")
    model = scope["MySAN"](load_config(SHAPES, ["MODEL.DEVICE", "cpu"]))
    model.load_state_dict(build_model(load_config(SHAPES, ["MODEL.DEVICE", "cpu"])).state_dict())


@real
def test_the_script_does_what_san_train_does(
    script: Callable[..., None], short: dict[str, Any], tmp_path: Path
) -> None:
    """The same weights and figures, and either resumes the other's checkpoint."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run(load_config(SHAPES, as_arguments(short | {"OUTPUT_DIR": ours})))
    script(*as_arguments(short | {"OUTPUT_DIR": theirs}))
    whole = weights(ours)
    torch.testing.assert_close(weights(theirs), whole, rtol=0, atol=0)
    report = "inference/shapes_sem_seg_val_novel/metrics.json"
    figures = (ours / report).read_text()
    assert (theirs / report).read_text() == figures

    record = str(theirs / "config.yaml")
    assert main(["eval", "--config-file", record, "--weights", str(theirs), "OUTPUT_DIR", str(tmp_path / "eval")]) == 0
    assert (tmp_path / "eval" / report).read_text() == figures
    script("--eval-only", *as_arguments(short | {"OUTPUT_DIR": tmp_path / "again", "MODEL.WEIGHTS": theirs}))
    assert (tmp_path / "again" / report).read_text() == figures
    image, out = str(next((tmp_path / "data/shapes/images").rglob("*.jpg"))), str(tmp_path / "predicted")
    assert main(["predict", image, "--vocab", "red square", "--model", str(theirs), "--out", out]) == 0

    for folder in (ours, theirs):
        for path in folder.glob("model_final.*"):
            path.unlink()
        (folder / "last_checkpoint").write_text("model_0000001.pth")
    script("--resume", *as_arguments(short | {"OUTPUT_DIR": ours, "DATASETS.TEST": []}))
    assert main(["train", "--config-file", record, "--resume", "DATASETS.TEST", "[]"]) == 0
    for folder in (ours, theirs):
        torch.testing.assert_close(weights(folder), whole, rtol=0, atol=0)


@real
def test_evaluators_of_detectron2_read_our_predictions(short: dict[str, Any], tmp_path: Path) -> None:
    """Also with Detectron2's own loader, which knows only the vocabulary of the record."""
    from detectron2.config import get_cfg
    from detectron2.data import build_detection_test_loader
    from detectron2.evaluation import SemSegEvaluator, inference_on_dataset

    cfg = get_cfg()
    add_san_config(cfg)
    cfg.merge_from_file(SHAPES)
    cfg.merge_from_list(as_arguments(short | {"OUTPUT_DIR": tmp_path}))
    prepare_datasets(cfg)
    model, name = build_model(cfg), "shapes_sem_seg_val_novel"
    SANCheckpointer(model).load(str(SHAPES_CHECKPOINT))
    own = inference_on_dataset(model, SANRecipe.build_test_loader(cfg, name), SANRecipe.build_evaluator(cfg, name))[
        "sem_seg"
    ]
    for loader in (SANRecipe.build_test_loader(cfg, name), build_detection_test_loader(cfg, name, num_workers=0)):
        found = inference_on_dataset(model, loader, SemSegEvaluator(name))["sem_seg"]
        for metric in ("pACC", "fwIoU"):
            assert found[metric] == pytest.approx(own[metric], abs=1e-9)
    assert own["pACC"] > 50


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_optimizer_clips_the_whole_gradient(make_cfg: Callable[..., Any], scale: float) -> None:
    """Before each step, and after a GradScaler has unscaled it."""
    layer = nn.Linear(3, 4)
    optimizer = SANRecipe.build_optimizer(make_cfg(), layer)
    assert isinstance(optimizer, torch.optim.AdamW)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(7 * layer(torch.ones(2, 3)).sum()).backward()
    scaler.step(optimizer)
    norm = torch.stack([parameter.grad.norm() for parameter in layer.parameters()]).norm()
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_what_the_loop_of_detectron2_cannot_do(make_cfg: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATION_STEPS is 2, but Detectron2's trainer"):
        SANRecipe.build_optimizer(make_cfg(SOLVER__ACCUMULATION_STEPS=2), nn.Linear(1, 1))
    SANRecipe.build_optimizer(make_cfg(SOLVER__CHECKPOINT_KEEP=2), nn.Linear(1, 1))
    assert "does not read SOLVER.CHECKPOINT_KEEP, SOLVER.LOG_PERIOD, which" in caplog.text


@real
def test_every_key_of_detectron2_is_read_or_known() -> None:
    unread = set(leaf_keys(get_cfg())) - set(KEYS)
    assert {key for key in unread if foreign_name(key) is None} == set()
    assert {foreign_name(key) for key in unread} == set(INSTEAD)
    known = [*leaf_keys(san_cfg()), "MODEL.HEAD, MODEL.LOSS, or the data set's own classes and ignore label"]
    assert {instead for instead in INSTEAD.values() if instead} <= set(known)


@real
def test_keys_without_effect_are_warned_about_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    cfg = get_cfg()
    add_san_config(cfg)
    config_file._warn_once.cache_clear()
    warn_without_effect(cfg)
    assert not caplog.records
    cfg.SOLVER.STEPS, cfg.MODEL.MASK_ON, cfg.INPUT.CROP.ENABLED = (5,), True, True
    for _ in range(2):
        warn_without_effect(cfg, "SOLVER", "MODEL")
    (record,) = caplog.records
    assert record.getMessage().endswith("are set: SOLVER.STEPS (SOLVER.LR_SCHEDULER_NAME has), MODEL.MASK_ON")
    (tmp_path / "config.yaml").write_text(cfg.dump())  # as default_setup does
    load_config(str(tmp_path / "config.yaml"), ["MODEL.DEVICE", "cpu"])
    assert "INPUT.CROP.ENABLED (INPUT.CROP.SIZE has)" in caplog.records[-1].getMessage()


@real
def test_defaults_of_detectron2_switch_no_warm_up_on() -> None:
    """Its own are a thousand iterations of warm-up before a schedule of steps."""
    cfg = get_cfg()
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.LR_SCHEDULER_NAME) == (1000, "WarmupMultiStepLR")
    add_san_config(cfg)
    assert solver_config(cfg) == SolverConfig()
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 0


def test_schedules_of_older_records_have_no_effect(tmp_path: Path) -> None:
    """They are Detectron2's defaults, which SAN did not read then; a record of now has SAN's name."""
    path, solver = tmp_path / "config.yaml", "WARMUP_ITERS: 1000, WARMUP_FACTOR: 0.5, MAX_ITER: 9"
    path.write_text(f"GLOBAL: {{HACK: 1.0}}\nSOLVER: {{LR_SCHEDULER_NAME: WarmupMultiStepLR, {solver}}}\n")
    assert solver_config(load_config(str(path))) == SolverConfig(max_iter=9)
    path.write_text(f"GLOBAL: {{HACK: 1.0}}\nSOLVER: {{LR_SCHEDULER_NAME: WarmupPolyLR, {solver}}}\n")
    assert solver_config(load_config(str(path))) == SolverConfig(max_iter=9, warmup_iters=1000, warmup_factor=0.5)
    path.write_text(f"SOLVER: {{LR_SCHEDULER_NAME: WarmupMultiStepLR, {solver}}}\n")
    with pytest.raises(ValueError, match="LR_SCHEDULER_NAME is 'WarmupMultiStepLR'; .*WarmupPolyLR, WarmupCosineLR"):
        load_config(str(path))


def test_records_of_detectron2_are_read(tmp_path: Path) -> None:
    """Also on the stand-in; such a key in a user's file is refused, and so is a misspelt key in either."""
    path = tmp_path / "config.yaml"
    path.write_text("GLOBAL: {HACK: 1.0}\nMODEL: {RPN: {NMS_THRESH: 0.7}}\nSOLVER: {STEPS: [3], MAX_ITER: 9}\n")
    assert load_config(str(path), ["MODEL.DEVICE", "cpu"]).SOLVER.MAX_ITER == 9
    path.write_text("SOLVER: {STEPS: [3]}\n")
    with pytest.raises(ValueError, match=r"SOLVER.STEPS in .* Detectron2's and has no effect on SAN; set SOLVER"):
        load_config(str(path))
    with pytest.raises(ValueError, match=r"MODEL.RPN.X in the command line: it is Detectron2's .*; remove it"):
        load_config("", ["MODEL.RPN.X", "1"])
    path.write_text("GLOBAL: {HACK: 1.0}\nSOLVER: {MAX_ITR: 9}\n")
    with pytest.raises(ValueError, match="unknown key SOLVER.MAX_ITR"):
        load_config(str(path))
