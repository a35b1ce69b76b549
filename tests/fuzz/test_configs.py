"""Configurations from arbitrary input: a configuration, ValueError or FileNotFoundError."""

# ruff: noqa: PT017 (an example is either taken or refused with such a message)

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from san.d2.config.keys import san_cfg
from san.d2.config.yaml_file import leaf_keys, merge_file, merge_overrides
from san.data.custom import load_custom_dataset
from san.io.plain_file import parse_yaml, read_plain_file
from tests.fuzz.malformed import mutated

KEYS = leaf_keys(san_cfg())
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["1e-4", "cuda", "a,b"])
)
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner))
KEY = st.sampled_from(KEYS) | st.text(max_size=20)

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
)
ENDLESS = "a: &a [*a]\n"
DEEP = "[" * 5000


def attempt(action, *arguments):
    """Runs it; the documented errors are one line each, others come through."""
    try:
        return action(*arguments)
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
        assert len(str(error)) < 20_000, "an error is for a person"
        return None


@given(st.lists(st.tuples(KEY, st.one_of(SCALARS.map(str), PLAIN.map(repr))), max_size=4))
@example([("SEED", "(" * 5000)])
@example([("SEED", "9" * 5000)])
@example([("DATASETS.TRAIN", "[" * 300)])
@example([("SOLVER.BASE_LR", "__import__('os').system('true')")])
def test_key_value_pairs(pairs):
    attempt(merge_overrides, san_cfg(), pairs)


@settings(max_examples=80)
@given(st.dictionaries(KEY, PLAIN, max_size=3))
def test_yaml_files(tmp_path, content):
    nested: dict = {}
    for key, value in content.items():
        *sections, leaf = key.split(".")
        node = nested
        for section in sections:
            inner = node.setdefault(section, {})
            node = inner if isinstance(inner, dict) else node
        node[leaf] = value
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(nested), encoding="utf-8")
    attempt(merge_file, san_cfg(), str(path))


ODD_YAML = {
    "billions": LAUGHS,
    "endless": ENDLESS,
    "deep": DEEP,
    "self": "a: &a\n  b: *a\n",
    "merge": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n<<: 5\n",
    "bool": "a: !!bool maybe",
    "date": "a: !!timestamp never",
    "no such day": "a: 2024-99-99",
    "int": "a: !!int x",
    "empty int": "a: !!int ''",
    "list as key": "{[1]: 2}",
    "binary": "a: !!binary x",
    "zero": "a: \0",
    "control": "a: \x07",
    "two": "a: 1\n---\nb: 2\n",
    "nobody's home": "_BASE_: ~nobodyatall/x.yaml\n",
    "long path": f"_BASE_: {'x' * 5000}.yaml\n",
    "zero path": '_BASE_: "a\\0b.yaml"\n',
    "numbers as keys": "1: 2\n",
    "half a pair": '"\\ud800": 1\n',
}


@pytest.mark.parametrize("name", ODD_YAML)
def test_odd_yaml(name, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(ODD_YAML[name].encode("utf-8", "surrogatepass"))
    with pytest.raises((ValueError, FileNotFoundError), match=r"x\.yaml"):
        merge_file(san_cfg(), str(path))


@pytest.mark.parametrize("text", [LAUGHS, ENDLESS, DEEP], ids=["billions", "endless", "deep"])
def test_small_files_that_expand_to_huge_data_are_refused(text):
    with pytest.raises(ValueError, match=r"over [\d,]+ values|levels deep|nesting depth"):
        parse_yaml(text)


def test_anchors_are_no_crime():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a]") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}],
    }


def read(place: str, evil: Path, path: Path):
    """Reads the evil file itself, or the one that names it."""
    if place in ("configuration", "its base"):
        return merge_file(san_cfg(), str(evil if place == "configuration" else path))
    return load_custom_dataset(evil if place == "data set file" else path)


CODE = "!!python/object/apply:os.system ['touch {marker}']"


@pytest.mark.parametrize("place", ["configuration", "its base", "data set file", "class file"])
def test_a_tag_that_runs_code_is_refused_and_named(place, tmp_path):
    marker = tmp_path / "ran"
    code = CODE.format(marker=marker)
    evil, path = tmp_path / "evil.yaml", tmp_path / "x.yaml"
    evil.write_text(
        f"SEED: {code}\n" if "file" not in place else f"- {code}\n" if place == "class file" else f"name: {code}\n"
    )
    path.write_text(
        "_BASE_: evil.yaml\n" if place == "its base" else "name: a\nclasses: evil.yaml\nimages: a\nlabels: b\n"
    )
    with pytest.raises(ValueError, match=r"evil\.yaml.*python/object/apply:os\.system"):
        read(place, evil, path)
    assert not marker.exists()


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "classes",
                "splits",
                "images",
                "labels",
                "list",
                "image_ext",
                "ignore_label",
                "label_mapping",
                "unmapped",
            ]
        ),
        PLAIN
        | st.sampled_from(
            [
                "a",
                "roof, road",
                "~nobodyatall/x",
                "x" * 5000 + ".txt",
                ["a", "b"],
                {"train": {"images": "a", "labels": "b"}},
            ]
        ),
    )
)
def test_data_set_files(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    attempt(load_custom_dataset, path)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_mutated_data_set_files(form, tmp_path, repo):
    good = (
        b'{"name": "roofs", "classes": ["roof|house", "road"], "images": "a", "labels": "b", '
        b'"label_mapping": {"3": "road"}}'
    )
    if form == "yaml":
        good = (
            b"name: roofs\nclasses:\n  - roof|house\n  - {name: road, synonyms: [street]}\n"
            b"splits:\n  train: {images: a, labels: b}\nlabel_mapping: {3: road}\n"
        )
    rng, path, taken = random.Random(0), tmp_path / f"x.{form}", 0
    for _ in range(300):
        content = good
        for _ in range(rng.randint(1, 3)):
            content = mutated(content, rng)
        path.write_bytes(content)
        taken += attempt(load_custom_dataset, path) is not None
    assert 0 < taken < 290


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, '{"a": 1, "a": 2}', "\ufeff\ufeff{}", ""],
    ids=["deep list", "deep mapping", "long number", "twice", "two marks", "empty"],
)
def test_odd_json(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_plain_file(path, "data set file")


def test_the_projects_own_files_pass(repo):
    for path in sorted(Path(repo / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert parse_yaml(text) == yaml.safe_load(text)
