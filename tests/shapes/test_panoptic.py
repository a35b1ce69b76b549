"""Scenes in which a name occurs several times, and their sets on disk in COCO's panoptic format."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from san.cli.main import main
from san.data.panoptic import class_map, read_segment_ids
from san.shapes.dataset import BENCHMARKS, PANOPTIC_SPLITS, ShapesSizes, ensure_written, write_shapes
from san.shapes.panoptic import segments_of
from san.shapes.render import render
from san.shapes.world import GROUNDS, NAMES, NOVEL, SCENE_SIZE, SEEN, THINGS, repeated_scene_at, scene_at

SMALL = ShapesSizes(num_train=5, num_val=3)
TRAIN, VAL_SEEN, VAL_MIXED = PANOPTIC_SPLITS


def test_most_scenes_repeat_a_name_and_copies_often_touch() -> None:
    scenes = [repeated_scene_at(0, 1, index) for index in range(150)]
    numbers = [len(scene.things) for scene in scenes]
    assert {*numbers} == {3, 4, 5}
    most = [Counter(thing.name for thing in scene.things).most_common(1)[0] for scene in scenes]
    assert 0.75 < np.mean([count > 1 for _, count in most]) < 0.95
    assert {count for _, count in most} == {1, 2, 3}
    joined = visible = 0
    for scene, (name, count) in zip(scenes, most, strict=True):
        ids, names = segments_of(scene)
        own = [number for number, each in names.items() if each == name and (ids == number).any()]
        visible += len(own) > 1
        if len(own) > 1:
            components = ndimage.label(np.isin(ids, own), np.ones((3, 3)))[1]
            joined += components < len(own)
        assert count >= len(own)
    assert 0.3 < joined / visible < 0.8, "a component is not always one thing"


def test_scenes_are_a_function_of_seed_stream_and_index_and_differ_from_the_semantic_ones() -> None:
    assert repeated_scene_at(3, 1, 7) == repeated_scene_at(3, 1, 7)
    scenes = [repeated_scene_at(*key) for key in ((3, 1, 7), (4, 1, 7), (3, 2, 7), (3, 1, 8))]
    assert len({scene.noise_seed for scene in [*scenes, scene_at(3, 7), scene_at(1, 7)]}) == 6
    required = [repeated_scene_at(0, 3, index, required=NOVEL) for index in range(30)]
    assert all({*NOVEL} & {*scene.names} for scene in required)


def test_segments_are_those_of_the_picture() -> None:
    for index in range(20):
        scene = repeated_scene_at(0, 1, index)
        ids, names = segments_of(scene)
        _, (labels,) = render([scene])
        assert ids.min() >= 1 and names[len(scene.things) + 1] == scene.ground.name
        named = np.array(["", *names.values()], object)[ids]
        np.testing.assert_array_equal(named, np.array(NAMES, object)[labels])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root, SMALL)
    return root


def test_splits_are_written_when_they_are_named_and_others_stay(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ensure_written(tmp_path, ["shapes_sem_seg_train"])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*before}
    (tmp_path / "shapes/panoptic/images/val_seen").mkdir(parents=True)  # of a process that was killed between renames
    ensure_written(tmp_path, [VAL_SEEN.name, VAL_MIXED.name])
    assert all(path.read_bytes() == content for path, content in before.items())
    folder = tmp_path / "shapes/panoptic"
    assert sorted(path.name for path in folder.iterdir()) == [
        "images", "val_mixed", "val_mixed.json", "val_seen", "val_seen.json",
    ]  # fmt: skip
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ensure_written(tmp_path, [split.name for split in PANOPTIC_SPLITS])
    assert all(path.stat().st_mtime_ns == when for path, when in after.items() if path.is_file())
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    for split in PANOPTIC_SPLITS:
        benchmark = BENCHMARKS[split.name]
        pairing = benchmark.pairing(tmp_path)
        assert len(pairing.pairs) == SMALL.count(split) and not pairing.images_without_label
        assert benchmark.labels.things == tuple(name for name in split.classes if name in THINGS)
        assert benchmark.labels.groups == {"seen": SEEN, "novel": NOVEL, "grounds": GROUNDS}
        for pair in pairing.pairs:
            file = pair["pan_seg_file_name"]
            labels = class_map(read_segment_ids(file), pair["segments_info"], 255, file)
            names = {split.classes[index] for index in np.unique(labels).tolist()}
            assert names <= {*split.things, *GROUNDS} and 255 not in labels
            assert not split.required or names & {*split.required}
            with Image.open(pair["file_name"]) as image:
                assert image.size == (SCENE_SIZE, SCENE_SIZE)


def test_the_files_are_read_by_san_pq(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    ensure_written(tmp_path, [VAL_SEEN.name])
    file = str(tmp_path / "shapes/panoptic/val_seen.json")
    assert main(["pq", file, file, "--out", str(tmp_path / "pq.json")]) == 0
    figures = json.loads((tmp_path / "pq.json").read_text())
    assert figures["PQ"] == figures["PQ-things"] == figures["PQ-stuff"] == 100
