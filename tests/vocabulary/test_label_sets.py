from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from san.clip.loader import load_clip
from san.clip.prompt_length import cut_remarks
from san.clip.templates import load_templates
from san.data.benchmarks import BENCHMARKS
from san.vocabulary.label_sets import LABEL_SETS, check_label_values, expanded_names, load_label_set
from san.vocabulary.vocabulary import Vocabulary

PUBLISHED = {
    "coco_stuff_171": 171,
    "voc_20": 20,
    "pascal_context_59": 59,
    "pascal_context_459": 459,
    "ade20k_150": 150,
    "ade20k_847": 847,
}
COUNTS = PUBLISHED | {"coco_panoptic_133": 133, "shapes_36": 36}

HERE = Path(__file__).resolve().parent
OUTSIDE = Path(os.environ.get("SAN_LABELS_DIR") or HERE.parents[2] / "shared" / "labels")
"""The reference facts next to the repository, if they exist; `labels/` here is a copy of them."""

REFERENCES = [HERE / "labels", *([OUTSIDE] if OUTSIDE.is_dir() else [])]


def read_reference(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("folder", REFERENCES, ids=["copy", "original"][: len(REFERENCES)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_label_set_is_the_published_one(name: str, folder: Path) -> None:
    """Names, order, count, ids, raw values and ignore label, as published."""
    labels, facts = load_label_set(name), read_reference(folder, name)
    assert list(labels.classes) == facts["classes"]
    assert labels.num_classes == facts["num_classes"] == PUBLISHED[name]
    assert len({text.casefold().replace(" ", "") for text in labels.classes}) == labels.num_classes
    assert labels.ignore_label == facts["ignore_label"]
    assert labels.label_dtype == facts["label_dtype"]
    assert labels.ignore_label not in range(labels.num_classes)
    ids = next(facts[key] for key in ("raw_values", "original_ids", "ids") if key in facts)
    assert list(labels.raw_values) == ids
    assert labels.things[: facts.get("num_thing_classes", 0)] == labels.classes[: facts.get("num_thing_classes", 0)]
    assert list(labels.absent_in_val) == facts.get("val_absent_indices", [])
    assert labels.official_numbers == (tuple(facts["official_59_numbers"]) if "official_59_numbers" in facts else None)
    if name == "coco_stuff_171":
        assert list(labels.category_ids or ()) == facts["ids"]
        assert not {int(each) for each in facts["unused_ids"]} & set(facts["ids"])
    else:
        assert labels.category_ids is None


@pytest.mark.parametrize("folder", REFERENCES, ids=["copy", "original"][: len(REFERENCES)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_registered_names_folders_and_counts_are_the_published_ones(name: str, folder: Path) -> None:
    facts = read_reference(folder, name)
    splits = [benchmark for benchmark in BENCHMARKS.values() if benchmark.label_set == name]
    assert [split.name for split in splits] == facts["dataset_names"]
    assert [split.image_dir for split in splits] == facts["image_dirs"]
    assert [split.label_dir for split in splits] == facts["label_dirs"]
    assert [split.num_images for split in splits] == facts["num_images"]
    assert {split.image_ext for split in splits} == {facts["image_ext"]}
    assert {split.label_ext for split in splits} == {facts["label_ext"]}
    assert [split.shared_images for split in splits] == [name == "voc_20"] * 2


@pytest.mark.skipif(len(REFERENCES) == 1, reason="the reference facts do not lie beside the repository")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_copy_is_one(name: str) -> None:
    assert read_reference(REFERENCES[0], name) == read_reference(REFERENCES[1], name)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_set(name: str) -> None:
    labels = load_label_set(name)
    assert labels.num_classes == COUNTS[name] == len(set(labels.classes))
    assert len(set(labels.raw_values)) == labels.num_classes
    assert all(text == text.strip() and text for text in labels.classes)
    assert labels.ignore_label == {"uint8": 255, "uint16": 65535}[labels.label_dtype]
    assert labels.ignore_label >= labels.num_classes


@pytest.mark.parametrize(
    ("name", "index", "text", "raw_value"),
    [
        ("coco_stuff_171", 0, "person", 0),
        ("coco_stuff_171", 11, "stop sign", 12),
        ("coco_stuff_171", 79, "toothbrush", 89),
        ("coco_stuff_171", 80, "banner", 91),
        ("coco_stuff_171", 170, "wood", 181),
        ("voc_20", 0, "aeroplane", 1),
        ("voc_20", 19, "tv", 20),
        ("pascal_context_59", 0, "aeroplane", 2),
        ("pascal_context_59", 1, "bag", 9),
        ("pascal_context_59", 49, "diningtable", 397),
        ("pascal_context_59", 58, "wood", 458),
        ("pascal_context_459", 430, "unknown", 431),
        ("ade20k_150", 8, "window", 9),
        ("ade20k_150", 6, "road, route", 7),
        ("ade20k_847", 0, "wall", 2978),
    ],
)
def test_classes_and_raw_values(name: str, index: int, text: str, raw_value: int) -> None:
    labels = load_label_set(name)
    assert labels.classes[index] == text
    assert labels.raw_values[index] == raw_value


def test_what_only_some_sets_have() -> None:
    coco = load_label_set("coco_stuff_171")
    assert coco.things == coco.classes[:80]
    semantic = {name for name in LABEL_SETS if not load_label_set(name).things}
    assert semantic == {"voc_20", "pascal_context_59", "pascal_context_459", "ade20k_847"}
    assert coco.category_ids == tuple(value + 1 for value in coco.raw_values)
    assert len(load_label_set("pascal_context_459").absent_in_val) == 459 - 345
    assert sorted(load_label_set("pascal_context_59").official_numbers or ()) == list(range(1, 60))
    assert load_label_set("voc_20").category_ids is None


def test_coco_s_panoptic_classes() -> None:
    """The 80 things of COCO-Stuff with their ids, then 53 stuff classes, of which those from 184 on are merged."""
    labels, stuff = load_label_set("coco_panoptic_133"), load_label_set("coco_stuff_171")
    assert labels.things == labels.classes[:80] == stuff.classes[:80]
    assert labels.category_ids == labels.raw_values and stuff.category_ids is not None
    assert labels.raw_values[:80] == stuff.category_ids[:80] and [*labels.raw_values] == sorted(labels.raw_values)
    names = dict(zip(labels.raw_values, labels.classes, strict=True))
    assert (names[92], names[118], names[145], names[171]) == ("banner", "wooden floor", "playing field", "brick wall")
    assert (names[184], names[187], names[199], names[200]) == ("tree", "sky", "wall", "rug")
    assert sum(184 <= value <= 200 for value in labels.raw_values) == 17
    assert not any(word in name for name in labels.classes for word in ("-", "merged", "other"))
    assert len(labels.official_names) == 28 and {*labels.official_names.values()} <= {*labels.classes[80:]}
    assert labels.official_names["wall-other-merged"] == "wall" and "river" not in labels.official_names


def test_ade_s_instance_classes() -> None:
    """The 100 classes of the instance benchmark, in its order, which is that of the scene-parsing classes."""
    labels = load_label_set("ade20k_150")
    assert len(labels.things) == len(set(labels.things)) == 100 and {*labels.things} < {*labels.classes}
    indices = [labels.classes.index(name) for name in labels.things]
    assert indices == sorted(indices)
    of_number = {number: labels.things[number - 1].split(",")[0] for number in (1, 4, 31, 59, 66, 78, 92, 100)}
    assert of_number == {
        1: "bed", 4: "person", 31: "stairs", 59: "plane", 66: "ship", 78: "step", 92: "trash can", 100: "flag",
    }  # fmt: skip
    stuff = {name.split(",")[0] for name in labels.classes} - {name.split(",")[0] for name in labels.things}
    assert {"wall", "base", "grandstand", "tower", "crt screen", "pier", "blanket", "tank", "cradle"} <= stuff
    assert len(stuff) == 50


def test_unknown_label_set_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'ade20k_150'"):
        load_label_set("ade20k_15")


def test_benchmarks() -> None:
    assert len(BENCHMARKS) == 12
    assert {benchmark.label_set for benchmark in BENCHMARKS.values()} == set(PUBLISHED)
    assert set(LABEL_SETS) == set(COUNTS)
    full = BENCHMARKS["ade20k_full_sem_seg_val"]
    assert (full.labels.num_classes, full.label_ext, full.num_images) == (847, "tif", 2000)
    images, labels = full.folders("root")
    assert images.as_posix() == "root/ADE20K_2021_17_01/images_detectron2/validation"
    assert labels.as_posix() == "root/ADE20K_2021_17_01/annotations_detectron2/validation"
    for benchmark in BENCHMARKS.values():
        assert benchmark.label_ext == {"uint8": "png", "uint16": "tif"}[benchmark.labels.label_dtype]


def test_check_label_values() -> None:
    check_label_values([0, 4, 255], 5, 255)
    with pytest.raises(ValueError, match=r"a\.png holds the value -1, 5 but only 0\.\.4 and the ignore label 255"):
        check_label_values([5, 255, -1, 2], 5, 255, source="a.png")
    with pytest.raises(ValueError, match="255"):
        check_label_values([255], 5, None)
    with pytest.raises(ValueError, match="and 3 more"):
        check_label_values(range(10, 18), 5, 255)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_expanded_names_keep_the_classes_and_no_two_share_a_text(name: str) -> None:
    """`Vocabulary` checks that all texts are distinct as CLIP reads them."""
    classes, texts = load_label_set(name).classes, expanded_names(name)
    vocabulary = Vocabulary.label_set(name, "expanded")
    assert vocabulary.names == Vocabulary.label_set(name).names == classes
    assert {*texts} <= {*classes}
    assert [each for each in texts if texts[each] == (each,)] == []
    for each in vocabulary.classes:
        assert each.synonyms == texts.get(each.name, (each.name,))


def test_expanded_names_fit_into_clips_context() -> None:
    tokenizer = load_clip("tiny", None).tokenizer
    longest = max(load_templates("vild"), key=len)
    texts = {text for name in LABEL_SETS for own in expanded_names(name).values() for text in own}
    assert len(texts) > 700
    remarks = cut_remarks({text: [longest.format(text)] for text in texts}, tokenizer, 77)
    assert not remarks
    assert cut_remarks({"x": [longest.format("word " * 90)]}, tokenizer, 77)


def test_an_unknown_label_set_has_no_expanded_names() -> None:
    with pytest.raises(ValueError, match="unknown label set 'voc_21'; did you mean 'voc_20'"):
        expanded_names("voc_21")
    with pytest.raises(ValueError, match="the names of a label set are 'long'; give one of default, expanded"):
        Vocabulary.label_set("voc_20", "long")
