from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from san.data.label_sets import load_label_set
from san.data.shapes.world import NAMES
from san.visualize import class_color, palette
from san.visualize.palette import oklab


def distances(names: list[str]) -> np.ndarray:
    points = oklab(palette(names))
    found = np.linalg.norm(points[:, None] - points, axis=-1)
    return found[~np.eye(len(names), dtype=bool)]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("shapes", 0.11),
        ("voc_20", 0.15),
        ("pascal_context_59", 0.09),
        ("ade20k_150", 0.06),
        ("coco_stuff_171", 0.06),
        ("pascal_context_459", 0.04),
        ("ade20k_847", 0.03),
    ],
)
def test_classes_of_one_set_are_well_apart(name: str, least: float) -> None:
    """In Oklab, where 0.02 is about the least that is seen."""
    names = NAMES if name == "shapes" else load_label_set(name).classes
    assert distances(list(names)).min() >= least


def test_a_color_is_a_function_of_the_name_alone() -> None:
    assert class_color("cat") == class_color(" Cat ")
    unknown = [f"word {index}" for index in range(200)]
    assert class_color(unknown[0]) == class_color(unknown[0].upper())
    assert len(set(map(class_color, unknown))) == 200
    lightness = oklab(palette([*unknown, *NAMES]))[:, 0]
    assert lightness.min() > 0.4  # dark text can be read on it
    assert lightness.max() < 0.95


def test_oklab_of_known_colors() -> None:
    """White, black and red, as https://bottosson.github.io/posts/oklab gives them."""
    points = oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    expected = [[1, 0, 0], [0, 0, 0], [0.628, 0.225, 0.126]]
    np.testing.assert_allclose(points, expected, atol=2e-3)


def test_the_tool_keeps_the_colors_there_are(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The committed file is complete, and a name taken out of it gets a colour again while the others keep theirs."""
    spec = importlib.util.spec_from_file_location("make_class_colors", repo / "tools" / "make_class_colors.py")
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
