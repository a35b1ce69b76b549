"""The error analysis of the shapes model, from the command line and in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli import main as cli
from san.d2.api import DatasetCatalog, MetadataCatalog, comm
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator
from san.evaluation.oracle import Proposals
from san.postprocess import Geometry
from san.shapes.dataset import ShapesSizes, write_shapes

REPO = Path(__file__).resolve().parents[2]
SET = "shapes_sem_seg_val_mixed"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with the error analysis."""
    root = tmp_path_factory.mktemp("oracle")
    write_shapes(root / "data", ShapesSizes(num_train=1, num_val=8))
    options = ["--config-file", str(REPO / "configs/shapes/san_shapes.yaml"), "--weights", "shapes", "--subset", "6"]
    keys = {"DATASETS.ROOT": root / "data", "OUTPUT_DIR": root / "run", "DATASETS.TEST": SET, "TEST.SAVE_RLE": True}
    pairs = [str(part) for pair in keys.items() for part in pair]
    assert cli.main(["eval", *options, "--oracle", *pairs]) == 0
    return root / "run" / "inference" / SET


def test_shapes(evaluated: Path) -> None:
    names = {path.name for path in evaluated.iterdir()}
    assert {"oracle.json", "oracle.html", "confusions.csv", "confusions.png", "metrics.json"} <= names
    figures = json.loads((evaluated / "oracle.json").read_text(encoding="utf-8"))
    assert figures["dataset"] == f"{SET}, 6 of 8 images"
    means = figures["mIoU"]
    assert means["plain"] == json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["mIoU"]
    assert means["true_names"] > means["plain"] + 5
    assert means["best_proposals"] > 60
    assert figures["segments"]["recall_50"] > 80
    present = [each for each in figures["classes"] if each["label_pixels"]]
    assert sum(each["num_segments"]["all"] for each in present) == figures["segments"]["num_segments"]["all"]
    for kind in means:
        assert means[kind] == pytest.approx(np.mean([each["IoU"][kind] for each in present]))


def test_the_page_of_predictions_leads_to_it(evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    root = str(evaluated.parents[2] / "data")
    command = ["visualize", "predictions", "--predictions", str(evaluated), "--data-root", root, "--out", str(out)]
    assert cli.main([*command, "--limit", "1", "--workers", "1"]) in (0, 1)  # 2 of 8 images have no prediction
    text = (out / "index.html").read_text(encoding="utf-8")
    (link,) = [part.split('"')[0] for part in text.split('<p><a href="')[1:]]
    assert (out / link).resolve() == (evaluated / "oracle.html").resolve()


def evaluator(folder: Path, *, oracle: bool = True) -> SemSegEvaluator:
    name = f"oracle_{folder.parent.name}_{folder.name}"
    if name not in DatasetCatalog.list():
        Image.new("RGB", (4, 4)).save(folder / "1.png")
        DatasetCatalog.register(name, lambda: [{"file_name": str(folder / "1.png"), "sem_seg_file_name": "1.png"}])
        MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255)
    return SemSegEvaluator(name, OutputConfig(folder, num_panels=0, oracle=oracle))


def process(target: SemSegEvaluator, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    masks, logits = 4 * torch.randn(3, 4, 4, generator=rng), torch.randn(3, 4, generator=rng)
    labels = torch.randint(0, 3, (4, 4), generator=rng)
    sample: dict[str, Any] = {"file_name": "1.png", "sem_seg_file_name": "1.png", "sem_seg": labels.numpy()}
    found = Proposals(masks, logits, Geometry((4, 4), (4, 4), (4, 4)))
    target.process([sample], [{"sem_seg_labels": labels, "proposals": found}])


def figures_of(target: SemSegEvaluator, folder: Path) -> str:
    assert target.evaluate()
    return (folder / "oracle.json").read_text(encoding="utf-8")


def test_processes_and_resumed_evaluations_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second, resumed = (evaluator(tmp_path) for _ in range(4))
    for seed in range(4):
        process(whole, seed)
        process((first, second)[seed % 2], seed)
    expected = figures_of(whole, tmp_path)
    process(evaluator(tmp_path), 0)
    half = evaluator(tmp_path)
    for seed in (0, 1):
        process(half, seed)
    resumed.load_state_dict(half.state_dict())
    for seed in (2, 3):
        process(resumed, seed)
    assert figures_of(resumed, tmp_path) == expected
    share = (second.matrix.counts, second.rle.entries, second.oracle and second.oracle.counts)
    monkeypatch.setattr(comm, "gather", lambda own: [own, share])
    assert figures_of(first, tmp_path) == expected


@pytest.mark.parametrize("odd", [{}, {"oracle": None}, {"oracle": {"segments": torch.ones(3, 5, dtype=torch.int64)}}])
def test_a_state_without_it_is_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    target = evaluator(tmp_path)
    process(target, 0)
    state = {key: value for key, value in target.state_dict().items() if key != "oracle"}
    with pytest.raises(ValueError, match="error analysis"):
        target.load_state_dict(state | odd)
    assert not target.matrix.counts.any()
    evaluator(tmp_path, oracle=False).load_state_dict(state)  # needs none


def test_a_model_without_proposals_is_an_error(tmp_path: Path) -> None:
    labels = torch.zeros(4, 4, dtype=torch.int64)
    sample: dict[str, Any] = {"file_name": "1.png", "sem_seg_file_name": "1.png", "sem_seg": labels.numpy()}
    with pytest.raises(ValueError, match="set TEST.ORACLE False"):
        evaluator(tmp_path).process([sample], [{"sem_seg_labels": labels}])
