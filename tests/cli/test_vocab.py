"""`san vocab`, as its user runs it: pictures or a data set become a file, which predicts and is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.cli.main import main
from san.d2.config.keys import load_config
from san.d2.data.datasets import prepare_datasets
from san.shapes.render import render
from san.shapes.world import NAMES, scene_at
from san.vocabulary.vocabulary_file import read_learnt_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten labelled pictures, and the files that describe them."""
    folder = tmp_path_factory.mktemp("ex ämples #")
    images, labels = render([scene_at(3, index) for index in range(10)])
    for kind, values in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for index, each in enumerate(values):
            Image.fromarray(each).save(folder / kind / f"{index}.png")
    description = {"name": "own", "classes": list(NAMES), "images": "images", "labels": "labels", "image_ext": "png"}
    (folder / "set.json").write_text(json.dumps(description), encoding="utf-8")
    thing = next(number for number in np.unique(labels[0]) if not NAMES[number].endswith("ground"))
    Image.fromarray((labels[0] == thing).astype(np.uint8)).save(folder / "mask.png")
    examples = [{"image": "images/0.png", "mask": "mask.png"}, {"image": "images/1.png", "box": [20, 20, 90, 90]}]
    rows = [{"name": "thing", "synonyms": ["star"], "examples": [*examples, {"image": "images/2.png"}]}, "plain ground"]
    (folder / "pictures.json").write_text(json.dumps({"classes": rows}), encoding="utf-8")
    return folder


def test_pictures_become_a_vocabulary_that_predicts(folder, tmp_path, capsys):
    vocabulary = tmp_path / "my words.safetensors"
    assert main(["vocab", str(folder / "pictures.json"), "--out", str(vocabulary)]) == 0
    assert "thing: 3 examples\nplain ground: words\n" in capsys.readouterr().out
    predict = ["predict", str(folder / "images" / "0.png"), "--vocab-file", str(vocabulary), "--out", str(tmp_path)]
    assert main([*predict, "--format", "json", "--quiet"]) == 0
    record = json.loads((tmp_path / "0.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in record["classes"]] == ["thing", "plain ground"]


def test_a_data_set_gives_examples_that_an_evaluation_uses(folder, tmp_path, capsys):
    vocabulary, novel = tmp_path / "own.safetensors", "red star, blue star"
    arguments = ["vocab", "--dataset", str(folder / "set.json"), "--examples", "2", "--out", str(vocabulary)]
    assert main(arguments) == 0
    counts = read_learnt_classes(vocabulary).counts()
    assert max(counts.values()) == 2 and sum(counts.values()) > 20
    assert main([*arguments, "--classes", novel, "--words", "0"]) == 0
    assert {name for name, count in read_learnt_classes(vocabulary).counts().items() if count} <= {*novel.split(", ")}
    capsys.readouterr()
    banked = tmp_path / "bank.safetensors"
    assert main([*arguments[:-1], str(banked), "--classes", novel, "--words", "0", "--bank"]) == 0
    assert "bank: " in capsys.readouterr().out
    metrics = []
    for number, more in enumerate(([], ["--vocab-file", str(vocabulary)], ["--vocab-file", str(banked)])):
        out = tmp_path / f"out{number}"
        evaluation = ["eval", "--config-file", "configs/shapes/san_shapes.yaml", "--weights", "shapes", *more]
        keys = ["DATASETS.TEST", "own", "TEST.NUM_PANELS", "0", "OUTPUT_DIR", str(out)]
        assert main([*evaluation, "--dataset", str(folder / "set.json"), *keys]) == 0
        metrics.append(json.loads((out / "inference" / "own" / "metrics.json").read_text(encoding="utf-8")))
    assert metrics[0] != metrics[1] != metrics[2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "classes in"),
        (["mug"], "has no example"),
        ([{"name": "mug", "examples": [{"image": 3}]}], "image of examples[0] of classes[0]"),
        ([{"name": "mug", "examples": [{}]}], "has no 'image'"),
        ([{"name": "mug", "examples": {"image": "a"}}], "give a list such as"),
        ([{"name": "mug", "examples": [{"image": "a.png", "boks": [1]}]}], "did you mean 'box'"),
        ([{"name": "mug", "examples": [{"image": "a.png", "box": [1, 2, True, 4]}]}], "left, top, right, bottom"),
        ([{"name": "mug", "examples": [{"image": "a.png", "mask": "none.png"}]}], "none.png"),
        ([{"name": "mug", "examples": [{"image": "none.png"}]}], "none.png"),
        ([{"name": "mug", "examples": [{"image": "a.png"}]}, "MUG"], "twice"),
        ([{"nam": "mug"}], "classes[0]"),
    ],
)
def test_a_wrong_file_of_pictures_is_refused(folder, tmp_path, capsys, rows, message):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "wrong.yaml").write_text(json.dumps({"classes": rows}), encoding="utf-8")
    assert main(["vocab", str(tmp_path / "wrong.yaml"), "--out", str(tmp_path / "x.safetensors")]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.safetensors"], "give a file that lists pictures"),
        (["{folder}/pictures.json", "--dataset", "{folder}/set.json", "--out", "x.safetensors"], "give a file that"),
        (["{folder}/pictures.json", "--out", "x.pth"], "ends in '.pth'"),
        (["--dataset", "{folder}/set.json", "--split", "val", "--out", "x.safetensors"], "has no split 'val'"),
        (["--dataset", "{folder}/set.json", "--classes", "cat", "--out", "x.safetensors"], "has no class 'cat'"),
        (["{folder}/pictures.json", "--words", "1.5", "--out", "x.safetensors"], "share of the words is 1.5"),
    ],
)
def test_a_wrong_command_line_is_refused(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["vocab", *(each.format(folder=folder) for each in arguments)]) == 1
    assert message in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_vocabulary_file_is_not_for_training_nor_for_other_classes(folder, tmp_path):
    assert main(["vocab", str(folder / "pictures.json"), "--out", str(tmp_path / "a.safetensors")]) == 0
    keys = ["DATASETS.TRAIN", "own", "DATASETS.TEST", "own", "TEST.VOCABULARY_FILE", str(tmp_path / "a.safetensors")]
    cfg = load_config("configs/shapes/san_shapes.yaml", keys, datasets=[str(folder / "set.json")])
    with pytest.raises(ValueError, match="for evaluations alone"):
        prepare_datasets(cfg)
    with pytest.raises(ValueError, match="data set own: none of the 36 classes is in the vocabulary file"):
        prepare_datasets(cfg, training=False)
