from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from san.evaluation import ConfusionMatrix, metrics


def counted(prediction: list[int], label: list[int], num_classes: int = 3) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes, 255)
    matrix.update(np.array([prediction]), np.array([label]))
    return matrix


def random_images(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        label = rng.integers(0, 9, rng.integers(5, 40, 2))
        prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 9, label.shape))
        images.append((prediction.astype(np.uint8), np.where(rng.random(label.shape) < 0.1, 255, label)))
    return images


def test_three_pixels() -> None:
    """Class 0: one hit of a union of two; class 1: one hit of a union of two; class 2 absent and never predicted."""
    values = metrics(counted([0, 1, 1], [0, 1, 0]))
    assert values["mIoU"] == values["mIoU_detectron2_v0.6"] == values["fwIoU"] == pytest.approx(50.0)
    assert values["IoU-0"] == values["IoU-1"] == pytest.approx(50.0)
    assert values["ACC-0"] == pytest.approx(50.0)
    assert values["ACC-1"] == pytest.approx(100.0)
    assert values["mACC"] == pytest.approx(75.0)
    assert values["pACC"] == pytest.approx(200 / 3)
    assert values["zero_iou_share"] == 0.0
    assert math.isnan(values["IoU-2"])
    assert math.isnan(values["ACC-2"])


def test_predicted_but_absent_class_counts_in_the_older_convention_only() -> None:
    values = metrics(counted([0, 1, 2], [0, 1, 1]))
    assert math.isnan(values["IoU-2"])
    assert values["mIoU"] == pytest.approx((100 + 50) / 2)
    assert values["mIoU_detectron2_v0.6"] == pytest.approx((100 + 50) / 3)


def test_groups_are_means_over_their_present_classes() -> None:
    """Classes a: 1/2, b: 1/2, c absent; names that are no class here do not count."""
    matrix = counted([0, 1, 1], [0, 1, 0])
    values = metrics(matrix, ["a", "b", "c"], {"first": ["a", "c"], "gone": ["c"], "other": ["b", "z"]})
    assert values["mIoU-first"] == values["mIoU-other"] == pytest.approx(50.0)
    assert math.isnan(values["mIoU-gone"])


def test_zero_iou_share_is_over_present_classes() -> None:
    values = metrics(counted([0, 0, 0], [0, 1, 1]))
    assert values["zero_iou_share"] == pytest.approx(50.0)
    assert values["IoU-1"] == 0.0


def test_all_ignored_gives_nan() -> None:
    matrix = counted([0, 1, 2], [255, 255, 255])
    assert not matrix.counts.any()
    assert all(math.isnan(value) for value in metrics(matrix).values())


def test_predictions_on_ignored_pixels_never_count() -> None:
    assert metrics(counted([0, 1, 2], [0, 1, 255])) == pytest.approx(
        metrics(counted([0, 1, 0], [0, 1, 255])), nan_ok=True
    )


def test_golden_numbers_added_up_over_two_workers(golden: Path) -> None:
    case = np.load(golden / "evaluator.npz")
    num_classes, ignore_label = int(case["num_classes"]), int(case["ignore_label"])
    workers = [ConfusionMatrix(num_classes, ignore_label) for _ in range(2)]
    for i in range(4):
        workers[i % 2].update(case[f"pred_{i}"], case[f"label_{i}"], file_name=str(i))
    workers[0].merge(workers[1].counts)
    values = metrics(workers[0], [f"c{i}" for i in range(num_classes)])
    expected = json.loads(str(case["metrics"]))
    assert {key: values[key] for key in expected} == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_streaming_equals_counting_all_at_once() -> None:
    stream, images = ConfusionMatrix(9, 255), random_images()
    for prediction, label in images:
        stream.update(prediction, label)
    at_once = ConfusionMatrix(9, 255)
    at_once.update(*(np.concatenate([image[i].ravel() for image in images]) for i in (0, 1)))
    assert np.array_equal(stream.counts, at_once.counts)
    assert stream.counts.sum() == sum((label != 255).sum() for _, label in images)


def test_rows_are_labels_and_columns_predictions() -> None:
    assert counted([1, 1, 2], [0, 0, 1]).counts.tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 0]]


def test_permuting_classes_permutes_the_per_class_values() -> None:
    order = np.random.default_rng(1).permutation(9)
    plain, permuted = ConfusionMatrix(9, 255), ConfusionMatrix(9, 255)
    for prediction, label in random_images():
        plain.update(prediction, label)
        permuted.update(order[prediction], np.where(label == 255, 255, order[label % 9]))
    names = [f"c{i}" for i in range(9)]
    permuted_names = [""] * 9
    for i, name in enumerate(names):
        permuted_names[order[i]] = name
    assert metrics(permuted, permuted_names) == pytest.approx(metrics(plain, names))


@pytest.mark.parametrize("value", [3, 254, -1])
def test_labels_outside_are_refused_and_not_counted(value: int) -> None:
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(
        ValueError, match=rf"label map of x\.png holds the value {value} but only 0\.\.2 and the ignore"
    ):
        matrix.update(np.array([[0, 1]]), np.array([[0, value]]), file_name="x.png")
    assert not matrix.counts.any()


@pytest.mark.parametrize("value", [3, 255, -1])
def test_predictions_outside_are_refused(value: int) -> None:
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(ValueError, match=rf"prediction of x\.png holds the value {value} but only 0\.\.2 are legal"):
        matrix.update(np.array([[0, value]]), np.array([[0, 1]]), file_name="x.png")
    assert not matrix.counts.any()


def test_undeclared_16_bit_ignore_label_is_refused() -> None:
    with pytest.raises(ValueError, match="65535"):
        ConfusionMatrix(459, 255).update(np.zeros((1, 2), np.int64), np.array([[3, 65535]], np.uint16))


def test_misfits_are_refused() -> None:
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(ValueError, match=r"prediction of x\.png has shape \(1, 2\) but its label map has \(2, 1\)"):
        matrix.update(np.zeros((1, 2), int), np.zeros((2, 1), int), file_name="x.png")
    with pytest.raises(ValueError, match="ignore_label 2 is a class"):
        ConfusionMatrix(3, 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        ConfusionMatrix(0, 255)
    with pytest.raises(ValueError, match="same class list"):
        matrix.merge(np.zeros((4, 4), np.int64))
    with pytest.raises(ValueError, match="2 class names for a matrix of 3"):
        metrics(matrix, ["a", "b"])
    with pytest.raises(ValueError, match="more than once: a"):
        metrics(matrix, ["a", "a", "b"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint64])
def test_every_integer_type_gives_the_same_counts(dtype: type) -> None:
    """Also a matrix whose cells exceed the type's range, with any prediction under ignored pixels."""
    rng = np.random.default_rng(2)
    label, prediction = rng.integers(0, 120, (2, 40, 50))
    label[:5] = 127
    prediction[:5] = 126
    expected = np.zeros((120, 120), np.int64)
    np.add.at(expected, (label[5:], prediction[5:]), 1)
    matrix = ConfusionMatrix(120, 127)
    matrix.update(prediction.astype(dtype), label.astype(dtype))
    assert np.array_equal(matrix.counts, expected)
    matrix.update(np.zeros((0, 3), dtype), np.zeros((0, 3), dtype))
    assert np.array_equal(matrix.counts, expected)


def test_views_that_are_not_contiguous_are_counted_and_left_as_they_are() -> None:
    label, prediction = (np.random.default_rng(seed).integers(0, 3, (6, 8)) for seed in (3, 4))
    kept = label.copy(), prediction.copy()
    straight, turned = ConfusionMatrix(3, 255), ConfusionMatrix(3, 255)
    straight.update(prediction, label)
    turned.update(prediction.T[::-1], label.T[::-1])
    assert np.array_equal(straight.counts, turned.counts)
    assert np.array_equal(label, kept[0])
    assert np.array_equal(prediction, kept[1])
