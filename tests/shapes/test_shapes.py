"""The shapes world: the same pictures from the same seed, masks that fit, captions that are true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.shapes.__main__ import main
from san.shapes.captions import (
    Caption,
    facts,
    join_names,
    sibling_captions,
    word_caption,
    write_caption,
)
from san.shapes.dataset import (
    BENCHMARKS,
    IGNORE_LABEL,
    NARROW_TRAIN,
    NARROW_VAL,
    SHAPES_SPLITS,
    ShapesSizes,
    ensure_written,
    split_images,
    write_shapes,
)
from san.shapes.pretraining import FACTS, CaptionStyle, crop_bank, picture_bank, true_pairs, turned, write_captions
from san.shapes.render import render
from san.shapes.world import (
    COLOURS,
    FAR,
    FAR_WORDS,
    GROUNDS,
    NAMES,
    NARROW_SEEN,
    NEAR,
    NOVEL,
    SCENE_SIZE,
    SEEN,
    SHAPES,
    THINGS,
    SceneStyle,
    class_index,
    draw_scene,
    scene_at,
)
from san.vocabulary.label_sets import LabelSet

SMALL = ShapesSizes(num_train=6, num_val=3)
TRAIN, VAL_SEEN, VAL_NOVEL, VAL_MIXED = SHAPES_SPLITS


def is_true(caption: Caption, names: Iterable[str]) -> bool:
    """Whether all that the caption states holds for a picture with these names."""
    return caption.names <= facts(names)


def test_world_has_the_classes_it_promises() -> None:
    assert len(SEEN) == 24 and len(NOVEL) == 8 and len(GROUNDS) == 4
    assert set(SEEN) | set(NOVEL) == set(THINGS) and not set(SEEN) & set(NOVEL)
    for words in (COLOURS, SHAPES):  # every colour and every shape is known from masks, only the combination is not
        assert all(any(word in name.split() for name in SEEN) for word in words)
    assert [class_index(name) for name in NAMES] == list(range(36))
    with pytest.raises(ValueError, match="no class 'pink star'"):
        class_index("pink star")


def test_scenes_are_a_function_of_seed_and_index() -> None:
    alone = render([scene_at(3, 7)])
    among = render([scene_at(3, index) for index in (5, 6, 7)])
    np.testing.assert_array_equal(alone[0][0], among[0][2])
    np.testing.assert_array_equal(alone[1][0], among[1][2])
    assert scene_at(3, 7) != scene_at(4, 7)


LABEL_SUMS = [356626, 386981, 332827, 396564]
IMAGE_MEANS = [126.094, 101.07, 117.848, 95.088]


def test_images_have_not_changed() -> None:
    """The scenes of a seed are part of the benchmark: if a change is intended, raise `dataset.FORMAT`."""
    images, labels = render([scene_at(0, index) for index in range(4)])
    assert [int(label.astype(np.int64).sum()) for label in labels] == LABEL_SUMS
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), IMAGE_MEANS, atol=0.05)


def test_all_pictures_differ() -> None:
    images, _ = render([scene_at(0, index) for index in range(40)])
    assert len({image.tobytes() for image in images}) == 40


def test_half_size_is_what_clip_sees() -> None:
    """Rendered at 64 pixels, a scene looks like the mean over 2 x 2 pixels of the one rendered at 128."""
    scenes = [scene_at(0, index) for index in range(6)]
    full, half = render(scenes)[0], render(scenes, SCENE_SIZE // 2)[0]
    mean = full.reshape(6, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(mean - half).mean() < 6


def test_every_thing_is_visible_in_most_scenes() -> None:
    scenes = [scene_at(1, index) for index in range(40)]
    _, labels = render(scenes)
    shown = [
        (label == class_index(name)).sum() >= 40
        for scene, label in zip(scenes, labels, strict=True)
        for name in scene.names
    ]
    assert np.mean(shown) > 0.97


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_has_its_area(shape: str) -> None:
    style = SceneStyle(num_things=(1, 1), thing_size=(64.0, 64.0), margin=0.6)
    scene = draw_scene(np.random.default_rng(0), [f"red {shape}"], style)
    area = float((render([scene])[1] == class_index(f"red {shape}")).sum())
    expected = {"square": 1.6**2, "bar": 2 * 0.6, "ring": np.pi * (1 - 0.48**2), "star": 5 * 0.42 * np.sin(np.pi / 5)}
    assert area == pytest.approx(expected[shape] * np.prod(scene.things[0].radius), rel=0.03)


def test_too_few_names() -> None:
    with pytest.raises(ValueError, match="needs as many names"):
        draw_scene(np.random.default_rng(0), ["red star"])


# -- captions


def test_captions_name_what_is_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    for index in range(60):
        scene = scene_at(2, index)
        caption = write_caption(rng, scene.names)
        assert caption.names and is_true(caption, scene.names)
        assert all(name in caption.text for name in caption.names)
        named = {name for name in NAMES if name in caption.text}
        assert named == set(caption.names)


def test_all_combinations_occur_in_captions() -> None:
    rng = np.random.default_rng(0)
    said = set().union(*(write_caption(rng, scene_at(5, index).names).names for index in range(700)))
    assert said == set(NAMES)


def test_join_names() -> None:
    assert join_names(["red star"], None) == "a red star"
    assert join_names(["red star", "blue ring", "white bar"], "dotted ground") == (
        "a red star, a blue ring and a white bar on dotted ground"
    )
    assert join_names([], "plain ground") == "plain ground"


def test_hard_negatives_differ_in_one_word() -> None:
    siblings = sibling_captions(Caption("a photo of a red star.", frozenset(["red star"])))
    assert {caption.text for caption in siblings} == {f"a photo of a red {s}." for s in ("ring", "square", "bar")}
    assert len(sibling_captions(Caption("a plain ground", frozenset(["plain ground"])))) == 3
    assert len(sibling_captions(Caption("the bar", frozenset(["bar"])))) == 3
    assert sibling_captions(Caption("a red star on plain ground", frozenset(["red star", "plain ground"]))) == []


def test_word_captions() -> None:
    rng = np.random.default_rng(0)
    names = ("red star", "plain ground")
    shape, ground = word_caption(rng, names, ground=False), word_caption(rng, names, ground=True)
    assert shape is not None and shape.names == {"star"} and is_true(shape, names)
    assert ground is not None and ground.names == {"plain ground"}
    assert word_caption(rng, ("plain ground",), ground=False) is None
    assert facts(names) == {"red star", "star", "plain ground"}
    assert write_caption(rng, ("plain ground",)).names == {"plain ground"}


def test_true_pairs_count_every_true_caption() -> None:
    bank = picture_bank(7, 30, SceneStyle())
    captions = write_captions(np.random.default_rng(0), bank.names, CaptionStyle(siblings=1.0))
    pairs = true_pairs(bank.holds, captions)
    assert pairs.shape == (30, len(captions)) and bank.holds.shape == (30, len(FACTS))
    expected = [[is_true(caption, names) for caption in captions] for names in bank.names]
    np.testing.assert_array_equal(pairs, expected)
    assert pairs.any(axis=1).all() and not pairs.any(axis=0).all()  # unused siblings are hard negatives


def test_crops_show_their_thing() -> None:
    bank = crop_bank(8, 12)
    assert bank.images.shape == (12, 40, 40, 3)
    assert all(len(names) == 2 for names in bank.names)
    (images,) = turned(np.random.default_rng(0), bank.images)
    assert sorted(images[0].ravel()) == sorted(bank.images[0].ravel()) and not np.array_equal(images, bank.images)


# -- on disk


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root, SMALL)
    return root


def label_values(root: Path, folder: str) -> set[int]:
    files = sorted((root / "shapes" / "annotations" / folder).glob("*.png"))
    return set(np.unique(np.stack([np.asarray(Image.open(file)) for file in files])).tolist())


def test_layout(written: Path) -> None:
    for split in SHAPES_SPLITS:
        benchmark = BENCHMARKS[split.name]
        image_dir, label_dir = benchmark.folders(written)
        images, labels = sorted(image_dir.glob("*.jpg")), sorted(label_dir.glob("*.png"))
        assert [file.stem for file in images] == [file.stem for file in labels]
        assert len(images) == SMALL.count(split)
        assert Image.open(images[0]).size == Image.open(labels[0]).size == (SCENE_SIZE, SCENE_SIZE)
        assert isinstance(benchmark.labels, LabelSet) and benchmark.labels.classes == split.classes
    assert not [path for path in written.iterdir() if path.name != "shapes"]


def test_training_masks_hold_no_novel_class(written: Path) -> None:
    assert TRAIN.classes == SEEN + GROUNDS
    assert max(label_values(written, "train")) < len(TRAIN.classes)
    _, labels = split_images(TRAIN, 0, range(60))
    assert labels.max() < len(TRAIN.classes)


def test_validation_splits() -> None:
    novel = {class_index(name) for name in NOVEL}
    seen = {class_index(name) for name in SEEN + GROUNDS}
    values = {split.folder: set(np.unique(split_images(split, 0, range(30))[1]).tolist()) for split in SHAPES_SPLITS}
    assert values["val_seen"] <= seen
    assert values["val_novel"] <= novel | {IGNORE_LABEL}
    assert values["val_mixed"] & novel and values["val_mixed"] & seen and IGNORE_LABEL not in values["val_mixed"]
    _, mixed = split_images(VAL_MIXED, 0, range(10))
    assert all(set(np.unique(label).tolist()) & novel for label in mixed)


def test_narrow_world() -> None:
    """Near: known words, new combination. Far: a word that no training picture has. The small CLIP has read all."""
    assert (len(NARROW_SEEN), len(NEAR), len(FAR)) == (12, 6, 14)
    assert {*NARROW_SEEN, *NEAR, *FAR} == {*THINGS} and {*NARROW_SEEN} <= {*SEEN} and {*NEAR} <= {*NOVEL}
    words = {word for name in NARROW_SEEN for word in name.split()}
    assert words == {*COLOURS, *SHAPES} - FAR_WORDS
    assert all({*name.split()} <= words for name in NEAR)
    assert not any({*name.split()} <= words for name in FAR)
    for kinds, count in ((COLOURS, 2), (SHAPES, 4)):
        assert {sum(kind in name.split() for name in NARROW_SEEN) for kind in kinds if kind in words} == {count}


def test_narrow_split_is_written_when_it_is_named(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ensure_written(tmp_path, [NARROW_VAL, TRAIN.name])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*before}
    annotations = tmp_path / "shapes/annotations/train_narrow"
    annotations.mkdir()  # of a process that was killed between the two folders
    ensure_written(tmp_path, [NARROW_TRAIN.name])
    assert all(path.read_bytes() == content for path, content in before.items())
    image_dir, label_dir = BENCHMARKS[NARROW_TRAIN.name].folders(tmp_path)
    assert [path.stem for path in sorted(image_dir.iterdir())] == [path.stem for path in sorted(label_dir.iterdir())]
    assert len([*image_dir.iterdir()]) == SMALL.num_train and label_dir == annotations
    assert label_values(tmp_path, "train_narrow") <= {*range(len(NARROW_TRAIN.classes))}
    ensure_written(tmp_path, [NARROW_TRAIN.name])
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_narrow_scenes_hold_only_their_things() -> None:
    images, labels = split_images(NARROW_TRAIN, 0, range(40))
    scenes = [scene_at(0, index, NARROW_SEEN) for index in range(40)]
    pictures, places = render(scenes)
    np.testing.assert_array_equal(images, pictures)
    names = np.array([NARROW_TRAIN.classes.index(name) if name in NARROW_TRAIN.classes else 255 for name in NAMES])
    np.testing.assert_array_equal(labels, names[places])
    assert set(np.unique(labels).tolist()) == {*range(len(NARROW_SEEN + GROUNDS))}


def test_narrow_evaluation_has_groups_of_its_own() -> None:
    narrow, mixed = BENCHMARKS[NARROW_VAL], BENCHMARKS[VAL_MIXED.name]
    assert narrow.folders("a") == mixed.folders("a") and narrow.labels.classes == mixed.labels.classes == NAMES
    assert narrow.labels.groups == {"seen": NARROW_SEEN, "near": NEAR, "far": FAR, "grounds": GROUNDS}
    assert mixed.labels.groups == {"seen": SEEN, "novel": NOVEL, "grounds": GROUNDS}


def test_writing_twice_gives_the_same_files(written: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, SMALL)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(files) == 2 * (6 + 3 * 3) + 1
    for file in files:
        assert (written / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_writing_is_idempotent(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    write_shapes(written, SMALL)
    ensure_written(written)  # any sizes will do
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}


def test_other_sizes_are_refused_unless_overwritten(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    other = ShapesSizes(num_train=2, num_val=1, seed=1)
    with pytest.raises(ValueError, match="move it away"):
        write_shapes(tmp_path, other)
    write_shapes(tmp_path, other, overwrite=True)
    assert json.loads((tmp_path / "shapes" / "manifest.json").read_text())["seed"] == 1
    assert len(list((tmp_path / "shapes" / "images" / "train").iterdir())) == 2


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no manifest"):
        ensure_written(tmp_path)
    assert (tmp_path / "shapes" / "mine.txt").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("san.shapes.dataset._write_split", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shapes(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", str(tmp_path), "--num-train", "2", "--num-val", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "shapes")
    assert main([*arguments, "--seed", "1"]) == 1
    assert "move it away" in capsys.readouterr().err
    assert main(["--root", str(tmp_path), "--num-train", "0"]) == 1
    assert "num_train is 0" in capsys.readouterr().err
