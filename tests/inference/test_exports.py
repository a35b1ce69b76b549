"""A segmentation in the objects of other tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from san.inference.segmentation import Segmentation
from san.vocabulary.vocabulary import Vocabulary
from tests.labelling.test_outlines import noisy_labels

LABELS = noisy_labels(4.0)


def segmentation(labels: np.ndarray = LABELS, num_context: int = 1) -> Segmentation:
    """Class 3 is context."""
    classes = Vocabulary.parse("cat, dog, sky, road").classes
    picture, scores = np.zeros((*labels.shape, 3), np.uint8), np.full(labels.shape, 0.5, np.float32)
    return Segmentation(picture, labels, Vocabulary(classes, num_context), scores)


def test_context_and_pixels_without_a_class_are_in_no_region() -> None:
    regions = segmentation().regions()
    assert [each.label for each in regions] == [0, 1, 2]
    assert sum(each.mask() for each in regions).max() == 1
    assert np.array_equal(sum(each.mask() for each in regions), (LABELS >= 0) & (LABELS < 3))
    assert {each.label for each in segmentation(num_context=0).regions()} == {0, 1, 2, 3}
    assert len(segmentation().regions(instances=True)) > len(regions)
    assert segmentation().regions(score_threshold=0.6) == ()
    names = [each.name for each in segmentation().vocabulary.free]
    assert len(segmentation().regions(instances=True, things=())) == len(regions)
    apart = segmentation().regions(instances=True, things=names)
    assert len(apart) == len(segmentation().regions(instances=True))
    with pytest.raises(ValueError, match="the thing 'zebra' is none of the classes"):
        segmentation().regions(instances=True, things=["zebra"])


def test_polygons() -> None:
    found = segmentation().to_polygons(instances=True, min_area=9)
    assert {each["name"] for each in found} == {"cat", "dog", "sky"}
    for each in found:
        ((outline, *holes),) = each["polygons"]
        assert shoelace(outline) - sum(map(shoelace, holes)) == each["area"] >= 9
        assert each["score"] == 0.5


def shoelace(ring: np.ndarray) -> float:
    """Area of a closed line."""
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


@pytest.mark.parametrize("polygons", [False, True])
def test_coco(tmp_path: Path, polygons: bool) -> None:
    content = segmentation().to_coco("street/000139.jpg", polygons=polygons)
    (tmp_path / "a.json").write_text(json.dumps(content))
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.loadImgs([139])[0]["file_name"] == "street/000139.jpg"
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["cat", "dog", "sky"]
    for entry in coco.loadAnns(coco.getAnnIds(139)):
        assert np.array_equal(coco.annToMask(entry), entry["category_id"] - 1 == LABELS)


def test_supervision() -> None:
    pytest.importorskip("supervision")
    result = segmentation()
    found = result.to_supervision(instances=True)
    assert len(found) == len(result.regions(instances=True))
    for mask, box, label, name in zip(found.mask, found.xyxy, found.class_id, found.data["class_name"], strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (LABELS[mask] == label).all() and result.names[label] == name
    assert found.confidence.tolist() == [0.5] * len(found)
    assert len(segmentation(np.full((4, 4), -1)).to_supervision()) == 0


def test_fiftyone() -> None:
    fiftyone = pytest.importorskip("fiftyone")
    result = segmentation()
    found = result.to_fiftyone()
    assert isinstance(found, fiftyone.Segmentation)
    assert np.array_equal(found.mask, np.where(LABELS < 3, LABELS + 1, 0))
    detections = result.to_fiftyone(instances=True).detections
    assert len(detections) == len(result.regions(instances=True))
    for each, region in zip(detections, result.regions(instances=True), strict=True):
        assert each.label == result.names[region.label]
        assert np.array_equal(each.mask, region.crop)
        assert np.allclose(np.array(each.bounding_box) * [80, 60, 80, 60], region.box)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, method in (("supervision", "to_supervision"), ("fiftyone", "to_fiftyone")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf'{method} needs the extra "{package}".*san-segmentation\[{package}\]'):
            getattr(segmentation(), method)()
