"""Panoptic segments of a segmentation: from queries or components, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from san.evaluation.panoptic_files import read_panoptic
from san.inference.evidence import Evidence
from san.inference.segmentation import Segmentation
from san.labelling.regions import thing_indices
from san.panoptic_merge import PanopticOptions, merge_queries
from san.postprocess import Geometry, View, mean_labels
from san.visualize import class_color
from san.vocabulary.label_sets import load_label_set
from san.vocabulary.vocabulary import Vocabulary

GEOMETRY = Geometry((12, 18), (12, 18), (12, 18))
NAMES = "cat|kitten, sky, dog"


def made(num_context: int = 0) -> Segmentation:
    """Two cats side by side in one query, a third in another, sky in two queries, and a little dog."""
    masks = torch.full((5, 12, 18), -6.0)
    masks[0, 2:6, 1:5], masks[0, 2:6, 7:11] = 6, 6
    masks[1, 2:6, 11:16] = 6
    masks[2, :2], masks[3, 6:], masks[4, 9:11, 3:5] = 6, 5, 7
    masks[3, 9:11, 3:5] = -6
    logits = torch.full((5, 4), -9.0)
    logits[torch.arange(5), torch.tensor([0, 0, 1, 1, 2])] = torch.tensor([0.0, 0.0, 0.0, -6.0, 0.0])
    evidence = Evidence(masks, logits, torch.zeros(1, 1, 5, 3, 3), GEOMETRY)
    labels = mean_labels(evidence.views, threshold=0.5)[0].numpy()
    words = Vocabulary(Vocabulary.parse(NAMES).classes, num_context)
    return Segmentation(np.zeros((12, 18, 3), np.uint8), labels, words, np.ones((12, 18), np.float32), evidence)


def boxes(segments: Any) -> list[tuple]:
    return [(each.name, each.isthing, each.query, each.box) for each in segments]


def test_queries_are_segments() -> None:
    found = made().segments(things="cat; dog", source="queries")
    assert boxes(found) == [
        ("cat", True, 0, (1, 2, 10, 4)),
        ("cat", True, 1, (11, 2, 5, 4)),
        ("sky", False, 2, (0, 0, 18, 12)),
        ("dog", True, 4, (3, 9, 2, 2)),
    ]
    assert [each.area for each in found] == [32, 20, 36 + 108 - 4, 4]
    assert sum(each.mask() for each in found).max() == 1
    assert found[2].score == pytest.approx(1, abs=1e-3), "of the surest of its queries"
    assert [each.name for each in made().segments(source="queries")] == ["cat", "cat", "sky", "sky", "dog"], (
        "all are things"
    )
    assert [each.name for each in made().segments(source="queries", things=["cat"], min_area=9)] == [
        "cat",
        "cat",
        "sky",
    ]
    assert [each.name for each in made().segments(source="queries", things=(), score_threshold=0.9)] == [
        "cat",
        "sky",
        "dog",
    ]
    assert made().segments(source="queries", object_threshold=1.0) == ()
    assert len(made().segments(source="queries", overlap_threshold=0.0)) == 5


def test_connected_queries_and_components() -> None:
    connected = made().segments(things=["cat"], source="connected")
    assert [each.box for each in connected if each.name == "cat"] == [(1, 2, 4, 4), (7, 2, 4, 4), (11, 2, 5, 4)]
    assert [each.query for each in connected if each.name == "cat"] == [0, 0, 1]
    components = made().segments(things=["cat"], source="components")
    assert boxes(components)[:2] == [("cat", True, None, (1, 2, 4, 4)), ("cat", True, None, (7, 2, 9, 4))]
    assert components[0].score == 1.0
    plain = made()
    no_evidence = Segmentation(plain.image, plain.labels, plain.vocabulary)
    assert boxes(no_evidence.segments(things=["cat"])) == boxes(components)
    assert no_evidence.segments()[0].score is None
    with pytest.raises(ValueError, match="has a label map only, without queries; take one that a Predictor made"):
        no_evidence.segments(source="queries")
    with pytest.raises(ValueError, match="the source of segments is 'masks'; give one of components, queries, conn"):
        plain.segments(source="masks")  # type: ignore[arg-type]
    for options in ({"object_threshold": 0.5}, {"overlap_threshold": 0.5}):
        with pytest.raises(ValueError, match="are of queries, but source is 'components'"):
            plain.segments(**options)
    with pytest.raises(ValueError, match="the thing 'zebra' is none of the classes"):
        plain.segments(things="zebra")
    with pytest.raises(ValueError, match=r"panoptic.overlap_threshold is 3; set it within 0..1"):
        plain.segments(source="queries", overlap_threshold=3)


def test_segments_of_context_classes_are_left_out() -> None:
    """They still compete for pixels."""
    whole, found = made(), made(num_context=2).segments(source="queries")
    assert [each.name for each in found] == ["cat", "cat"]
    for mine, theirs in zip(found, whole.segments(source="queries"), strict=False):
        assert np.array_equal(mine.mask(), theirs.mask()) and mine.query == theirs.query


def test_several_views_have_no_segments_of_queries() -> None:
    plain = made()
    assert plain.evidence is not None
    other = View(plain.evidence.mask_logits, plain.evidence.class_logits, GEOMETRY, mirrored=True)
    parts = (plain.evidence.mask_logits, plain.evidence.class_logits, plain.evidence.attn_bias, GEOMETRY)
    result = Segmentation(
        plain.image, plain.labels, plain.vocabulary, plain.best_scores, Evidence(*parts, others=(other,))
    )
    with pytest.raises(ValueError, match="are of one view, but 2 were averaged .* or take segments of components"):
        result.segments(source="queries")
    assert boxes(result.segments(source="components")) == boxes(plain.segments(source="components"))


def test_things_of_a_label_set() -> None:
    names = load_label_set("coco_stuff_171").classes
    assert thing_indices(None, names) == thing_indices("coco_stuff_171", names) == tuple(range(80))
    assert thing_indices("coco_stuff_171", ["road", "car", "Person"]) == (1, 2)
    assert thing_indices(None, names[:30]) == tuple(range(30)), "another vocabulary"
    assert thing_indices("car, person", ["road", "car", "person"]) == thing_indices(
        ["person", "car"], ["", "car", "person"]
    )
    with pytest.raises(ValueError, match="voc_20 does not distinguish things"):
        thing_indices("voc_20", ["cat"])
    with pytest.raises(ValueError, match="no thing of the label set coco_stuff_171 is among the classes 'red star'"):
        thing_indices("coco_stuff_171", ["red star"])
    with pytest.raises(ValueError, match="the things ' , ' have no name; give names"):
        thing_indices(" , ", ["cat"])


def test_segments_of_an_image_of_another_size_are_refused() -> None:
    result = made()
    found = [replace(each, size=(7, 9)) for each in result.segments()]
    for use in (result.overlay, result.to_dict, result.to_coco, result.to_polygons):
        with pytest.raises(ValueError, match=r"a segment is of an image of 7x9 \(height x width\), but this one has"):
            use(segments=found)


def test_every_export_takes_segments(tmp_path: Path) -> None:
    result = made()
    found = result.segments(things="cat, dog")
    (tmp_path / "coco.json").write_text(json.dumps(result.to_coco("a/7.jpg", segments=found)))
    coco = COCO(str(tmp_path / "coco.json"))
    entries = coco.loadAnns(coco.getAnnIds(7))
    assert len(entries) == len(found)
    for entry, each in zip(entries, found, strict=True):
        assert np.array_equal(coco.annToMask(entry), each.mask())
        assert entry["category_id"] == each.label + 1 and entry["score"] == round(each.score or 0, 4)
    assert [each["area"] for each in result.to_polygons(segments=found)] == [each.area for each in found]
    assert len(result.to_dict(segments=found)["segments"]) == len(found) and "segments" not in result.to_dict()
    json.dumps(result.to_dict(segments=found))
    with pytest.raises(ValueError, match="segments are given, and options of regions: instances; give one of the two"):
        result.to_coco(segments=found, instances=True)


def test_coco_panoptic_is_read_back(tmp_path: Path) -> None:
    result = made(num_context=1)
    picture, content = result.to_coco_panoptic("street/7.jpg", things="cat", source="connected")
    assert content["images"] == [{"id": 7, "file_name": "street/7.jpg", "height": 12, "width": 18}]
    (tmp_path / "mine").mkdir()
    picture.save(tmp_path / "mine" / content["annotations"][0]["file_name"])
    (tmp_path / "mine.json").write_text(json.dumps(content))
    read = read_panoptic(tmp_path / "mine.json")
    assert read.things == {"cat"} and [*read.names.values()] == ["cat", "sky"]
    segments = read.segments("7", {"cat": 0, "sky": 1})
    expected = result.segments(things="cat", source="connected")
    assert len(segments.classes) == len(expected) == 4
    for number, each in enumerate(expected, start=1):
        assert np.array_equal(segments.ids == number, each.mask()) and segments.classes[number] == each.label


def test_the_overlay_has_a_shade_and_an_outline_per_segment() -> None:
    result = made()
    segments = result.segments(things="cat, dog", source="connected")
    pixels = np.asarray(result.overlay(1.0, segments=segments))
    first, second, third = (pixels[3, column].astype(int) for column in (2, 8, 13))
    assert first.tolist() == list(class_color("cat"))
    assert (second >= first).all() and (third <= first).all() and len({*map(tuple, (first, second, third))}) == 3
    assert pixels[3, 4].sum() < pixels[3, 3].sum(), "a dark line at the side"
    assert len({*pixels[3, 17].tolist()}) == 1, "no segment: grey"
    large = Segmentation(np.zeros((900, 900, 3), np.uint8), np.zeros((900, 900), int), Vocabulary.parse("a, b"))
    large.labels[:, 450:] = 1
    dark = np.asarray(large.overlay(1.0, segments=large.segments()))[450, 430:470].sum(-1)
    assert (dark < 0.5 * dark[0]).sum() == 3, "wider in large pictures"
    assert np.asarray(made().overlay(segments=[])).std() < 100


def test_it_is_what_merging_gives() -> None:
    result = made()
    assert result.evidence is not None
    found = merge_queries(result.evidence.views[0], {0}, PanopticOptions(0.1, 0.1))
    segments = result.segments(things=["cat"], source="queries", object_threshold=0.1, overlap_threshold=0.1)
    assert [each.label for each in segments] == found.labels.tolist()
    assert [each.query for each in segments] == found.queries.tolist()
    assert all(np.array_equal(found.ids == number, each.mask()) for number, each in enumerate(segments, start=1))
