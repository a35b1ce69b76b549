"""Average precision of instances, against pycocotools used directly on whole sets."""

from __future__ import annotations

import numpy as np
import pytest

from san.evaluation.instances import InstanceMatches, missing_package
from san.evaluation.panoptic import PanopticCounts, Segments, panoptic_metrics, panoptic_rows
from san.panoptic_merge import Instance

pytest.importorskip("pycocotools")
SIZE = (24, 30)
NAMES = ["cat", "sky", "dog", "car"]
THINGS = [0, 2, 3]  # no image has a car


def scene(seed: int) -> tuple[list[Instance], Segments]:
    """Boxes of two things, of which the third is a crowd, over sky; found ones are shifted, doubled or wrong."""
    rng = np.random.default_rng(seed)
    ids, classes, found = np.ones(SIZE, np.int64), {1: 1}, []
    for key in range(2, 7):
        top, left = rng.integers(0, 16, 2)
        height, width = rng.integers(5, 12, 2)
        ids[top : top + height, left : left + width] = key
        classes[key] = int(rng.choice([0, 2]))
        for _ in range(int(rng.integers(0, 3))):
            down, right = rng.integers(-2, 3, 2)
            mask = np.zeros(SIZE, bool)
            mask[max(0, top + down) : top + down + height, max(0, left + right) : left + right + width] = True
            label = int(rng.choice([0, 2])) if rng.random() < 0.3 else classes[key]
            found.append(Instance(label, round(float(rng.random()), 1), mask))  # with equal scores
    return found, Segments(ids, classes, frozenset({4}))


def by_coco(scenes: list[tuple[list[Instance], Segments]]) -> np.ndarray:
    """Precision (T, R, K) of the same instances, as COCO's example does it."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entry(image: int, label: int, mask: np.ndarray) -> dict:
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"image_id": image, "category_id": label, "segmentation": code, "iscrowd": 0, "area": int(mask.sum())}

    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(len(scenes))]
    results, truths = [], []
    for image, (found, truth) in enumerate(scenes):
        results += [entry(image, each.label, each.mask) | {"score": each.score} for each in found]
        for key in np.unique(truth.ids).tolist():
            if truth.classes[key] in THINGS:
                one = entry(image, truth.classes[key], truth.ids == key)
                truths.append(one | {"id": len(truths) + 1, "iscrowd": int(key in truth.crowd)})
    coco = COCO()
    coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": each} for each in THINGS]}
    coco.createIndex()
    whole = COCOeval(coco, coco.loadRes(results), "segm")
    whole.evaluate()
    whole.accumulate()
    return whole.eval["precision"][:, :, :, 0, -1]


def test_it_equals_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the order of images and the number of workers."""
    scenes = [scene(seed) for seed in range(12)]
    precision = by_coco(scenes)
    capsys.readouterr()
    one, first, second = InstanceMatches(), InstanceMatches(), InstanceMatches()
    for number, (found, truth) in enumerate(scenes):
        one.update(found, truth, THINGS, name=f"{number:02}")
    for number in (7, 3, 11, 1, 5, 9):
        first.update(*scenes[number], THINGS, name=f"{number:02}")
    for number in (0, 4, 2, 10, 8, 6):
        second.update(*scenes[number], THINGS, name=f"{number:02}")
    second.merge(first.images, first.arrays)
    figures = one.average_precision(NAMES, THINGS, {"pets": ("dog", "cat"), "cats": ("cat",), "stuff": ("sky",)})
    assert figures["AP"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)
    assert figures["AP50"] == pytest.approx(100 * precision[0][precision[0] > -1].mean(), abs=1e-9)
    assert figures["AP75"] == pytest.approx(100 * precision[5][precision[5] > -1].mean(), abs=1e-9)
    assert figures["AP-cats"] == figures["AP-cat"] == pytest.approx(100 * precision[:, :, 0].mean(), abs=1e-9)
    assert figures["AP-dog"] == pytest.approx(100 * precision[:, :, 1].mean(), abs=1e-9)
    assert 0 < figures["AP75"] < figures["AP50"] < 100 and figures["AP-pets"] == figures["AP"]
    assert np.isnan(figures["AP-car"]) and "AP-stuff" not in figures and "AP-sky" not in figures
    same = second.average_precision(NAMES, THINGS, {"pets": ("dog", "cat"), "cats": ("cat",)})
    assert {key: value for key, value in figures.items() if value == value} == {
        key: value for key, value in same.items() if value == value
    }
    assert capsys.readouterr().out == "", "pycocotools reports on its progress"


def test_without_images_or_instances_there_is_no_figure() -> None:
    assert missing_package() == ""
    matches = InstanceMatches()
    assert all(np.isnan(value) for value in matches.average_precision(NAMES, THINGS, {"a": ("cat",)}).values())
    matches.update([], Segments(np.zeros(SIZE, np.int64), {}), THINGS, name="empty")
    assert all(np.isnan(value) for value in matches.average_precision(NAMES, THINGS, {}).values())
    matches.update([], scene(0)[1], THINGS, name="missed")
    assert matches.average_precision(NAMES, THINGS, {})["AP"] == 0
    assert matches.average_precision(NAMES, [], {})["AP"] != 0


def test_the_table_names_every_group() -> None:
    counts = PanopticCounts(2)
    counts.update(Segments(np.ones((2, 2), int), {1: 0}), Segments(np.ones((2, 2), int), {1: 0}))
    figures = panoptic_metrics(counts, ["a", "b"], {"things": ["a"], "a long group": ["b"]})
    lines = panoptic_rows(figures, ["things", "a long group"]).splitlines()
    assert lines[0].split() == ["PQ", "SQ", "RQ"] and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["things", "100.0", "100.0", "100.0"] and lines[3].split()[3:] == ["–"] * 3
    lines = panoptic_rows(figures | {"AP": 12.34, "AP50": 20.0, "AP75": 1.0}, ["things", "a long group"]).splitlines()
    assert lines[1].split()[-1] == lines[3].split()[-1] == "–" and lines[2].split()[-1] == "12.3"
    assert lines[-1] == "AP50 20.0, AP75 1.0 (AP is that of things)"
