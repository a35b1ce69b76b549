"""Each of the six benchmarks from its publisher's download to its mIoU: prepare, check, register, load, evaluate.

The downloads are fake but of the true raw formats (tests/data/raw_trees.py): colour-mapped and plain PNGs, RLE JSON,
.mat of uint16, pickle and RGB-coded PNGs; grey, CMYK and EXIF-rotated JPEGs, odd sizes, ignored values, ids outside the
table.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from san.cli.main import main
from san.d2.data.datasets import load_records, metadata_of, register_datasets
from san.d2.evaluate.evaluation import evaluate_dataset
from san.data.benchmarks import BENCHMARKS
from san.io.image_files import read_image, read_label_map
from tests.data.raw_trees import MAKERS, RawTree, Sizes, make_raw_tree

REPO = Path(__file__).resolve().parents[2]
MakeCfg = Callable[..., Any]
Labels = dict[str, np.ndarray[Any, Any]]


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_prepare(tree: RawTree, root: Path, *options: str) -> int:
    script = load_script(REPO / f"datasets/prepare_{tree.name}.py")
    code: int = script.main(["--raw", str(tree.raw), "--root", str(root), "--workers", "1", *options])
    return code


def run_check(root: Path, out: Path, *options: str) -> int:
    arguments = ["--data-root", str(root), "--out", str(out), "--workers", "1", "--samples", "1", *options]
    return main(["check", *arguments])


@pytest.fixture(scope="module", params=sorted(MAKERS))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RawTree, Path]:
    """A download and the datasets root that its script made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tree = make_raw_tree(request.param, folder / "raw", sizes=Sizes(train=2, val=4))
    assert run_prepare(tree, folder / "datasets", "--partial") == 0
    return tree, folder / "datasets"


def evaluation_split(tree: RawTree) -> str:
    (name,) = (name for name in tree.expected if "train" not in name)
    return name


def test_label_maps_of_both_splits_are_exact(prepared: tuple[RawTree, Path]) -> None:
    tree, root = prepared
    register_datasets(root)
    assert len(tree.expected) == 2
    for name, truth in tree.expected.items():
        records = load_records(name)
        assert [Path(record["file_name"]).stem for record in records] == sorted(truth)
        for record in records:
            labels = read_label_map(record["sem_seg_file_name"])
            np.testing.assert_array_equal(labels, truth[Path(record["file_name"]).stem])
            assert read_image(record["file_name"]).shape == (*labels.shape, 3)


def test_the_check_finds_the_prepared_set_sound(
    prepared: tuple[RawTree, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("san.cli.check.plot_pixel_histogram", lambda *_, **__: None)  # seconds; see tests/cli
    tree, root = prepared
    name = evaluation_split(tree)
    labels, truth = BENCHMARKS[name].labels, tree.expected[name]
    assert run_check(root, tmp_path, "--partial", name) == 0
    report = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
    assert (report["pairs"], report["checked"]) == (len(truth), len(truth))
    counts = sum(np.bincount(each.ravel(), minlength=labels.ignore_label + 1) for each in truth.values())
    assert [row["pixels"] for row in report["classes"]] == counts[: labels.num_classes].tolist()
    assert report["ignored_pixels"] == counts[labels.ignore_label]
    assert report["outside_pixels"] == 0
    rotated = [finding for finding in report["findings"] if finding["kind"] == "rotated_image"]
    assert len(rotated) == (0 if tree.name == "ade20k_full" else 1)  # its converter writes upright images
    with Image.open(tmp_path / name / "samples.png") as sheet:
        assert min(sheet.size) > 100


class KnownPredictions(nn.Module):
    """A model that answers with given label maps, by the stem of the image."""

    def __init__(self, predictions: Labels) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        return [
            {"sem_seg_labels": torch.from_numpy(self.predictions[Path(sample["file_name"]).stem])} for sample in batch
        ]


def with_errors(truth: Labels, num_classes: int, ignore_label: int) -> Labels:
    """The truth, but a third of the rows one class too high, and a class where the truth has none."""
    predictions = {}
    for stem, labels in truth.items():
        wrong = np.where(labels == ignore_label, 3, labels).astype(np.int64)
        wrong[::3] = (wrong[::3] + 1) % num_classes
        predictions[stem] = wrong
    return predictions


def by_hand(truth: Labels, predictions: Labels, num_classes: int, ignore_label: int) -> tuple[list[float], float]:
    """IoU of each class (NaN where absent) and the share of right pixels, in percent, counted pixel by pixel."""
    gold = np.concatenate([labels.ravel() for labels in truth.values()])
    guess = np.concatenate([predictions[stem].ravel() for stem in truth])
    guess, gold = guess[gold != ignore_label], gold[gold != ignore_label]
    ious = []
    for index in range(num_classes):
        both, either = ((gold == index) & (guess == index)).sum(), ((gold == index) | (guess == index)).sum()
        ious.append(100.0 * both / either if (gold == index).any() else math.nan)
    return ious, 100.0 * float((gold == guess).mean())


def test_the_mean_iou_of_known_predictions_is_exact(
    prepared: tuple[RawTree, Path], make_cfg: MakeCfg, tmp_path: Path
) -> None:
    tree, root = prepared
    name = evaluation_split(tree)
    labels, truth = BENCHMARKS[name].labels, tree.expected[name]
    predictions = with_errors(truth, labels.num_classes, labels.ignore_label)
    register_datasets(root)
    cfg = make_cfg(DATASETS__ROOT=str(root), TEST__NUM_PANELS=0)
    values = evaluate_dataset(cfg, KnownPredictions(predictions), name, tmp_path)
    assert values is not None
    assert tuple(metadata_of(name).stuff_classes) == labels.classes
    ious, right = by_hand(truth, predictions, labels.num_classes, labels.ignore_label)
    present = [iou for iou in ious if not math.isnan(iou)]
    assert 20 < values["mIoU"] < 80
    assert values["mIoU"] == pytest.approx(math.fsum(present) / len(present), abs=1e-9)
    assert values["pACC"] == pytest.approx(right, abs=1e-9)
    for class_name, iou in zip(labels.classes, ious, strict=True):
        assert values[f"IoU-{class_name}"] == pytest.approx(iou, abs=1e-9, nan_ok=True)
    pixels = np.concatenate([each.ravel() for each in truth.values()])
    judged = np.concatenate([predictions[stem].ravel() for stem in truth])[pixels != labels.ignore_label]
    seen = set(pixels[pixels != labels.ignore_label].tolist()) | set(judged.tolist())
    assert values["mIoU_detectron2_v0.6"] == pytest.approx(math.fsum(present) / len(seen), abs=1e-9)
    with (tmp_path / "per_class.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == labels.num_classes
