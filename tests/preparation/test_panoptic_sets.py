"""The panoptic sets, from the raw download to registered records: exact segments, nothing done twice, wrong input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.data.benchmarks import PANOPTIC_BENCHMARKS
from san.data.panoptic import class_map, read_segment_ids
from san.evaluation.panoptic_files import read_panoptic
from san.preparation import PreparationOptions, check, prepare
from tests.data.raw_trees import PANOPTIC_MAKERS, RawTree, Sizes, make_raw_tree

SIZES = Sizes(train=4, val=3)


def options(tree: RawTree, root: Path, **changes) -> PreparationOptions:
    return PreparationOptions(**{"root": root, "raw": (tree.raw,), "partial": True} | changes)


def annotations_file(root: Path, registered: str) -> Path:
    return root / str(PANOPTIC_BENCHMARKS[registered].annotations)


def assert_exact(tree: RawTree, root: Path) -> None:
    """The same pixels in the same segments, with the true classes and crowds."""
    for registered, expected in tree.expected.items():
        pairing = PANOPTIC_BENCHMARKS[registered].pairing(root)
        assert [Path(pair["file_name"]).stem for pair in pairing.pairs] == sorted(expected)
        assert not pairing.images_without_label + pairing.labels_without_image
        for pair in pairing.pairs:
            stem, file, segments = Path(pair["file_name"]).stem, pair["pan_seg_file_name"], pair["segments_info"]
            ids, numbers = read_segment_ids(file), tree.segments[registered][stem]
            np.testing.assert_array_equal(class_map(ids, segments, 255, file), expected[stem])
            places = {tuple(pair) for pair in zip(ids.ravel().tolist(), numbers.ravel().tolist(), strict=True)}
            assert len(places) == len(np.unique(ids)) == len(np.unique(numbers)), "segments are the same"
            crowds = {each["id"] for each in segments if each["iscrowd"]}
            assert crowds == ({ids.max()} if tree.name == "coco_panoptic" else set())


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("archives", [False, True], ids=["unpacked", "archives"])
@pytest.mark.parametrize("name", PANOPTIC_MAKERS)
def test_download_becomes_the_registered_layout(name, archives, tmp_path):
    tree = make_raw_tree(name, tmp_path / "raw", archives=archives, sizes=SIZES)
    before, root = snapshot(tree.raw), tmp_path / "root"
    summary = prepare(name, options(tree, root))
    assert summary.good, summary
    assert_exact(tree, root)
    assert snapshot(tree.raw) == before, "the download is left as it came"
    assert [split.labels for split in summary.splits] == [4, 3]
    assert all(report.ok for report in check(name, options(tree, root)))
    for registered in tree.expected:  # `san pq` reads them, too
        found = read_panoptic(annotations_file(root, registered), PANOPTIC_BENCHMARKS[registered].folders(root)[1])
        assert len(found.things) == {"coco_panoptic": 80, "ade20k_panoptic": 100}[name]
    after = snapshot(root)
    again = prepare(name, options(tree, root))
    assert again.good and [split.written for split in again.splits] == [0, 0]
    assert snapshot(root) == after, "a second run writes nothing"


@pytest.mark.parametrize("name", PANOPTIC_MAKERS)
def test_download_may_lie_in_its_place_under_the_root_and_validation_is_enough(name, tmp_path):
    tree = make_raw_tree(name, tmp_path, sizes=SIZES)
    if name == "coco_panoptic":
        (tmp_path / "annotations").rename(tmp_path / "coco/annotations")
    else:
        (tmp_path / "annotations_instance").rename(tmp_path / "ADEChallengeData2016/annotations_instance")
    for path in list(tmp_path.rglob("*")):
        if path.is_file() and ("train2017" in str(path) or path.parent.name == "training"):
            path.unlink()
    assert prepare(name, PreparationOptions(root=tmp_path, partial=True, splits=("val",))).good
    tree.expected = {key: found for key, found in tree.expected.items() if "val" in key}
    assert_exact(tree, tmp_path)


def test_what_a_stopped_run_left_is_completed(tmp_path):
    """The JSON file is made again when a PNG is newer, also from two processes, with the same bytes."""
    tree = make_raw_tree("ade20k_panoptic", tmp_path / "raw", sizes=SIZES)
    root = tmp_path / "root"
    prepare("ade20k_panoptic", options(tree, root, workers=2))
    file = annotations_file(root, "ade20k_panoptic_val")
    whole, folder = file.read_text(encoding="utf-8"), file.with_suffix("")
    gone = min(folder.iterdir())
    gone.unlink()
    content = json.loads(whole)
    content["annotations"].pop(0)
    file.write_text(json.dumps(content))
    os.utime(file, ns=(0, 0))
    summary = prepare("ade20k_panoptic", options(tree, root))
    assert [split.written for split in summary.splits] == [0, 1] and summary.good
    assert file.read_text(encoding="utf-8") == whole
    file.unlink()
    assert prepare("ade20k_panoptic", options(tree, root)).good
    assert file.read_text(encoding="utf-8") == whole


def test_boxes_and_areas_are_those_of_the_segments(tmp_path):
    tree = make_raw_tree("ade20k_panoptic", tmp_path / "raw", sizes=SIZES)
    prepare("ade20k_panoptic", options(tree, tmp_path / "root"))
    file = annotations_file(tmp_path / "root", "ade20k_panoptic_val")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [each["file_name"] for each in content["images"]] == [f"ADE_val_{n:08d}.jpg" for n in (1, 2, 3)]
    for annotation in content["annotations"]:
        ids = read_segment_ids(file.with_suffix("") / annotation["file_name"])
        for each in annotation["segments_info"]:
            left, top, width, height = each["bbox"]
            inside = ids[top : top + height, left : left + width] == each["id"]
            assert each["area"] == inside.sum() == (ids == each["id"]).sum()
            assert inside.any(axis=0)[[0, -1]].all() and inside.any(axis=1)[[0, -1]].all()


def test_segments_of_another_program_are_refused_and_their_file_stays(tmp_path):
    tree = make_raw_tree("ade20k_panoptic", tmp_path / "raw", sizes=SIZES)
    root = tmp_path / "root"
    prepare("ade20k_panoptic", options(tree, root))
    file = annotations_file(root, "ade20k_panoptic_val")
    foreign = min(file.with_suffix("").iterdir())
    Image.new("RGB", (30, 30), (120, 120, 120)).save(foreign)
    os.utime(file, ns=(0, 0))
    before = file.read_bytes()
    (problem,) = prepare("ade20k_panoptic", options(tree, root)).splits[1].problems
    assert f"{foreign} was not written by this program" in problem and file.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "ADE_val_00000001.png does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "ADE_val_00000001.png"),
        (lambda path: Image.new("RGB", (9, 9)).save(path), "they are from different releases"),
        (lambda path: Image.new("RGB", Image.open(path).size, (101, 1, 0)).save(path), "holds the value 101"),
        (lambda path: Image.new("L", Image.open(path).size).save(path), "must have mode RGB"),
    ],
)
def test_wrong_instances_are_named_and_the_others_are_made(spoil, message, tmp_path):
    tree = make_raw_tree("ade20k_panoptic", tmp_path / "raw", sizes=SIZES)
    spoil(tree.raw / "annotations_instance/validation/ADE_val_00000001.png")
    _, val = prepare("ade20k_panoptic", options(tree, tmp_path / "root")).splits
    assert len(val.problems) == 1 and message in val.problems[0] and val.labels == 2
    pairing = PANOPTIC_BENCHMARKS["ade20k_panoptic_val"].pairing(tmp_path / "root")
    assert len(pairing.pairs) == 2
    assert [Path(each).name for each in pairing.images_without_label] == ["ADE_val_00000001.jpg"]


def test_coco_files_that_are_not_the_published_ones(tmp_path):
    tree = make_raw_tree("coco_panoptic", tmp_path / "raw", sizes=SIZES)
    file = tree.raw / "annotations/panoptic_val2017.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["categories"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic_val2017.json has the category ids 1, 2, 3 .*: 200 are in one"):
        prepare("coco_panoptic", options(tree, tmp_path / "root"))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic_val2017.json does not exist; unpack the download again"):
        prepare("coco_panoptic", options(tree, tmp_path / "root"))
    for path in (tree.raw / "annotations").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"COCO panoptic annotations not found.*from cocodataset.org"):
        prepare("coco_panoptic", options(tree, tmp_path / "other"))
