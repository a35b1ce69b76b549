"""Plain data files: how much one may hold, and what a value that is too long does to a message."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from san.data.custom import load_custom_dataset
from san.data.pairing import read_pair_list
from san.io import plain_file
from san.io.plain_file import parse_yaml, read_plain_file
from san.vocabulary.label_sets import load_label_set

MINIMAL = {"name": "a", "classes": ["roof"], "images": "i", "labels": "l"}


@pytest.mark.parametrize("ending", ["yaml", "json", "txt"])
def test_a_file_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(plain_file, "MAX_BYTES", 100)
    path = tmp_path / f"x.{ending}"
    read = read_pair_list if ending == "txt" else lambda path: read_plain_file(path, "class file")
    path.write_text('"' + "x" * 99 + '"')
    with pytest.raises(ValueError, match=rf"x\.{ending} has over 100 bytes, the limit"):
        read(path)
    path.write_text('"' + "x" * 98 + '"')
    if ending != "txt":
        assert read(path) == "x" * 98


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_file_of_too_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(plain_file, "MAX_VALUES", 100)
    path = tmp_path / f"x.{ending}"
    path.write_text(json.dumps([1] * 99))
    assert read_plain_file(path, "class file") == [1] * 99
    path.write_text(json.dumps([[1] * 50, {"a": 1}, [1] * 50]))
    with pytest.raises(ValueError, match=rf"x\.{ending} is not .*it holds over 100 values, the limit"):
        read_plain_file(path, "class file")


@pytest.mark.parametrize("options", [{}, {"as_written": True}])
def test_reading_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]) -> None:
    """The rest is not read: it is not YAML."""
    monkeypatch.setattr(plain_file, "MAX_VALUES", 100)
    with pytest.raises(ValueError, match="over 100 values"):
        parse_yaml("- 1\n" * 200 + "}", **options)
    with pytest.raises(ValueError, match="levels deep"):
        parse_yaml("- " * 101 + "}", **options)


def test_depth_counts_through_aliases() -> None:
    chain = "".join(f"x{i}: &x{i} [{f'*x{i - 1}' if i else 1}]\n" for i in range(200))
    with pytest.raises(ValueError, match="over 100 levels deep"):
        parse_yaml(chain)


@pytest.mark.parametrize("number", ["1" + ":1" * 600, "1" * 2000, "0x" + "1" * 2000, "1." + "1" * 2000])
def test_a_long_number_is_refused_before_it_is_made(number: str) -> None:
    with pytest.raises(ValueError, match=r"has over 1,000 characters; put text in quotes") as caught:
        parse_yaml(f"a: {number}")
    assert len(str(caught.value)) < 200
    assert parse_yaml(f"a: '{number}'") == {"a": number}


LONG = "x" * 100_000
LONG_VALUES = (
    *({**MINIMAL, key: LONG} for key in (*MINIMAL, "image_ext", "ignore_label", "label_mapping", "splits", "list")),
    {**MINIMAL, LONG: 1},
    {**MINIMAL, "classes": [LONG]},
    {**MINIMAL, "classes": [{"name": LONG}]},
    {**MINIMAL, "classes": [{"name": "x", "synonyms": LONG}]},
    {**MINIMAL, "classes": [{"name": "x", LONG: "y"}]},
    {**MINIMAL, "classes": [{LONG: "y"}]},
    {**MINIMAL, "label_mapping": {LONG: 0}},
    {**MINIMAL, "label_mapping": {"9" * 5000: 0}},
    {**MINIMAL, "label_mapping": {1: LONG}},
    {**MINIMAL, "label_mapping": {1: 0}, "unmapped": LONG},
    {"name": "a", "classes": ["x"], "splits": {LONG: {"list": "l"}}},
    {"name": "a", "classes": ["x"], "splits": {"train": {"list": LONG}}},
    {"name": "a", "classes": ["x"], "splits": {"train": LONG}},
)


@pytest.mark.parametrize("content", LONG_VALUES, ids=range(len(LONG_VALUES)))
def test_a_long_value_is_cut_in_the_message(tmp_path: Path, content: dict[object, object]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"x\.json") as caught:
        load_custom_dataset(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["x.yaml", "x.json"])
def test_a_large_data_set_file_takes_seconds(tmp_path: Path, name: str) -> None:
    """847 classes, all values of 16 bits mapped; it took half a minute when each was looked for among the others."""
    classes = list(load_label_set("ade20k_847").classes)
    content = {**MINIMAL, "classes": classes, "ignore_label": 65535}
    content["label_mapping"] = {value: classes[value % 847] for value in range(65535)}
    path = tmp_path / name
    path.write_text(json.dumps(content))  # YAML too
    start = time.process_time()
    mapping = load_custom_dataset(path).label_mapping
    assert mapping is not None
    assert mapping.indices[-1] == (65534, 65534 % 847)
    assert time.process_time() - start < 15
