"""Class names and file names that people give, and what a drawing library would make of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.evaluation import ConfusionMatrix, write_report
from san.visualize import (
    AttentionView,
    attention_panel,
    contact_sheet,
    drawing,
    panel,
    plot_curves,
    plot_per_class,
    plot_pixel_histogram,
)
from san.visualize.benchmark_plot import TimeBar, plot_benchmark
from san.visualize.palette import short_name
from san.visualize.plots import literal, new_figure

ODD = [
    "a $x_1$ b",
    r"$\frac{1}{$",
    "$",
    r"cost \$5 $5",
    "two\nlines",
    "\x1b[31mred",
    "caf\udce9",
    "_under",
    "",
]
PICTURE = np.zeros((64, 64, 3), np.uint8)


def test_texts_stand_as_they_are() -> None:
    """Read off matplotlib's own texts: nothing is parsed, nothing is gone but the escape."""
    from matplotlib.cbook import is_math_text

    figure = new_figure(2, 2)
    for name in ODD:
        text = figure.text(0, 0, literal(name))
        shown, is_math = text._preprocess_math(text.get_text())
        assert not is_math and not is_math_text(text.get_text())
        assert shown == name.replace("\n", r"\n").replace("\x1b", r"\x1b").replace("\udce9", r"\udce9")
    assert short_name("two\nlines\x1b") == r"two lines\x1b"


def test_no_name_ends_a_drawing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    labels = np.arange(64 * 64).reshape(64, 64) * len(ODD) // (64 * 64)
    plot_per_class(dict.fromkeys(ODD, 50.0), tmp_path / "a.png", title="$x$")
    plot_pixel_histogram(dict.fromkeys(ODD, 9), tmp_path / "b.png", title="$x$")
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 1, "set_$x$/sem_seg/mIoU": 5.0, "loss_$": 1.0}))
    plot_curves(tmp_path / "metrics.json", tmp_path / "c.png", title="run $1")
    plot_benchmark([TimeBar("step $1$", 1.0, 0.1)], tmp_path / "d.png", title="GPU $x$")
    contact_sheet([(ODD[6], PICTURE, labels), (ODD[0], PICTURE, labels)], ODD, tmp_path / "e.png")
    panel(PICTURE, labels, labels, ODD, tmp_path / "f.png")
    view = AttentionView(0, ODD[0], 0.5, np.zeros((64, 64)), np.zeros((1, 2, 4, 4)))
    attention_panel(PICTURE, [view], tmp_path / "g.png", title=ODD[1])
    for each in "abcdefg":
        with Image.open(tmp_path / f"{each}.png") as picture:
            picture.load()


def test_a_picture_that_fails_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ZeroDivisionError("no class"), OSError(28, "No space left on device"), ValueError("bad\nname")):
        caplog.clear()
        with drawing(tmp_path / "a.png"):
            raise error
        (record,) = caplog.records
        assert record.levelno == logging.WARNING and "a.png is not drawn: " in record.getMessage()
        assert "\n" not in record.getMessage()
    with pytest.raises(KeyboardInterrupt), drawing(tmp_path / "a.png"):
        raise KeyboardInterrupt
    matrix = ConfusionMatrix(2, 255)
    matrix.update(np.array([[0, 1]]), np.array([[0, 1]]))
    monkeypatch.setattr("san.visualize.plot_per_class", lambda *args, **kwargs: 1 // 0)
    assert write_report(tmp_path, matrix, ["a", "b"])["mIoU"] == 100
    assert (tmp_path / "per_class.csv").is_file() and "per_class.png is not drawn" in caplog.text
