"""The files of an error analysis: figures, ranked pairs, heat map and page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.evaluation import ConfusionMatrix
from san.evaluation.oracle import OracleCounts
from san.evaluation.oracle_report import CSV_FILE, JSON_FILE, PLOT_FILE, format_oracle, write_oracle_report
from san.evaluation.per_image import ORACLE_PAGE
from san.visualize.confusion_plot import most_confused, plot_confusions, shares
from san.visualize.error_page import verdict
from tests.visualize.test_page import EVIL, Reader


def case(counts: list[list[int]]) -> tuple[ConfusionMatrix, OracleCounts]:
    plain, oracle = ConfusionMatrix(len(counts), 255), OracleCounts(len(counts), 255)
    plain.merge(np.array(counts))
    for matrix in (oracle.true_masks, oracle.true_names):
        matrix.merge(np.diag(np.array(counts).sum(axis=1)))
    oracle.best_pixels[:] = np.array(counts).sum(axis=1)[:, None]
    oracle.segments[:] = (np.array(counts).sum(axis=1) > 0)[:, None]
    return plain, oracle


COUNTS = [[50, 30, 20], [0, 0, 40], [0, 0, 0]]


def test_files(tmp_path: Path) -> None:
    figures = write_oracle_report(
        tmp_path, *case(COUNTS), ["x", EVIL, "z"], title="set, 2 of 9 images", groups={"g": ["x"]}
    )
    content = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))
    assert content["dataset"] == "set, 2 of 9 images"
    assert content["mIoU"] == {"plain": 25.0, "true_masks": 100.0, "true_names": 100.0, "best_proposals": 100.0}
    assert content["mIoU-g"]["plain"] == 50
    assert content["zero_iou_classes"]["plain"] == [EVIL]
    assert content["classes"][2]["IoU"]["plain"] is None
    assert "nan" not in (tmp_path / JSON_FILE).read_text(encoding="utf-8").lower()
    with (tmp_path / CSV_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["truth"], row["prediction"], row["pixels"]) for row in rows] == [
        ("1", EVIL, "z", "40"), ("2", "x", EVIL, "30"), ("3", "x", "z", "20"),
    ]  # fmt: skip
    assert (rows[0]["share_of_truth"], rows[0]["share_of_errors"], rows[0]["pixels_true_masks"]) == (
        "100.0000", "44.4444", "0",
    )  # fmt: skip
    assert "mIoU 25.00; with true masks 100.00, with true names 100.00" in format_oracle(figures)
    with Image.open(tmp_path / PLOT_FILE) as picture:
        assert min(picture.size) > 300


def test_the_page_holds_the_figures_and_no_name_runs(tmp_path: Path) -> None:
    write_oracle_report(tmp_path, *case(COUNTS), ["x", EVIL, "z"], title=EVIL)
    text = (tmp_path / ORACLE_PAGE).read_text(encoding="utf-8")
    page = Reader(text)
    assert page.open == []
    assert page.script == "" and not page.all("script") and not page.all("link")
    assert [image["src"] for image in page.all("img")] == [f"./{PLOT_FILE}"]
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv")]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert "http:" not in text and "https:" not in text
    words = " ".join(page.texts)
    assert EVIL in words
    assert "From 25.0 % mIoU as predicted, true names give +75.0 points and true masks +75.0." in words
    assert "1 of 2 classes have an IoU of 0" in words
    assert re.search(r"100\.0 % recalled, → z", words)


def test_nothing_confused_and_nothing_judged(tmp_path: Path) -> None:
    (tmp_path / PLOT_FILE).write_bytes(b"of an earlier evaluation")
    write_oracle_report(tmp_path, *case([[5, 0], [0, 0]]), ["x", "y"], title="set")
    assert not (tmp_path / PLOT_FILE).exists()
    assert "<img" not in (tmp_path / ORACLE_PAGE).read_text(encoding="utf-8")
    assert (tmp_path / CSV_FILE).read_text(encoding="utf-8").count("\n") == 1
    write_oracle_report(tmp_path, *case([[0, 0], [0, 0]]), ["x", "y"], title="set")
    assert "No pixel of the ground truth is judged" in (tmp_path / ORACLE_PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("means", "end"),
    [
        ((60, 70, 80, 80), "Wrong names cost more than wrong masks."),
        ((60, 80, 70, 80), "Wrong masks cost more than wrong names."),
        ((60, 70.5, 70, 80), "Names and masks cost about the same."),
    ],
)
def test_verdict(means: tuple[float, ...], end: str) -> None:
    assert verdict(means).endswith(end)


def test_the_heat_map_has_the_largest_confusions() -> None:
    counts = np.array([[9, 0, 1, 0], [0, 5, 0, 7], [0, 0, 0, 0], [3, 0, 0, 1]])
    assert most_confused(counts, 9) == [1, 3, 0, 2]
    assert most_confused(counts, 3) == [1, 3, 0]
    assert most_confused(counts, 2) == [1, 3]
    assert shares(counts, [1, 3]).tolist() == [[0, 700 / 12, 0], [0, 0, 75]]  # 3 pixels of 4 in "any other"
    assert shares(counts, [2, 0]).tolist() == [[0, 0, 0], [10, 0, 0]]  # a class without a pixel
    with pytest.raises(ValueError, match="no class is confused"):
        plot_confusions({"x": np.diag([1, 2])}, ["a", "b"], "unused.png")
