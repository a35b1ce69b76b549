"""COCO's panoptic format: ids, class maps and masks to train on, and the pairing of images, PNGs and annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from san.data import panoptic
from san.data.panoptic import (
    class_map,
    describe_segments,
    encode_segment_ids,
    format_panoptic_file,
    pair_panoptic,
    read_segment_ids,
    target_map,
    unlisted_ids,
)

IDS = np.array([[0, 7, 7, 300], [70_000, 70_000, 16_777_215, 300], [5, 5, 5, 0]])


def segment(number: int, category: int, iscrowd: int = 0) -> dict[str, int]:
    return {"id": number, "category": category, "iscrowd": iscrowd}


SEGMENTS = [segment(7, 2), segment(300, 2), segment(70_000, 1), segment(16_777_215, 1), segment(5, 3, iscrowd=1)]
"""Two instances of class 2, two regions of class 1, and a crowd of class 3."""


def test_ids_of_24_bits_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_segment_ids(IDS))
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image)[1, 0].tolist() == [70_000 % 256, 70_000 // 256 % 256, 1]
    ids = read_segment_ids(tmp_path / "a.png")
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, IDS)


def test_a_jpeg_and_a_palette_are_no_segment_ids(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    Image.new("P", (4, 4)).save(tmp_path / "b.png")
    for file, seen in (("a.jpg", "the mode RGB and the format JPEG"), ("b.png", "the mode P")):
        with pytest.raises(ValueError, match=f"{file} cannot be read as segment ids .*{seen}"):
            read_segment_ids(tmp_path / file)


def test_class_map_has_crowds_and_ignores_what_has_no_segment() -> None:
    expected = [[255, 2, 2, 2], [1, 1, 1, 2], [3, 3, 3, 255]]
    found = class_map(IDS, SEGMENTS, 255, "a.png")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_masks_are_instances_of_things_and_classes_of_stuff() -> None:
    found, classes = target_map(IDS, SEGMENTS, frozenset({2, 3}), 255, "a.png")
    np.testing.assert_array_equal(found, [[255, 0, 0, 1], [2, 2, 2, 1], [255, 255, 255, 255]])
    assert classes.tolist() == [2, 2, 1, -1]
    found, classes = target_map(IDS, SEGMENTS, frozenset(), 255, "a.png")
    np.testing.assert_array_equal(found, [[255, 0, 0, 0], [1, 1, 1, 0], [255, 255, 255, 255]])
    assert classes[:2].tolist() == [2, 1]


@pytest.mark.parametrize("ignore_label", [-1, 0, 255, 300, 65_535])
def test_no_mask_has_the_value_of_the_ignore_label(ignore_label: int) -> None:
    ids = np.arange(400).reshape(20, 20)
    segments = [segment(number, number % 5) for number in range(1, 400)]
    found, classes = target_map(ids, segments, frozenset(range(5)), ignore_label, "a.png")
    assert np.count_nonzero(found == ignore_label) == 1 and found[0, 0] == ignore_label
    assert len(np.unique(found)) == 400
    np.testing.assert_array_equal(classes[found.ravel()[1:]], np.arange(1, 400) % 5)


def test_an_id_that_is_not_listed_is_an_error() -> None:
    assert not len(unlisted_ids(IDS, SEGMENTS)[0])
    assert [each.tolist() for each in unlisted_ids(IDS, SEGMENTS[2:])] == [[7, 300], [2, 2]]
    for listed in (SEGMENTS[1:], []):
        with pytest.raises(ValueError, match=r"the segment ids a.png hold (5, )?7"):
            class_map(IDS, listed, 255, "a.png")
    empty = np.zeros((2, 3), np.int64)
    assert (class_map(empty, [], 255, "a.png") == 255).all()
    assert (target_map(empty, SEGMENTS, frozenset(), 255, "a.png")[0] == 255).all()


CATEGORY_IDS = (1, 3, 92)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures with segments in 'images', 'segments' and 'set.json'; one lies in a sub-folder."""
    annotations = []
    for number, stem in enumerate(("a", "b", "sub/c d ü#")):
        ids = np.full((6, 8), number + 1)
        ids[:2] = 0
        for kind in ("images", "segments"):
            (tmp_path / kind / stem).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"segments/{stem}.png").write_bytes(encode_segment_ids(ids))
        Image.new("RGB", (8, 6)).save(tmp_path / f"images/{stem}.jpg")
        annotations.append((stem, (6, 8), describe_segments(ids, {number + 1: number})))
    text = format_panoptic_file(annotations, ["cat", "dog", "sky"], ["cat", "dog"])
    content = json.loads(text)
    for each in content["categories"]:
        each["id"] = CATEGORY_IDS[each["id"]]
    for each in content["annotations"]:
        each["segments_info"][0]["category_id"] = CATEGORY_IDS[each["segments_info"][0]["category_id"]]
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path


def pair(folder: Path) -> Any:
    return pair_panoptic(folder / "images", folder / "segments", folder / "set.json", CATEGORY_IDS, remedy="prepare it")


def test_pairs_have_class_indices(folder: Path) -> None:
    found = pair(folder)
    assert [Path(each["file_name"]).stem for each in found.pairs] == ["a", "b", "c d ü#"]
    assert [each["segments_info"] for each in found.pairs] == [[segment(n + 1, n)] for n in range(3)]
    assert found.pairs[2]["pan_seg_file_name"] == str(folder / "segments/sub/c d ü#.png")
    assert not found.images_without_label + found.labels_without_image


def test_what_has_no_partner_is_reported(folder: Path) -> None:
    Image.new("RGB", (8, 6)).save(folder / "images/new.jpg")
    (folder / "segments/b.png").unlink()
    (folder / "segments/orphan.png").write_bytes((folder / "segments/a.png").read_bytes())
    for kind, ending in (("images", "jpg"), ("segments", "png")):
        (folder / kind / f"sub/c d ü#.{ending}").unlink()
    found = pair(folder)
    assert [Path(each["file_name"]).stem for each in found.pairs] == ["a"]
    assert [Path(each).name for each in found.images_without_label] == ["b.jpg", "new.jpg"]
    assert [Path(each).name for each in found.labels_without_image] == ["orphan.png", "c d ü#.png"]


def test_an_image_that_is_not_in_the_file_has_no_label(folder: Path) -> None:
    content = json.loads((folder / "set.json").read_text())
    del content["annotations"][0]
    (folder / "set.json").write_text(json.dumps(content))
    assert [Path(each).name for each in pair(folder).images_without_label] == ["a.jpg"]
    content["annotations"].clear()
    (folder / "set.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"no image in .*images is in .*set.json; prepare it"):
        pair(folder)


def change_segment(**changes: Any) -> Any:
    return lambda content: content["annotations"][1]["segments_info"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_segment(id="2"), r"has the segment \{'category_id': 3, 'id': '2', 'iscrowd': 0\} in b.png"),
        (change_segment(id=0), "needs an id of its own in 1..16777215"),
        (change_segment(id=1 << 24), "needs an id of its own"),
        (change_segment(id=True), "needs an id of its own"),
        (change_segment(category_id=2), "a category_id of the file's categories"),
        (change_segment(category_id=[1]), "a category_id of the file's categories"),
        (change_segment(iscrowd=2), "iscrowd 0 or 1"),
        (lambda content: content["annotations"][1]["segments_info"].append(3), "has the segment 3 in b.png"),
        (lambda content: content["annotations"][1]["segments_info"].append(
            {"id": 2, "category_id": 1}), "needs an id of its own"),
        (lambda content: content["categories"].pop(), r"has the category ids 1, 3, and not those .*: 92 are in one"),
        (lambda content: content.pop("annotations"), r"is not of COCO's panoptic format \(KeyError: 'annotations'\)"),
        (lambda content: content["annotations"][1].update(segments_info=5), "is not of COCO's panoptic format"),
        (lambda content: content["categories"][0].update(id=float("inf")), "format .OverflowError"),
        (lambda content: content["annotations"].append(content["annotations"][0]), "two annotations one file name"),
        (lambda content: content["categories"].append(content["categories"][0]), "two categories have one id"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_the_value(folder: Path, change: Any, message: str) -> None:
    content = json.loads((folder / "set.json").read_text())
    change(content)
    (folder / "set.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        pair(folder)
    assert str(folder / "set.json") in str(caught.value)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set.json is not of COCO's panoptic format \(JSONDecodeError"):
        pair(folder)
    (folder / "set.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"set.json does not exist; prepare it"):
        pair(folder)
    with pytest.raises(FileNotFoundError, match="image folder .*none does not exist; prepare it"):
        pair_panoptic(folder / "none", folder / "segments", folder / "set.json", CATEGORY_IDS, remedy="prepare it")


def test_a_file_is_parsed_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = panoptic.read_panoptic_file
    monkeypatch.setattr(panoptic, "read_panoptic_file", lambda *args, **more: calls.append(args) or read(*args, **more))
    assert pair(folder) == pair(folder)
    assert len(calls) == 1
    os.utime(folder / "set.json", ns=(1, 1))
    pair(folder)
    assert len(calls) == 2
