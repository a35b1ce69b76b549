"""The file of a vocabulary from examples: what is written is read again, anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from san.vocabulary.bank import BankOptions, BankSettings
from san.vocabulary.classes import ClassText, ClassVector
from san.vocabulary.vocabulary import Vocabulary
from san.vocabulary.vocabulary_file import LearntClasses, read_learnt_classes, with_learnt

WIDTH = 8


@pytest.fixture
def learnt() -> LearntClasses:
    random = np.random.default_rng(0)
    numbers = random.normal(size=(5, WIDTH)).astype(np.float32)
    vector = ClassVector(numbers[0].tobytes(), "tiny", numbers[1].tobytes())
    classes = (
        ClassText("my mug", ("mug", "cup"), vector=vector),
        ClassText("Tür #1"),
        ClassText("sign", prompts=("a photo of a sign.",)),
    )
    parts = (np.zeros(2, np.int64), np.array([0.8, 1, 1], np.float32), np.zeros(3, np.float32))
    return LearntClasses(classes, "tiny", numbers[1], numbers[2:4], *parts)


@pytest.fixture
def path(tmp_path: Path, learnt: LearntClasses) -> Path:
    learnt.save(tmp_path / "new folder" / "ä b#.safetensors")
    return tmp_path / "new folder" / "ä b#.safetensors"


def test_what_is_written_is_read_again(path, learnt):
    found = read_learnt_classes(path)
    assert found.classes == learnt.classes and found.clip == "tiny"
    for name in ("probe", "examples", "example_class", "word_share", "bias"):
        assert np.array_equal(getattr(found, name), getattr(learnt, name))
    assert found.counts() == {"my mug": 2, "Tür #1": 0, "sign": 0}
    assert Vocabulary.parse(path) == Vocabulary(learnt.classes)


def rewritten(path: Path, note: dict[str, str | None] | None = None, **tensors: np.ndarray | None) -> Path:
    """The file with other metadata or tensors."""
    with safe_open(path, "np") as file:
        metadata = file.metadata() | (note or {})
    content = load_file(path) | tensors
    metadata = {name: value for name, value in metadata.items() if value is not None}
    save_file({name: value for name, value in content.items() if value is not None}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("note", "tensors", "message"),
    [
        ({"version": "3"}, {}, "version '3', but this SAN reads 1 and 2"),
        ({"version": "2"}, {}, "its tensors are"),
        ({"format": "pt"}, {}, "holds no vocabulary"),
        ({"classes": "{"}, {}, "make it again"),
        ({"classes": "[]"}, {}, "does not fit its classes"),
        ({"classes": json.dumps([{"name": "a", "vector": True}] * 3)}, {}, "twice"),
        ({"classes": json.dumps([{"name": "a", "vector": 1}, {"name": "b"}, {"name": "c"}])}, {}, "not true or false"),
        ({"classes": json.dumps([{"name": "a", "vector": False, "evil": 1}] * 3)}, {}, "unknown key 'evil'"),
        ({}, {"bias": None}, "its tensors are"),
        ({}, {"more": np.zeros(1)}, "its tensors are"),
        ({}, {"bias": np.full(3, np.nan, np.float32)}, "bias holds NaN"),
        ({}, {"vectors": np.full((3, WIDTH), np.inf, np.float32)}, "not 8 finite numbers"),
        ({}, {"vectors": np.zeros((3, WIDTH))}, "not float32"),
        ({}, {"probe": np.zeros(WIDTH)}, "its probe are float64, not float32"),
        ({}, {"examples": np.zeros((2, 4), np.float32)}, "examples has shape"),
        ({}, {"example_class": np.array([0, 3])}, "index outside of 0..2"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_kind_is_refused(path, note, tensors, message):
    with pytest.raises(ValueError, match=message) as error:
        read_learnt_classes(rewritten(path, note, **tensors))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def banked(learnt) -> LearntClasses:
    random = np.random.default_rng(1)
    parts = (random.normal(size=size).astype("<f4").tobytes() for size in (WIDTH, WIDTH**2))
    return learnt.with_bank(BankSettings(BankOptions(5, 0.1, 0.25), *parts))


@pytest.fixture
def banked_path(tmp_path: Path, banked: LearntClasses) -> Path:
    banked.save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_a_bank_is_read_as_it_was_written(banked, banked_path, learnt, path):
    found = read_learnt_classes(banked_path)
    assert found.bank == banked.bank and found.classes == banked.classes and banked.classes != learnt.classes
    assert found.examples.dtype == np.float16 and np.array_equal(found.examples, learnt.examples.astype(np.float16))
    vector, plain = (each.classes[0].vector for each in (found, learnt))
    assert np.array_equal(np.frombuffer(vector.examples, "<f2").reshape(2, WIDTH), found.examples)
    assert vector.values == plain.values and repr(vector) != repr(plain) and len(repr(vector)) < 180
    assert found.classes[1:] == learnt.classes[1:]  # without examples
    other = replace(banked.bank, options=BankOptions(5, 0.1, 0.3))
    assert repr(banked.with_bank(other).classes[0].vector) != repr(vector)  # `san predict` compares them
    with safe_open(path, "np") as content:  # without a bank it is a file that an older SAN reads
        assert content.metadata()["version"] == "1" and "bank" not in content.metadata()


@pytest.mark.parametrize(
    ("note", "tensors", "message"),
    [
        ({"version": "1"}, {}, "its tensors are"),
        ({"bank": "{"}, {}, "make it again"),
        ({"bank": None}, {}, "its metadata has no 'bank'"),
        ({"bank": "[" * 100_000}, {}, "nested too deeply"),
        ({"bank": '{"weight": 2}'}, {}, "bank.weight is 2"),
        ({"bank": '{"weigth": 0.2}'}, {}, "did you mean 'weight'"),
        ({}, {"bank_mean": None}, "its tensors are"),
        ({}, {"bank_mean": np.zeros(3, np.float32)}, "mean of the bank is not 8 finite"),
        ({}, {"bank_whitening": np.full((WIDTH, WIDTH), np.nan, np.float32)}, "whitening of the bank is not 64 finite"),
        ({}, {"bank_whitening": np.zeros((WIDTH, WIDTH))}, "bank_whitening are float64, not float32"),
        ({}, {"examples": np.zeros((2, WIDTH), np.float32)}, "examples are float32, not float16"),
        ({}, {"examples": np.full((2, WIDTH), np.inf, np.float16)}, "examples holds NaN or infinite"),
        ({}, {"examples": np.zeros((3, WIDTH), np.float16)}, "examples has shape"),
    ],
)
def test_a_damaged_bank_is_refused(banked_path, note, tensors, message):
    with pytest.raises(ValueError, match=message) as error:
        read_learnt_classes(rewritten(banked_path, note, **tensors))
    assert str(banked_path) in str(error.value) and "\n" not in str(error.value)


def test_no_part_of_a_file_is_read_as_a_whole_one(path, tmp_path):
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:size])
        with pytest.raises(ValueError, match="make it again"):
            read_learnt_classes(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="check the path"):
        Vocabulary.from_file(tmp_path / "none.safetensors")


def test_weights_are_no_vocabulary(repo):
    with pytest.raises(ValueError, match="perhaps weights"):
        Vocabulary.from_file(repo / "san/shapes/assets/clip.safetensors")


def test_a_target_of_another_kind_is_refused(tmp_path, learnt):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        learnt.save(tmp_path / "folder.safetensors")
    with pytest.raises(ValueError, match="ends in '.pth'"):
        learnt.save(tmp_path / "a.pth")


def test_an_older_file_stays_if_writing_fails(path, learnt, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace(learnt, clip="other").save(path)
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("limit", ["_MAX_BYTES", "_MAX_HEADER"])
def test_a_file_that_would_not_be_read_is_not_written(limit, path, learnt, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(f"san.vocabulary.vocabulary_file.{limit}", 100)
    with pytest.raises(ValueError, match="at most .*100.* are read; use fewer examples or classes"):
        learnt.save(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    learnt.save(path)
    assert read_learnt_classes(path).classes == learnt.classes


def test_classes_of_a_data_set_are_replaced_by_name(learnt):
    mug, wall = learnt.classes[0], ClassText("wall")
    assert with_learnt(["My  MUG", wall, "sign"], learnt.classes) == (mug, wall, "sign")
    with pytest.raises(ValueError, match="none of the 1 classes is in the vocabulary file"):
        with_learnt([wall], learnt.classes)
    with pytest.raises(ValueError, match="none of the 1 classes"):
        with_learnt(["sign"], learnt.classes)  # it has no vector, so that nothing would change


def test_a_repr_is_short(learnt):
    assert len(repr(learnt.classes[0].vector)) < 60
