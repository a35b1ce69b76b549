"""Evaluation over scales and mirror images (TEST.AUG) and of ensembles, as `san eval` does it."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli.main import main
from san.d2.config.keys import load_config
from san.d2.run import run
from san.evaluation import ConfusionMatrix, metrics
from san.hub import SHAPES_CHECKPOINT
from san.inference.predictor import Predictor
from san.model.san import SANModel
from san.shapes.dataset import ShapesSizes, write_shapes
from tests.d2.conftest import as_arguments

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs/shapes/san_shapes.yaml")
NAME = "shapes_sem_seg_val_mixed"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder, ShapesSizes(num_train=4, num_val=3))
    return folder


@pytest.fixture
def evaluate(data: Path, tmp_path: Path) -> Callable[..., Any]:
    """`san eval` into a folder below tmp_path."""

    def call(out: str, weights: object, **changes: Any) -> dict[str, Any]:
        keys = {"DATASETS.ROOT": data, "DATASETS.TEST": [NAME], "MODEL.DEVICE": "cpu", "OUTPUT_DIR": tmp_path / out}
        keys |= {"TEST.NUM_PANELS": 0} | {key.replace("__", "."): value for key, value in changes.items()}
        assert main(["eval", "--config-file", CONFIG, "--weights", str(weights), *as_arguments(keys)]) == 0
        return json.loads((tmp_path / out / f"inference/{NAME}/metrics.json").read_text())

    return call


def by_hand(data: Path, predictor: Predictor) -> float:
    """The mIoU of a predictor."""
    annotations = sorted((data / "shapes/annotations/val_mixed").glob("*.png"))
    matrix = ConfusionMatrix(36, 255)
    for path in annotations:
        labels = predictor.predict(data / "shapes/images/val_mixed" / f"{path.stem}.jpg", "shapes_36").labels
        matrix.update(labels, np.asarray(Image.open(path)), file_name=str(path))
    return metrics(matrix)["mIoU"]


def test_images_side_by_side_give_the_same(evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the rounding of sums that threads share; without gradients in any thread."""
    threads, propose = [], SANModel.propose

    def noted(self: SANModel, batch: torch.Tensor) -> Any:
        threads.append(threading.current_thread().name.split("_")[0])
        assert not torch.is_grad_enabled()
        return propose(self, batch)

    monkeypatch.setattr(SANModel, "propose", noted)
    before, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            found.append(evaluate(f"{count}", SHAPES_CHECKPOINT)["mIoU"])
        finally:
            torch.set_num_threads(before)
    assert found[1] == pytest.approx(found[0], abs=0.05)
    assert threads == ["MainThread"] * 4 + ["san-network"] * 2


def test_both_figures_stand_side_by_side(evaluate: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """Plain figures equal those without TEST.AUG, averaged ones those of a predictor; also after a resume."""
    plain = evaluate("plain", SHAPES_CHECKPOINT)
    assert not (tmp_path / "plain/inference_TTA").exists()
    aug = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": [128, 144], "TEST.EXPECTED_RESULTS": "[]"}
    assert evaluate("both", SHAPES_CHECKPOINT, **aug) == plain
    found = json.loads((tmp_path / f"both/inference_TTA/{NAME}/metrics.json").read_text())
    shapes = Predictor.from_pretrained("shapes", short_sides=(128, 144), flip=True)
    assert found["mIoU"] == pytest.approx(by_hand(data, shapes), abs=1e-9)
    assert found["mIoU"] != plain["mIoU"]
    with (tmp_path / "both/inference_TTA/side_by_side.csv").open() as file:
        row = next(csv.DictReader(file))
    figures = f"{plain['mIoU']:.2f}", f"{found['mIoU']:.2f}", f"{found['mIoU'] - plain['mIoU']:+.2f}"
    assert tuple(row.values()) == (NAME, "mIoU", *figures)


def test_errors_are_analysed_of_the_plain_pass(evaluate: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    keys = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": [128], "TEST.EXPECTED_RESULTS": "[]", "TEST.ORACLE": True}
    evaluate("both", SHAPES_CHECKPOINT, **keys)
    assert (tmp_path / f"both/inference/{NAME}/oracle.json").exists()
    assert (tmp_path / f"both/inference_TTA/{NAME}/metrics.json").exists()
    assert not (tmp_path / f"both/inference_TTA/{NAME}/oracle.json").exists()
    path = tmp_path / "e.yaml"
    path.write_text("models: [{model: shapes}]")
    given = {"DATASETS.ROOT": data, "DATASETS.TEST": [NAME], "MODEL.DEVICE": "cpu", "OUTPUT_DIR": tmp_path / "out"}
    options = as_arguments(given | {"MODEL.WEIGHTS": path, "TEST.ORACLE": True})
    with pytest.raises(ValueError, match=r"TEST.ORACLE analyses the proposals of one model.*lists an ensemble"):
        run(load_config(CONFIG, options), eval_only=True)


def test_expected_results_may_name_either_figure(data: Path, tmp_path: Path) -> None:
    keys = {"DATASETS.ROOT": data, "DATASETS.TEST": [NAME], "MODEL.DEVICE": "cpu", "OUTPUT_DIR": tmp_path / "out"}
    keys |= {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": [128], "TEST.NUM_PANELS": 0, "DATASETS.TEST_SUBSET": 1}
    expected = f"[['sem_seg', 'mIoU', 50, 50], ['{NAME}_TTA', 'mIoU', 50, 50]]"
    options = as_arguments(keys | {"MODEL.WEIGHTS": SHAPES_CHECKPOINT, "TEST.EXPECTED_RESULTS": expected})
    assert set(run(load_config(CONFIG, options), eval_only=True)) == {NAME, f"{NAME}_TTA"}


def test_an_ensemble_is_evaluated(evaluate: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """A model with itself gives its figures; with another size, those of the mean."""
    plain = evaluate("plain", SHAPES_CHECKPOINT)
    path = tmp_path / "e.yaml"
    path.write_text(f"models: [{{model: shapes}}, {{model: {SHAPES_CHECKPOINT}, config: {CONFIG}, weight: 2}}]")
    assert evaluate("twice", path)["mIoU"] == pytest.approx(plain["mIoU"], abs=0.05)
    path.write_text("models: [{model: shapes}, {model: shapes, short_sides: [160], flip: true, weight: 0.5}]")
    members = [Predictor.from_pretrained("shapes"), Predictor.from_pretrained("shapes", short_sides=(160,), flip=True)]
    expected = by_hand(data, Predictor.ensemble(members, [1, 0.5]))
    assert evaluate("sizes", path)["mIoU"] == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_averaged_is_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    keys = {"DATASETS.ROOT": data, "DATASETS.TEST": [NAME], "MODEL.DEVICE": "cpu", "OUTPUT_DIR": tmp_path / "out"}
    path = tmp_path / "e.yaml"
    path.write_text("models: [{model: shapes}]")
    options = as_arguments(keys | {"MODEL.WEIGHTS": path})
    with pytest.raises(ValueError, match="lists an ensemble, which can be evaluated but not trained"):
        run(load_config(CONFIG, options))
    with pytest.raises(ValueError, match="write short_sides and flip into that file"):
        run(load_config(CONFIG, [*options, "TEST.AUG.ENABLED", "True"]), eval_only=True)
    with pytest.raises(ValueError, match=r"TEST.AUG.MIN_SIZES is \[\]; give one side or more"):
        load_config(CONFIG, ["TEST.AUG.MIN_SIZES", "[]"])
    path.write_text("models: [{model: gone.pth, config: tiny}]")
    with pytest.raises(FileNotFoundError, match=r"e.yaml, models\[0\] \('gone.pth'\): unknown model"):
        run(load_config(CONFIG, options), eval_only=True)


def test_nothing_is_switched_on_by_default() -> None:
    assert load_config(CONFIG, ["MODEL.DEVICE", "cpu"]).TEST.AUG.ENABLED is False


def test_training_ends_with_both_figures(data: Path, tmp_path: Path) -> None:
    """Evaluations on the way are plain."""
    keys = {"DATASETS.ROOT": data, "DATASETS.TEST": [NAME], "MODEL.DEVICE": "cpu", "OUTPUT_DIR": tmp_path}
    keys |= {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": [128], "TEST.NUM_PANELS": 0, "TEST.EVAL_PERIOD": 1}
    keys |= {"SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.AMP.ENABLED": False, "DATASETS.TEST_SUBSET": 1}
    assert set(run(load_config(CONFIG, as_arguments(keys)))) == {NAME, f"{NAME}_TTA"}
    assert (tmp_path / "inference_TTA/side_by_side.csv").is_file()
    assert "_TTA" not in (tmp_path / "metrics.json").read_text()
