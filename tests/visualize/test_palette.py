from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest

from san.shapes.world import COLOURS, NAMES, THINGS
from san.visualize import class_color, palette
from san.visualize.color_words import COLOR_WORDS, color_word
from san.visualize.oklab import oklab
from san.visualize.palette import MIN_DISTANCE
from san.vocabulary.label_sets import LABEL_SETS, load_label_set

KNOWN = [name for each in LABEL_SETS for name in load_label_set(each).classes]
WORDS = sorted({name for name in KNOWN if name.isalpha() and name.islower()})
"""Everyday words, each from some label set."""


def least_distance(names: list[str]) -> float:
    points = oklab(palette(names))
    found = np.linalg.norm(points[:, None] - points, axis=-1)
    return float(found[~np.eye(len(names), dtype=bool)].min())


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("shapes", 0.067),
        ("voc_20", 0.15),
        ("pascal_context_59", 0.09),
        ("ade20k_150", 0.06),
        ("coco_stuff_171", 0.057),
        ("pascal_context_459", 0.04),
        ("ade20k_847", 0.03),
    ],
)
def test_classes_of_one_set_are_well_apart_in_their_own_colors(name: str, least: float) -> None:
    """In Oklab, where 0.02 is about the smallest visible difference."""
    names = list(NAMES if name == "shapes" else load_label_set(name).classes)
    assert least_distance(names) >= least
    assert palette(names).tolist() == [list(class_color(each)) for each in names]  # nothing had to be moved


def test_any_words_are_apart() -> None:
    """1,000 vocabularies of eight everyday words; of their own colours, one in ten had two closer than 0.05."""
    generator = random.Random(0)
    least = [least_distance(generator.sample(WORDS, 8)) for _ in range(700)]
    least += [least_distance(generator.sample([*WORDS, "a green hat", "red wine"], 8)) for _ in range(300)]
    assert min(least) >= MIN_DISTANCE[32] == 0.08
    for size in MIN_DISTANCE:
        assert least_distance(generator.sample(sorted(set(KNOWN)), size)) >= MIN_DISTANCE[size]
    assert len(palette([f"word {index}" for index in range(5000)])) == 5000


def test_a_class_keeps_its_color_when_other_words_change() -> None:
    generator = random.Random(0)
    changed = 0
    for _ in range(200):
        words = generator.sample(WORDS, 9)
        changed += int((palette(words)[:8] != palette(words[:8])).any(axis=1).sum())
    assert changed < 0.02 * 8 * 200
    words = generator.sample(WORDS, 30)
    shuffled = generator.sample(words, 30)
    assert palette(words).tolist() == [palette(shuffled)[shuffled.index(word)].tolist() for word in words]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("green star", "green"),
        ("Red Car ", "red"),
        ("black and white cow", "black"),
        ("a grey-blue coat", "grey"),
        ("golden retriever", "yellow"),
        ("GRAY wolf", "grey"),
        ("orange", "orange"),
        *((thing, thing.split()[0]) for thing in THINGS),
    ],
)
def test_a_named_color_is_that_color(name: str, word: str) -> None:
    def nearest(color: np.ndarray) -> str:
        distance = np.linalg.norm(oklab(np.array(list(COLOR_WORDS.values()))) - oklab(color[None]), axis=1)
        return list(COLOR_WORDS)[int(distance.argmin())]

    assert nearest(np.array(class_color(name))) == word
    crowd = [name, *(f"{word} {other}" for other in WORDS[:8])]
    assert {nearest(color) for color in palette(crowd)} == {word}
    assert least_distance(crowd) >= 0.03


def test_shades_and_what_is_no_color_word() -> None:
    for color in ("blue", "green", "red"):
        dark, light = (oklab(palette([f"{shade} {color} car"]))[0, 0] for shade in ("dark", "light"))
        assert light > dark + 0.12
    for name in ("blackboard", "greenhouse", "redwood", "traffic light", "light"):
        assert color_word(name) is None
    assert set(COLOURS) <= set(COLOR_WORDS)  # the shapes world's


def test_a_color_of_ones_own_is_a_function_of_the_name_alone() -> None:
    assert class_color("cat") == class_color(" Cat ")
    assert palette(["cat", "Cat"]).tolist() == [list(class_color("cat"))] * 2
    unknown = [f"word {index}" for index in range(200)]
    assert class_color(unknown[0]) == class_color(unknown[0].upper())
    assert len(set(map(class_color, unknown))) == 200
    lightness = oklab(palette(unknown))[:, 0]
    assert lightness.min() > 0.4  # well seen on dark and on light
    assert lightness.max() < 0.95


def test_oklab_of_known_colors() -> None:
    """White, black and red, as https://bottosson.github.io/posts/oklab gives them."""
    points = oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    expected = [[1, 0, 0], [0, 0, 0], [0.628, 0.225, 0.126]]
    np.testing.assert_allclose(points, expected, atol=2e-3)


def test_the_tool_keeps_the_colors_there_are(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The committed file is complete, and a name taken out of it gets a colour again while the others keep theirs."""
    spec = importlib.util.spec_from_file_location("make_class_colors", repo / "tools/maintainers/make_class_colors.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    table = json.loads((repo / "san" / "data" / "class_colors.json").read_text(encoding="utf-8"))
    assert {name for names in tool.vocabularies() for name in names} == set(table)
    file = tmp_path / "colors.json"
    shorter = {name: color for name, color in table.items() if name != "red star"}
    file.write_text(json.dumps(shorter))
    tool.STEP = 32
    assert tool.main(["--out", str(file)]) == 0
    again = json.loads(file.read_text(encoding="utf-8"))
    assert "1 of them new" in capsys.readouterr().out
    assert set(again) == set(table)
    assert {name: again[name] for name in shorter} == shorter
