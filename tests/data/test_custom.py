"""Data set files: what they may say, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from san.data.custom import KEYS, load_custom_dataset
from san.vocabulary.classes import ClassText

FULL: dict[str, Any] = {
    "name": "roofs",
    "classes": ["roof", "road | street", {"name": "tree", "synonyms": "tree, bush"}, {"name": "sofa"}],
    "splits": {"train": {"images": "train/images", "labels": "train/labels"}, "val": {"list": "val.txt"}},
    "image_ext": ["jpg", ".JPG"],
    "label_ext": "tif",
    "ignore_label": 65535,
    "label_mapping": {10: "roof", 20: 1, 30: "tree", 0: "ignore"},
    "unmapped": "ignore",
}

CLASSES = (
    ClassText("roof", ("roof",)),
    ClassText("road", ("road", "street")),
    ClassText("tree", ("tree", "bush")),
    ClassText("sofa", ("sofa",)),
)


def write(folder: Path, content: Any, name: str = "roofs.yaml") -> Path:
    path = folder / name
    text = json.dumps(content) if name.endswith("json") else yaml.safe_dump(content, sort_keys=False)
    path.write_text(content if isinstance(content, str) else text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["roofs.yaml", "roofs.yml", "roofs.json"])
def test_everything_a_file_may_say(tmp_path: Path, name: str) -> None:
    assert set(FULL) <= set(KEYS)
    dataset = load_custom_dataset(write(tmp_path, FULL, name))
    assert dataset.name == "roofs"
    assert dataset.classes == CLASSES
    assert dataset.class_names == ("roof", "road", "tree", "sofa")
    assert dataset.ignore_label == 65535
    assert dataset.label_mapping is not None
    assert dict(dataset.label_mapping.indices) == {10: 0, 20: 1, 30: 2, 0: 65535}
    assert dataset.label_mapping.unmapped == "ignore"
    train, val = dataset.splits
    assert (train.name, train.split, val.name, val.split) == ("roofs_train", "train", "roofs_val", "val")
    assert (train.image_dir, train.label_dir, train.list_file) == (
        tmp_path / "train/images", tmp_path / "train/labels", None,
    )  # fmt: skip
    assert (val.image_dir, val.label_dir, val.list_file) == (None, None, tmp_path / "val.txt")
    assert (train.image_ext, train.label_ext) == (("jpg", "JPG"), ("tif",))


def test_the_smallest_file(tmp_path: Path) -> None:
    content = {"name": "a", "classes": ["b"], "images": "/abs/images", "labels": "labels"}
    dataset = load_custom_dataset(str(write(tmp_path, content)))
    (split,) = dataset.splits
    assert (split.name, split.split) == ("a", "")
    assert (split.image_dir, split.label_dir) == (Path("/abs/images"), tmp_path / "labels")
    assert (split.image_ext, split.label_ext) == (("jpg",), ("png",))
    assert (dataset.ignore_label, dataset.label_mapping) == (255, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "# roofs\nroof\n\nroad | street\n  tree|bush\nsofa\n"),
        ("classes.json", json.dumps(FULL["classes"])),
        ("classes.yaml", yaml.safe_dump(FULL["classes"])),
        ("classes.TXT", "\ufeffroof\r\n  # lanes\r\nroad|street\r\n\r\ntree | bush\r\nsofa"),
    ],
)
def test_classes_in_a_file_of_their_own(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / name).write_bytes(content.encode())
    path = write(tmp_path, FULL | {"classes": f"lists/{name}"})
    assert load_custom_dataset(path).classes == CLASSES


@pytest.mark.parametrize(("number", "ignore_label"), [(255, 255), (256, 65535)])
def test_the_ignore_label_is_by_default_one_that_no_class_has(tmp_path: Path, number: int, ignore_label: int) -> None:
    path = write(tmp_path, {"name": "a", "classes": [f"class {i}" for i in range(number)], "list": "l.txt"})
    assert load_custom_dataset(path).ignore_label == ignore_label


def test_names_with_commas_stay_whole(tmp_path: Path) -> None:
    path = write(tmp_path, {"name": "a", "classes": ["road, route"], "list": "l.txt"})
    assert load_custom_dataset(path).classes == (ClassText("road, route", ("road, route",)),)


def test_names_that_clip_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    for other in ("\ufeffCafe\u0301\u200b", "ｃａｆé", "CAFÉ "):
        with pytest.raises(
            ValueError, match=r"classes in .* names the class .* twice, at index 0 and 1 \(once as 'café'"
        ):
            load_custom_dataset(write(tmp_path, MINIMAL | {"classes": ["café", other]}))
    content = MINIMAL | {"classes": ["Straße", "Strasse\u200b"], "label_mapping": {1: "Strasse", 2: "straße\ufeff"}}
    dataset = load_custom_dataset(write(tmp_path, content))
    assert dataset.class_names == ("Straße", "Strasse")
    assert dataset.label_mapping is not None
    assert dataset.label_mapping.indices == ((1, 1), (2, 0))


MINIMAL = {"name": "roofs", "classes": ["roof", "road"], "images": "i", "labels": "l"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": ["x"]}, r"unknown key 'clases' in data set file .*roofs.yaml; did you mean 'classes'\?"),
        ({"name": None}, "name in .* is None"),
        ({"name": "my roofs"}, "name in .* is 'my roofs'; give up to 100 letters"),
        ({"name": "../up"}, "name in"),
        ({"classes": []}, "classes in .* give a list of class names"),
        ({"classes": {"roof": 0}}, "give a list of class names"),
        ({"classes": ["roof", True]}, r"classes in .*\[1\]: a class is True; give text .in quotes where YAML"),
        ({"classes": ["roof", " "]}, r"\[1\]: the name of a class is ' ', which is blank"),
        ({"classes": ["roof", "Roof"]}, "names the class 'Roof' twice, at index 0 and 1"),
        ({"classes": ["roof|tile", "road|tile"]}, "gives the text 'tile' to both 'roof' and 'road'"),
        ({"classes": ["roof|roof"]}, "the synonyms of class 'roof' hold 'roof' twice"),
        ({"classes": [{"nam": "roof"}]}, r"\[0\]: a class is {'nam': 'roof'}; give text"),
        ({"classes": [{"name": "roof", "synonyms": []}]}, "the synonyms of class 'roof' are .*; give text or a list"),
        ({"classes": [{"name": "roof", "synonyms": "tile,"}]}, "synonyms of class 'roof' is '', which is blank"),
        ({"ignore_label": 1}, "ignore_label .* is 1, which is the index of the class 'road'; .*'1: ignore'"),
        ({"ignore_label": 70000}, r"give a pixel value, 0\.\.65535"),
        ({"ignore_label": True}, "give a pixel value"),
        ({"unmapped": "ignore"}, "'unmapped' but no 'label_mapping'"),
        ({"label_mapping": []}, "label_mapping in .* give 'pixel value: class name' lines"),
        ({"label_mapping": {1: "rof"}}, r"maps to 'rof'; give a class name, an index 0\.\.1, or ignore"),
        ({"label_mapping": {1: 2}}, "maps to 2"),
        ({"label_mapping": {"roof": 1}}, "has the key 'roof'; give pixel values"),
        ({"label_mapping": {-1: "roof"}}, "pixel value -1"),
        ({"label_mapping": {1: "roof"}, "unmapped": "drop"}, "yaml: unmapped is .drop.; set it to refuse"),
        ({"label_mapping": {1: "roof"}, "classes": ["roof", "ignore"]}, "rename the class"),
        ({"list": "l.txt"}, "give 'images' and 'labels' .two folders., or 'list'"),
        ({"labels": 3}, "labels in .* is 3; give a path"),
        ({"splits": {"train": {"list": "a"}}}, "has both 'splits' and 'images'; write images, labels inside"),
        ({"image_ext": []}, r"image_ext in .* is \[\]; give a file ending"),
    ],
)  # fmt: skip
def test_wrong_values(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_custom_dataset(write(tmp_path, MINIMAL | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "splits in .* is {}"),
        ({"train": {"images": "i"}}, r"splits.train in .* has images; give 'images' and 'labels'"),
        ({"train": {"imges": "i", "labels": "l"}}, "unknown key 'imges' in splits.train .*did you mean 'images'"),
        ({"a/b": {"list": "l"}}, "a key of splits in .* is 'a/b'"),
        ({"train": "l.txt"}, "splits.train in .* is 'l.txt'; give a mapping"),
    ],
)
def test_wrong_splits(tmp_path: Path, splits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_custom_dataset(write(tmp_path, {"name": "a", "classes": ["b"], "splits": splits}))


@pytest.mark.parametrize("missing", ["name", "classes", "images"])
def test_what_must_be_there(tmp_path: Path, missing: str) -> None:
    content = {key: value for key, value in MINIMAL.items() if key != missing}
    with pytest.raises(ValueError, match=f"has no '{missing}'" if missing != "images" else "has labels; give 'images'"):
        load_custom_dataset(write(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "name: a\nname: b\n", "the key 'name' is there twice"),
        ("a.yaml", "label_mapping: {1: a, 1: b}\n", "the key 1 is there twice"),
        ("a.json", '{"name": "a", "name": "b"}', "the key 'name' is there twice"),
        ("a.json", "{", "is not JSON"),
        ("a.yaml", "a: [", "is not plain YAML"),
        ("a.yaml", "name: !!python/object/apply:os.getpid []", "is not plain YAML"),
        ("a.yaml", "- a", "give a mapping with the keys name, classes"),
        ("a.yaml", "", "is None; give a mapping"),
        ("a.toml", "name = 1", r"ends in '.toml'; give a .yaml, .yml or .json file"),
    ],
)
def test_what_is_no_plain_file(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_custom_dataset(write(tmp_path, content, name))
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data set file gone.yaml does not exist"):
        load_custom_dataset("gone.yaml")
    for content, message in (
        ("roof, road\n", "has one line, 'roof, road'; write one class a line"),
        ("", "is .*; give a"),
    ):
        (tmp_path / "short.txt").write_text(content)
        with pytest.raises(ValueError, match=f"class file .*short.txt {message}"):
            load_custom_dataset(write(tmp_path, MINIMAL | {"classes": "short.txt"}))
    with pytest.raises(
        ValueError, match="class file .*classes.csv ends in '.csv'; give a file that ends in .txt, .json"
    ):
        load_custom_dataset(write(tmp_path, MINIMAL | {"classes": "classes.csv"}))
    with pytest.raises(FileNotFoundError, match=r"class file .*gone.txt does not exist"):
        load_custom_dataset(write(tmp_path, MINIMAL | {"classes": "gone.txt"}))
    with pytest.raises(FileNotFoundError, match=r"class file .*gone.json does not exist"):
        load_custom_dataset(write(tmp_path, MINIMAL | {"classes": "gone.json"}))
    (split,) = load_custom_dataset(write(tmp_path, MINIMAL)).splits
    with pytest.raises(FileNotFoundError, match=r"image folder .* does not exist; correct the folders of .*'roofs'"):
        split.pairing()
