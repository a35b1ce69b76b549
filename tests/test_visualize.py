from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.visualize import Sample, class_color, legend, overlay, palette, panel, panels, plot_curves, plot_per_class
from san.visualize.panel import _legend_of
from san.visualize.plots import read_curves
from san.visualize.text import largest_square
from san.vocabulary.label_sets import LABEL_SETS, load_label_set

NAMES = ["red star", "blue ring", "striped ground", "novel"]


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    labels = np.full((128, 128), 2)
    labels[20:70, 30:90], labels[60:110, 10:60] = 0, 1
    labels[:8] = 255
    return np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8), labels


def test_colors_depend_on_the_name_alone() -> None:
    assert class_color("Red star ") == class_color("red star")
    assert np.array_equal(palette(NAMES)[::-1], palette(NAMES[::-1]))
    assert palette([]).shape == (0, 3)


@pytest.mark.parametrize(("name", "distance"), [("voc_20", 20), ("coco_stuff_171", 1)])
def test_colors_differ(name: str, distance: int) -> None:
    assert name in LABEL_SETS
    colors = palette(load_label_set(name).classes).astype(int)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() >= distance


def test_overlay_shows_the_class_colors(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = scene
    opaque = overlay(image, labels, NAMES, alpha=1.0)
    assert opaque[40, 50].tolist() == list(class_color("red star"))
    assert opaque[100, 100].tolist() == list(class_color("striped ground"))
    assert len(set(opaque[3, 64].tolist())) == 1  # ignored: grey
    assert opaque[19, 50].sum() < opaque[15, 50].sum()  # a dark line between segments
    assert overlay(image, labels, NAMES).std() > opaque.std() * 0.5
    with pytest.raises(ValueError, match="resize one to the other"):
        overlay(image, labels[:-1], NAMES)


def test_small_panel_is_enlarged_by_a_whole_factor(tmp_path: Path, scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = scene
    prediction = np.where(labels == 255, 3, labels)
    picture = panel(image, labels, prediction, NAMES, tmp_path / "sub" / "panel.png")
    assert picture.width > 3 * 384
    assert picture.height > 384
    with Image.open(tmp_path / "sub" / "panel.png") as written:
        assert written.size == picture.size
        assert written.mode == "RGB"
    colors = {color for _, color in picture.getcolors(picture.width * picture.height)}
    assert {class_color(name) for name in NAMES} <= colors  # the legend's swatches


def test_legend_holds_only_what_is_shown(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = scene
    picture = panel(image, labels, np.where(labels == 255, 2, labels), NAMES)
    colors = {color for _, color in picture.getcolors(picture.width * picture.height)}
    assert class_color("novel") not in colors


def test_legend_notes_judge_annotated_pixels_only() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    sample = Sample(image, prediction=np.array([[0, 2], [2, 3]]), truth=np.array([[0, 0], [1, 255]]))
    key = _legend_of([sample], NAMES)
    assert (key.num_more, key.no_class) == (0, True)
    assert dict(zip(key.names, key.notes, strict=True)) == {
        "red star": "", "striped ground": "not there", "blue ring": "missed", "novel": "",
    }  # fmt: skip
    key = _legend_of([Sample(image, prediction=np.zeros((2, 2), int))], NAMES)
    assert (key.names, key.notes, key.num_more, key.no_class) == (["red star"], [""], 0, False)


def test_panels_of_several_sizes_and_without_truth(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = scene
    wide = Sample(np.zeros((1500, 3000, 3), np.uint8), np.zeros((1500, 3000), np.uint8))
    rows = panels([Sample(image, labels, labels), wide], NAMES)
    alone = panels([wide], NAMES)
    assert rows.width > alone.width
    assert rows.height > alone.height
    with pytest.raises(ValueError, match="at least one image"):
        panels([], NAMES)
    with pytest.raises(ValueError, match="resize one to the other"):
        panel(image, labels[:64], labels, NAMES)


def test_legend_of_long_names_and_of_none() -> None:
    names = load_label_set("ade20k_847").classes[:40]
    assert legend(names, 900).width == 900
    assert legend(names, 200).height > legend(names, 900).height
    assert legend([], 300).width == 300


def test_largest_square() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:5, 2:20] = mask[8:16, 10:18] = True
    assert largest_square(mask) == (14, 12, 8)
    assert largest_square(np.zeros((4, 4), bool))[2] == 0
    assert largest_square(np.ones((4, 6), bool))[2] == 4


def write_lines(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_curves(tmp_path: Path) -> None:
    lines = [
        {
            "iteration": 19,
            "total_loss": 80.0,
            "loss_ce": 4.0,
            "loss_ce_0": 4.1,
            "lr": 1e-4,
            "time": 0.4,
            "data_time": 0.1,
        },
        {"iteration": 39, "total_loss": 60.0, "loss_ce": math.nan, "lr": 9e-5},
        {"iteration": 39, "a/sem_seg/mIoU": 31.0, "a/sem_seg/IoU-red star": 3.0},
        {"iteration": 19, "total_loss": 70.0},
    ]
    file = write_lines(tmp_path / "metrics.json", *lines)
    curves = read_curves(file)
    assert curves["total_loss"] == ([19, 39], [70.0, 60.0])  # the later line of an iteration counts
    assert curves["loss_ce"] == ([19], [4.0])
    plot_curves(file, tmp_path / "sub" / "curves.png")
    with Image.open(tmp_path / "sub" / "curves.png") as picture:
        assert min(picture.size) > 600


def test_odd_lines_of_a_metrics_file_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_lines(tmp_path / "metrics.json", {"iteration": 19, "loss": 8.0})
    odd = ["{", "[1]", "[" * 100_000, '{"iteration": 3, "lo', "7", "x"]
    numbers = '{"iteration": 29, "loss": %s}'
    values = ["1e999", "-Infinity", "true", '"high"', "1" + "0" * 400, "[1]", "null"]
    lines = [numbers % each for each in values]
    lines += [f'{{"iteration": {each}, "loss": 5.0}}' for each in ('"x"', "1e999", "NaN", "2.5", "[]", "true")]
    file.write_text("\n".join([file.read_text().strip(), *odd, *lines]))
    with caplog.at_level(logging.WARNING):
        assert read_curves(file) == {"loss": ([19], [8.0])}
    (record,) = caplog.records
    assert "metrics.json: 12 line(s) cannot be read as records and are skipped" in record.getMessage()
    assert record.getMessage().endswith(": 2, 3, 4, 5, 6 and 7 more")


def test_characters_without_a_glyph_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    names = {f"{chr(0x4E00 + number)}{chr(0x4E80 + number)}": 0.5 for number in range(40)}
    with caplog.at_level(logging.WARNING):
        plot_per_class(names, tmp_path / "a.png", title="classes")
    (record,) = caplog.records
    assert record.getMessage().startswith("80 characters (") and "a.png" in record.getMessage()
    assert not [each for each in recwarn if "Glyph" in str(each.message)]


def test_unusable_curve_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        plot_curves(tmp_path / "nowhere.json", tmp_path / "a.png")
    with pytest.raises(ValueError, match="no line with an iteration"):
        plot_curves(write_lines(tmp_path / "a.json", {"total_loss": 1.0}), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_numbers_that_no_axis_has_are_left_out(tmp_path: Path) -> None:
    lines = ({"iteration": number, "total_loss": value} for number, value in enumerate((-1.7e308, 3.0, 1.7e308)))
    assert read_curves(write_lines(tmp_path / "a.json", *lines)) == {"total_loss": ([1], [3.0])}
    plot_curves(tmp_path / "a.json", tmp_path / "a.png")


def test_curves_of_a_file_that_no_run_writes(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as sparse:
        sparse.truncate(30 << 30)
    with pytest.raises(ValueError, match=r"a\.json has 32,212,254,720 bytes, but at most 200,000,000 are read"):
        read_curves(tmp_path / "a.json")


def test_half_written_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "b.json").write_text('{"iteration": 1, "total_loss": 2}\n[3]\n{"iteration": 2, "tot')
    assert read_curves(tmp_path / "b.json") == {"total_loss": ([1], [2.0])}
    assert "b.json: 2 line(s) cannot be read as records" in caplog.text and ": 2, 3\n" in caplog.text


@pytest.mark.parametrize("names", [[], ["only"], load_label_set("coco_stuff_171").classes])
def test_per_class_bars(tmp_path: Path, names: list[str]) -> None:
    values = {name: math.nan if index % 9 == 8 else 100 * index / 171 for index, name in enumerate(names)}
    plot_per_class(values, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        assert min(picture.size) > (1500 if len(names) > 100 else 200)  # room for 171 legible names


def test_importing_is_cheap() -> None:
    """Matplotlib comes in with the first picture, not with the import."""
    code = "import sys, san.visualize, san.evaluation; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
