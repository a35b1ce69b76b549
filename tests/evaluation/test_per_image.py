"""Predictions read back, and the score of one image."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.evaluation import ConfusionMatrix, metrics, rle_entries
from san.evaluation.per_image import ImageScore, Predictions, common_folder, decode_entries, distinct_stems, score_image
from san.record import read_record


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_an_evaluation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 8))
    prediction = rng.integers(0, num_classes, (20, 30))
    truth = rng.integers(0, num_classes + 1, (20, 30))
    truth[truth == num_classes] = 255
    matrix = ConfusionMatrix(num_classes, 255)
    matrix.update(prediction, truth)
    expected, score = metrics(matrix), score_image(prediction, truth, num_classes)
    assert 100 * (score.miou or 0) == pytest.approx(expected["mIoU"])
    assert 100 * (score.accuracy or 0) == pytest.approx(expected["pACC"])
    assert {f"IoU-{each.index}": 100 * (each.iou or 0) for each in score.classes} == pytest.approx(
        {key: value for key, value in expected.items() if key.startswith("IoU-")}
    )
    assert read_record(ImageScore, json.loads(json.dumps(dataclasses.asdict(score)))) == score


def test_a_score_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0], [1, 1, 255, 255]])
    prediction = np.array([[0, 2, 2, 1], [1, 1, 0, 1]])
    score = score_image(prediction, truth, 3)
    first, second, third = score.classes
    assert (first.index, first.iou, first.taken_for) == (0, 1 / 4, 2)  # worst first, and mostly taken for class 2
    assert (second.index, second.iou, second.taken_for) == (1, 2 / 3, None)
    assert (third.index, third.iou, third.predicted) == (2, None, 2)  # not in the truth: no IoU, last
    assert score.miou == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert score.accuracy == 3 / 6
    nothing = score_image(prediction, np.full_like(truth, 255), 3)
    assert (nothing.miou, nothing.accuracy, nothing.classes) == (None, None, ())
    assert score_image(np.full((2, 2), -1), np.zeros((2, 2), int), 1).classes[0].taken_for == -1
    with pytest.raises(ValueError, match="use the predictions of this data set"):
        score_image(prediction[:1], truth, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (67, 3), (120, 90)])
def test_entries_are_decoded_as_they_were_written(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, shape), np.ones((2, 7), int))  # runs of several lengths
    entries = rle_entries(labels, "a.jpg", category_ids=[10, 20, 30, 40, 50])
    back = decode_entries(entries, labels.shape, {10: 0, 20: 1, 30: 2, 40: 3, 50: 4})  # type: ignore[arg-type]
    np.testing.assert_array_equal(back, labels)


def test_plain_runs_and_uncovered_pixels() -> None:
    entry = {"category_id": 3, "segmentation": {"size": [2, 2], "counts": [1, 2, 1]}}
    assert decode_entries([entry], (2, 2)).tolist() == [[-1, 3], [3, -1]]  # column by column
    assert decode_entries([], (1, 2)).tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [3, 2]}, r"the prediction is \(3, 2\) but the label map is \(2, 2\)"),
        ({"counts": [1, 9]}, "damaged"),
        ({"counts": [-1, 2]}, "damaged"),
        ({"counts": "~~~~"}, "damaged"),
        ({"counts": "oooo"}, "damaged"),  # a number without an end
        ({"counts": "o" * 10_000 + "0"}, "damaged"),  # a number without measure
        ({"counts": None}, "damaged"),
        ({"counts": ["a"]}, "damaged"),
    ],
)
def test_damaged_codes_are_refused(change: dict[str, Any], message: str) -> None:
    entry = {"category_id": 0, "segmentation": {"size": [2, 2], "counts": [0, 4]} | change}
    with pytest.raises(ValueError, match=message):
        decode_entries([entry], (2, 2))


def test_other_categories_are_refused() -> None:
    entry = {"category_id": 7, "segmentation": {"size": [1, 1], "counts": [0, 1]}}
    with pytest.raises(ValueError, match="category_id 7 is not in the data set"):
        decode_entries([entry], (1, 1), {0: 0})
    for category in (-1, 10**12):
        with pytest.raises(ValueError, match="is not in the data set; use"):
            decode_entries([entry | {"category_id": category}], (1, 1))
    for wrong in ({}, {"category_id": "x", "segmentation": {}}, {"category_id": 1, "segmentation": [3]}):
        with pytest.raises(ValueError, match="a prediction is damaged"):
            decode_entries([wrong], (1, 1))


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_predictions_are_found_by_image_also_where_the_data_has_moved(tmp_path: Path) -> None:
    names = ["/old/images/a/1.jpg", "/old/images/b/1.jpg", "/old/images/a/2.jpg", "/x/a/2.jpg"]
    write(
        tmp_path / "sem_seg_predictions.json", [{"file_name": name, "category_id": i} for i, name in enumerate(names)]
    )
    predictions = Predictions(tmp_path)
    assert predictions.of("/old/images/b/1.jpg", None, "") == [{"file_name": names[1], "category_id": 1}]
    assert predictions.of("/new/pics/a/1.jpg", "/new/pics", "") == [{"file_name": names[0], "category_id": 0}]
    with pytest.raises(ValueError, match="2 predictions in .* could be of /new/pics/a/2.jpg"):
        predictions.of("/new/pics/a/2.jpg", "/new/pics", "")
    with pytest.raises(FileNotFoundError, match="no prediction for /new/pics/c/1.jpg"):
        predictions.of("/new/pics/c/1.jpg", "/new/pics", "")


def test_label_maps_are_found_by_label_file(tmp_path: Path) -> None:
    path = tmp_path / "label_maps" / "sub" / "1.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (2, 2)).save(path)
    for source in (tmp_path, tmp_path / "label_maps"):
        assert Predictions(source).of("x.jpg", None, "sub/1") == path
    with pytest.raises(FileNotFoundError, match="prediction .* does not exist"):
        Predictions(tmp_path).of("x.jpg", None, "1")


def test_results_have_distinct_names() -> None:
    files = ["/d/a/0.png", "/d/b/0.png", "/d/A/0.png", "/d/a/0.tif", "/d/a/0_.png", "/d/\u00e9.png", "/d/e\u0301.png"]
    assert distinct_stems(files, "/d") == ["a/0", "b/0", "A/0_", "a/0__", "a/0___", "\u00e9", "e\u0301_"]
    assert distinct_stems(["/x/0.png", "/d/../0.png", "/d/0.png"], "/d") == ["0", "0_", "0__"]
    assert common_folder(files) == "/d" and common_folder(["/d/a.png", "b.png"]) is None
    assert common_folder(["a.png"]) is None


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="do not exist"):
        Predictions(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"TEST\.SAVE_RLE True"):
        Predictions(tmp_path)
    for content in ({}, [3], [{"file_name": 3}]):
        with pytest.raises(ValueError, match="is not a list of predictions"):
            Predictions(write(tmp_path / "a.json", content))
    for text in ("[", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as JSON"):
            Predictions(tmp_path / "a.json")
    with open(tmp_path / "a.json", "wb") as sparse:
        sparse.truncate(200 << 30)
    with pytest.raises(ValueError, match="bytes, but at most 2,000,000,000 are read"):
        Predictions(tmp_path / "a.json")
    os.mkfifo(tmp_path / "sem_seg_predictions.json")  # would be waited for
    with pytest.raises(FileNotFoundError, match=r"TEST\.SAVE_RLE True"):
        Predictions(tmp_path)
