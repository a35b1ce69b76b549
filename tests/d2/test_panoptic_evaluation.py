"""Evaluation of a registered panoptic set: PQ and AP beside mIoU, in one process or several, interrupted or not."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli.main import main
from san.d2.api import DatasetCatalog, MetadataCatalog, comm
from san.d2.data.batches import BatchSample
from san.d2.data.loaders import Record
from san.d2.data.mapper import EvalMapper
from san.d2.evaluate import evaluation
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator, metric_names
from san.evaluation.oracle import Proposals
from san.evaluation.panoptic import Segments
from san.panoptic_merge import PanopticOptions
from san.postprocess import Geometry
from san.shapes.render import instances, render
from san.shapes.world import GROUNDS, NAMES, NOVEL, SEEN, THINGS, class_index, scene_at
from tests.d2.conftest import as_arguments

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs/shapes/san_shapes.yaml")
NAME = "panoptic_of_the_tests"
COUNT = 4
THRESHOLDS = {"TEST.PANOPTIC.OBJECT_THRESHOLD": 0.3, "TEST.PANOPTIC.OVERLAP_THRESHOLD": 0.5}


class SegmentMapper(EvalMapper):
    """Adds the segments of a file beside the label map."""

    def __call__(self, record: Record) -> BatchSample:
        sample = super().__call__(record)
        ids = np.asarray(Image.open(record["ids_file_name"])).astype(np.int64)
        return {**sample, "segments": Segments(ids, record["segment_classes"])}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A set of scenes with true segments."""
    folder, records = tmp_path_factory.mktemp("panoptic_set"), []
    scenes = [scene_at(3, number, THINGS, required=NOVEL) for number in range(COUNT)]
    for number, (scene, picture, labels) in enumerate(zip(scenes, *render(scenes), strict=True)):
        ids = instances(scene).astype(np.int32)
        classes = {key: class_index(thing.name) for key, thing in enumerate(scene.things, start=1)}
        classes[99] = class_index(scene.ground.name)
        files = {kind: str(folder / f"{number}_{kind}.png") for kind in ("image", "labels", "ids")}
        for kind, array in (("image", picture), ("labels", labels), ("ids", np.where(ids == 0, 99, ids))):
            Image.fromarray(array.astype(np.uint8)).save(files[kind])
        names = {"file_name": files["image"], "sem_seg_file_name": files["labels"], "ids_file_name": files["ids"]}
        records.append({**names, "segment_classes": classes, "dataset_name": NAME})
    DatasetCatalog.register(NAME, lambda: records)
    groups = {"seen": SEEN, "novel": NOVEL, "grounds": GROUNDS}
    MetadataCatalog.get(NAME).set(
        stuff_classes=[*NAMES], things=THINGS, evaluator_type="panoptic_seg", ignore_label=255, class_groups=groups
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "EvalMapper", SegmentMapper)
        yield folder
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def evaluate(registered: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`san eval` into a folder below tmp_path; returns metrics.json."""

    def call(out: str, *options: str, status: int = 0, **changes: Any) -> dict[str, Any]:
        keys = {"DATASETS.TEST": [NAME], "OUTPUT_DIR": tmp_path / out, "MODEL.DEVICE": "cpu", "TEST.NUM_PANELS": 0}
        keys |= THRESHOLDS | {key.replace("__", "."): value for key, value in changes.items()}
        command = ["eval", "--config-file", CONFIG, "--weights", "shapes", *options, *as_arguments(keys)]
        assert main(command) == status
        file = tmp_path / out / f"inference/{NAME}/metrics.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    return call


def test_segments_are_measured_beside_label_maps(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate("run", TEST__SAVE_LABEL_MAPS=True, TEST__EXPECTED_RESULTS=f"[['{NAME}', 'PQ-novel', 50, 50]]")
    shown = capsys.readouterr().out
    assert {*found} == {*metric_names(NAME)} and {"mIoU", "PQ-things", "SQ-novel", "AP", "AP50", "AP-seen"} <= {*found}
    assert found["mIoU"] > 30 and found["PQ"] > 5 and 0 <= found["AP"] <= found["AP50"]
    assert f"all{found['PQ']:12.1f}" in shown and "AP50" in shown
    folder = tmp_path / f"run/inference/{NAME}"
    with (folder / "per_class.csv").open(encoding="utf-8") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert rows["plain ground"]["AP"] == "" and len(rows) == 36
    present = [float(row["PQ"]) for row in rows.values() if row["PQ"]]
    assert np.mean(present) == pytest.approx(found["PQ"], abs=1e-3)
    assert len([*(folder / "label_maps").glob("*.png")]) == COUNT
    content = json.loads((folder / "panoptic_predictions.json").read_text(encoding="utf-8"))
    assert [each["file_name"] for each in content["images"]] == [f"{number}_image.png" for number in range(COUNT)]
    for each in content["annotations"]:
        pixels = np.asarray(Image.open(folder / "panoptic_predictions" / each["file_name"])).astype(int)
        ids = pixels @ [1, 256, 65536]
        areas = {info["id"]: info["area"] for info in each["segments_info"]}
        assert areas == {key: int((ids == key).sum()) for key in np.unique(ids[ids > 0]).tolist()}


def test_the_written_predictions_have_the_same_quality(
    evaluate: Callable[..., dict[str, Any]], registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `san pq` measures them; connected queries and a subset too."""
    figures = evaluate("run", "--subset", "2", TEST__SAVE_LABEL_MAPS=True, TEST__PANOPTIC__CONNECTED=True)
    assert figures["subset"] == "2 of 4 images"
    categories = [{"id": i, "name": name, "isthing": int(name in THINGS)} for i, name in enumerate(NAMES)]
    annotations = []
    (tmp_path / "truth").mkdir()
    for record in DatasetCatalog.get(NAME):
        ids = np.asarray(Image.open(record["ids_file_name"])).astype(np.uint8)
        name = Path(record["sem_seg_file_name"]).name
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(tmp_path / "truth" / name)
        seen = [
            {"id": key, "category_id": label} for key, label in record["segment_classes"].items() if (ids == key).any()
        ]
        annotations.append({"file_name": name, "segments_info": seen})
    (tmp_path / "truth.json").write_text(json.dumps({"categories": categories, "annotations": annotations}))
    predictions = tmp_path / f"run/inference/{NAME}/panoptic_predictions.json"
    assert main(["pq", str(tmp_path / "truth.json"), str(predictions), "--out", str(tmp_path / "pq.json")]) == 0
    assert "2 of 4 images" in capsys.readouterr().out
    measured = json.loads((tmp_path / "pq.json").read_text(encoding="utf-8"))
    for key, value in measured.items():
        assert value == pytest.approx(figures[key], abs=1e-6), key


def test_averages_have_no_segments(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither with TEST.AUG nor of an ensemble; a warning says so, and a figure that will not be there is refused."""
    aug = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": [128], "DATASETS__TEST_SUBSET": 1}
    plain = evaluate("both", TEST__EXPECTED_RESULTS=f"[['{NAME}_TTA', 'mIoU', 50, 50]]", **aug)
    averaged = json.loads((tmp_path / f"both/inference_TTA/{NAME}/metrics.json").read_text())
    shown = capsys.readouterr().out
    assert "PQ" in plain and "PQ" not in averaged
    assert "only the label map is evaluated, without PQ and AP" in shown
    evaluate("refused", status=1, TEST__EXPECTED_RESULTS=f"[['{NAME}_TTA', 'PQ', 50, 50]]", **aug)


def test_without_pycocotools_the_reason_is_logged(
    evaluate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    found = evaluate("run", "--subset", "1")
    shown = capsys.readouterr().out
    assert found["AP"] is None and found["PQ"] is not None
    assert shown.count('AP is left out: average precision of instances needs the extra "train"') == 1


def evaluator(folder: Path, **options: Any) -> SemSegEvaluator:
    """Two things and a class of stuff."""
    name = f"segments_{folder.parent.name}_{folder.name}"
    if name not in DatasetCatalog.list():
        Image.new("RGB", (12, 12)).save(folder / "1.png")
        DatasetCatalog.register(
            name, lambda: [{"file_name": f"{each}.png", "pan_seg_file_name": f"{each}.png"} for each in range(9)]
        )
        metadata = {"stuff_classes": ["a", "b", "c"], "things": ("a", "b"), "evaluator_type": "panoptic_seg"}
        MetadataCatalog.get(name).set(ignore_label=255, class_groups={"one": ("a",)}, **metadata)
    return SemSegEvaluator(
        name, OutputConfig(folder, num_panels=0, panoptic=PanopticOptions(0.2, 0.2), label_maps=True, **options)
    )


def process(target: SemSegEvaluator, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (3, 3), generator=rng).repeat_interleave(4, 0).repeat_interleave(4, 1)
    classes = {1: 0, 2: 0, 3: 1, 4: 2}
    masks = torch.stack([8.0 * (ids == key) - 4 for key in (1, 2, 3, 4)]) + 3 * torch.randn(4, 12, 12, generator=rng)
    logits = 4.0 * torch.eye(4)[[0, 0, 1, 2]] + torch.randn(4, 4, generator=rng)
    labels = torch.tensor([255, 0, 0, 1, 2])[ids]
    sample: dict[str, Any] = {"file_name": f"{seed}.png", "sem_seg_file_name": f"{seed}.png", "sem_seg": labels.numpy()}
    sample["segments"] = Segments(ids.numpy(), classes)
    found = Proposals(masks, logits, Geometry((12, 12), (12, 12), (12, 12)))
    target.process([sample], [{"sem_seg_labels": labels.clamp(max=2), "proposals": found}])


def figures_of(target: SemSegEvaluator, folder: Path) -> tuple[dict[str, float], str]:
    result = target.evaluate()
    assert result
    return result["sem_seg"], (folder / "panoptic_predictions.json").read_text()


def test_processes_and_resumed_evaluations_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in files too."""
    whole, first, second, resumed, half = (evaluator(tmp_path) for _ in range(5))
    for seed in range(9):
        process(whole, seed)
        process((first, second)[seed % 2], seed)
        process(half, seed) if seed < 5 else None
    expected = figures_of(whole, tmp_path)
    assert 0 < expected[0]["PQ"] < 100 and 0 < expected[0]["AP"] < 100
    resumed.load_state_dict(half.state_dict())
    for seed in range(5, 9):
        process(resumed, seed)
    assert figures_of(resumed, tmp_path) == expected
    shares = {dict: second.panoptic and second.panoptic.state, tuple: (second.matrix.counts, second.rle.entries, None)}
    monkeypatch.setattr(comm, "gather", lambda own: [own, shares[type(own)]])
    assert figures_of(first, tmp_path) == expected


ODD: list[Callable[[dict[str, Any]], object]] = [
    lambda state: state.pop("panoptic"),
    lambda state: state.update(panoptic={}),
    lambda state: state["panoptic"].pop("images"),
    lambda state: state["panoptic"]["counts"].update(found=torch.zeros(2, dtype=torch.int64)),
    lambda state: state["panoptic"]["counts"].update(iou=torch.full((3,), float("nan"), dtype=torch.float64)),
    lambda state: state["panoptic"]["instances"].update(found=torch.ones(2, 4, dtype=torch.int64)),
    lambda state: state["panoptic"]["instances"].update(scores=torch.zeros(1, dtype=torch.float64)),
    lambda state: state["panoptic"].update(written=state["rle"][:0]),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_damaged_state_is_refused_and_nothing_is_counted(number: int, tmp_path: Path) -> None:
    target = evaluator(tmp_path)
    process(target, 0)
    state = target.state_dict()
    ODD[number](state)
    with pytest.raises(ValueError):
        target.load_state_dict(state)
    assert target.matrix.counts.sum() == 0
    assert target.panoptic and target.panoptic.counts.found.sum() == 0 and target.panoptic.instances
    assert target.panoptic.instances.images == []


def test_wrong_sets_and_models_are_refused(tmp_path: Path) -> None:
    target = evaluator(tmp_path)
    labels = torch.zeros(2, 2, dtype=torch.int64)
    sample: dict[str, Any] = {"file_name": "1.png", "sem_seg_file_name": "1.png", "sem_seg": labels.numpy()}
    with pytest.raises(ValueError, match=r"the sample of 1.png has no segments; let its mapper return"):
        target.process([sample], [{"sem_seg_labels": labels}])
    sample["segments"] = Segments(labels.numpy(), {})
    with pytest.raises(ValueError, match="like a panoptic set, needs the model's proposals, but its output has none"):
        target.process([sample], [{"sem_seg_labels": labels}])
    name = f"{target.name}_odd"
    MetadataCatalog.get(name).set(stuff_classes=["a"], ignore_label=255, things=("z",), evaluator_type="panoptic_seg")
    with pytest.raises(ValueError, match="the thing 'z' is none of the 1 classes; register it among them"):
        SemSegEvaluator(name, OutputConfig(tmp_path, panoptic=PanopticOptions()))
