"""The descriptions in datasets/*.yaml on trees of their layout, and classes whose words are scored separately."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.d2.api import build_model
from san.d2.data.datasets import class_texts, load_records, metadata_of, register_custom
from san.d2.data.mapper import dataset_info, read_labels
from san.d2.evaluate.averaging import augmented
from san.data.custom import load_custom_dataset
from san.vocabulary.classes import ClassText, parse_class, separate_words
from san.vocabulary.vocabulary import Vocabulary

MakeCfg = Callable[..., Any]

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "datasets").glob("*.yaml"))


def write_pair(image: Path, label: Path, values: np.ndarray) -> None:
    for file, content in ((image, np.zeros((*values.shape, 3), np.uint8)), (label, values)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(file)


def path_of(folder: Path, ending: str) -> Path:
    """A file in a sub-folder, as of a city."""
    return folder / "sub" / (f"a_1{ending}" if ending.startswith("_") else f"a_1.{ending}")


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_description(tmp_path: Path, source: Path) -> None:
    """Every class is found in label maps of all raw values, of files named as the download's."""
    file = tmp_path / source.name
    shutil.copy(source, file)
    dataset = load_custom_dataset(file)
    count = len(dataset.classes)
    raw = [*range(count), 255] if dataset.label_mapping is None else dict(dataset.label_mapping.indices)
    values = np.array([*raw], np.uint8).repeat(4).reshape(-1, 4)
    for split in dataset.splits:
        if split.list_file is not None:
            voc = tmp_path / "VOC2012"
            write_pair(voc / "JPEGImages/2007_1.jpg", voc / "SegmentationClass/2007_1.png", values)
            (voc / "val.txt").write_text("2007_1\n")
            command = source.read_text().partition("#   awk")[2].partition("\n# Background")[0]
            command = "awk" + command.replace("\\\n#", " ").replace("datasets/", f"{tmp_path}/")
            subprocess.run(command, shell=True, check=True)
        else:
            assert split.image_dir is not None and split.label_dir is not None
            image, label = path_of(split.image_dir, split.image_ext[0]), path_of(split.label_dir, split.label_ext[0])
            write_pair(image, label, values)
    for name in register_custom(file):
        (record,) = load_records(name)
        found = read_labels(record, dataset_info(name, metadata_of(name)))
        assert set(np.unique(found)) - {dataset.ignore_label} == set(range(count)), name


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_head_of_a_description_is_its_command(source: Path) -> None:
    head = source.read_text()
    assert f"#   --dataset datasets/{source.name} --weights" in head
    assert "configs/eval/vit_b16/all.yaml" in head and (REPO / "configs/eval/vit_b16/all.yaml").is_file()


SCENE = ("plain", "striped", "dotted")
CLASSES = (ClassText("ground", SCENE, separate=True), ClassText("red star"), ClassText("thing", ("blue ring", "bar")))


def test_separate_words() -> None:
    words, owners = separate_words(("red star", *CLASSES))
    assert words == ("red star", *map(ClassText, SCENE), *CLASSES[1:])
    assert owners == (0, 1, 1, 1, 2, 3)
    assert separate_words(("a", ClassText("b"))) == (("a", ClassText("b")), (0, 1))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"name": "a", "separate": True}, "separate of class 'a' is True with 0 synonyms; give true with two or more"),
        ({"name": "a", "synonyms": ["b", "c"], "separate": "yes"}, "separate of class 'a' is 'yes'"),
    ],
)
def test_wrong_separate(item: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_class(item, ("synonyms", "separate"))


def test_separate_is_for_data_sets() -> None:
    with pytest.raises(ValueError, match="class 'ground' has 'separate', which is for the classes of a data set"):
        Vocabulary(CLASSES)
    with pytest.raises(ValueError, match="unknown key 'separate'"):
        Vocabulary.parse([{"name": "a", "synonyms": "b, c", "separate": True}])


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "TEST.AUG"])
def test_a_class_has_the_best_score_of_its_words(make_cfg: MakeCfg, averaged: bool) -> None:
    """A pixel has the class of its best word, among the words of all classes."""
    torch.manual_seed(0)
    cfg = make_cfg(TEST__AUG__MIN_SIZES=[64])
    plain = build_model(cfg).eval()
    model = augmented(cfg, plain) if averaged else plain
    image = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    words, owners = separate_words(CLASSES)
    with torch.no_grad():
        plain.set_vocabulary(CLASSES)
        (found,) = model([{"image": image}])
        plain.set_vocabulary(words)
        (each,) = model([{"image": image}])
    assert torch.equal(found["sem_seg_labels"], torch.tensor(owners)[each["sem_seg_labels"]])
    best = torch.stack([each["sem_seg"][[i for i, own in enumerate(owners) if own == c]].amax(0) for c in range(3)])
    assert torch.equal(found["sem_seg"], best)
    assert torch.equal(found["sem_seg"].argmax(0), found["sem_seg_labels"])


def test_separate_words_train_with_their_mean(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "{name: own, images: i, labels: l, classes: [a, {name: b, synonyms: [c, d], separate: true}]}"
    )
    (name,) = register_custom(tmp_path / "own.yaml")
    assert class_texts(name) == (ClassText("a"), ClassText("b", ("c", "d"), separate=True))
