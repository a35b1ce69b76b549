from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from san.evaluation import (
    ConfusionMatrix,
    RLEWriter,
    format_summary,
    metrics,
    rle_entries,
    write_label_map,
    write_report,
)
from san.io.image_files import read_label_map

NAMES = ["road, route", "blaues Auto", "absent"]


@pytest.fixture
def matrix() -> ConfusionMatrix:
    matrix = ConfusionMatrix(3, 255)
    matrix.update(np.array([[0, 1, 1, 2]]), np.array([[0, 1, 0, 255]]))
    return matrix


def test_report_files(tmp_path: Path, matrix: ConfusionMatrix) -> None:
    values = write_report(tmp_path / "deep" / "folder", matrix, NAMES)
    assert values == pytest.approx(metrics(matrix, NAMES), nan_ok=True)
    folder = tmp_path / "deep" / "folder"
    written = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert written["mIoU"] == pytest.approx(50.0)
    assert written["IoU-absent"] is None
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert rows[0] == {
        "index": "0", "class": "road, route", "label_pixels": "2", "predicted_pixels": "1",
        "IoU": "50.0000", "ACC": "50.0000",
    }  # fmt: skip
    assert rows[2]["IoU"] == ""
    with Image.open(folder / "per_class.png") as picture:
        assert picture.format == "PNG"


def test_summary(matrix: ConfusionMatrix) -> None:
    header, row = format_summary(metrics(matrix, NAMES)).splitlines()
    assert header.split(" | ")[0].strip() == "mIoU"
    assert dict(zip(map(str.strip, header.split("|")), map(str.strip, row.split("|")), strict=True)) == {
        "mIoU": "50.00", "mIoU_detectron2_v0.6": "50.00", "fwIoU": "50.00", "mACC": "75.00", "pACC": "66.67",
        "zero_iou_share": "0.00",
    }  # fmt: skip


@pytest.mark.parametrize(("highest", "mode"), [(255, "L"), (256, "I;16"), (846, "I;16"), (65535, "I;16")])
def test_label_map_png(tmp_path: Path, highest: int, mode: str) -> None:
    labels = np.array([[0, 1], [2, highest]])
    write_label_map(tmp_path / "sub" / "a.png", labels)
    with Image.open(tmp_path / "sub" / "a.png") as image:
        assert image.mode == mode
    assert np.array_equal(read_label_map(tmp_path / "sub" / "a.png"), labels)


@pytest.mark.parametrize("value", [-1, 65536])
def test_label_map_png_refuses_what_does_not_fit(tmp_path: Path, value: int) -> None:
    with pytest.raises(ValueError, match="but a PNG can store"):
        write_label_map(tmp_path / "a.png", np.array([[0, value]]))


def test_rle_entries_decode_to_the_label_map() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (13, 7))
    entries = rle_entries(labels, "images/a.jpg")
    decoded = np.full(labels.shape, -1)
    for entry in json.loads(json.dumps(entries)):
        assert set(entry) == {"image_id", "file_name", "category_id", "segmentation"}
        assert (entry["file_name"], entry["image_id"]) == ("images/a.jpg", "a")
        assert entry["segmentation"]["size"] == [13, 7]
        decoded[coco_mask.decode(entry["segmentation"]) == 1] = entry["category_id"]
    assert np.array_equal(decoded, labels)


@pytest.mark.parametrize("num_classes", [1, 2, 40])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 8), (37, 23)])
def test_rle_entries_equal_those_of_pycocotools(num_classes: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for scale in (1, 3, 70):  # runs of one letter to four
        labels = np.kron(rng.integers(0, num_classes, size), np.ones((scale, scale), np.int64))
        for entry in rle_entries(labels, "a.jpg"):
            code = coco_mask.encode(np.asfortranarray(labels == entry["category_id"], dtype=np.uint8))
            counts = code["counts"].decode("ascii")
            assert entry["segmentation"] == {"size": list(code["size"]), "counts": counts}
    assert rle_entries(np.zeros((0, 0), np.int64), "a.jpg") == []


def test_rle_writer(tmp_path: Path) -> None:
    writer, other = RLEWriter(category_ids=[1, 13]), RLEWriter(category_ids=[1, 13])
    writer.update(np.array([[0, 1]]), "a.jpg")
    other.update(np.array([[1, 1]]), "b.jpg")
    writer.merge(other.entries)
    writer.write(tmp_path / "out" / "sem_seg_predictions.json")
    entries = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [(entry["file_name"], entry["category_id"]) for entry in entries] == [
        ("a.jpg", 1),
        ("a.jpg", 13),
        ("b.jpg", 13),
    ]
