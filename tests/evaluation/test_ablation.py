"""The table of an ablation, in closed form."""

from __future__ import annotations

import csv
import io
import math

import pytest

from san.evaluation.ablation import AblationResult, ablation_cell, ablation_csv, ablation_markdown
from san.visualize.ablation_plot import AblationBar, plot_ablation

BASE = AblationResult("a/base", {0: {"x/mIoU": 50.0, "y/mIoU": 10.0}, 1: {"x/mIoU": 54.0, "y/mIoU": 12.0}})
OTHER = AblationResult("a/none", {1: {"x/mIoU": 51.0, "y/mIoU": math.nan}}, {0: "failed with exit status 1 (no room)"})


def test_mean_spread_and_difference_over_the_seeds_that_both_have() -> None:
    cell = ablation_cell(BASE, BASE, "x/mIoU")
    assert (cell.mean, cell.spread, cell.difference) == (52.0, pytest.approx(math.sqrt(8)), None)
    cell = ablation_cell(OTHER, BASE, "x/mIoU")
    assert (cell.mean, cell.spread, cell.difference) == (51.0, None, -3.0)  # not -1: seed 0 is missing
    cell = ablation_cell(OTHER, BASE, "y/mIoU")
    assert (cell.values, cell.mean, cell.difference) == ({}, None, None)


def test_the_tables() -> None:
    lines = ablation_markdown([BASE, OTHER], BASE, ["x/mIoU", "y/mIoU"]).splitlines()
    assert lines[:4] == [
        "| configuration | seeds | x/mIoU | difference | y/mIoU | difference |",
        "|---|---|---|---|---|---|",
        "| a/base (base) | 2 | 52.0 ± 2.8 |  | 11.0 ± 1.4 |  |",
        "| a/none | 1 | 51.0 | -3.0 | – |  |",
    ]
    assert lines[-1] == "- a/none, seed 0: failed with exit status 1 (no room)"
    rows = list(csv.DictReader(io.StringIO(ablation_csv([BASE, OTHER], BASE))))
    assert [(row["configuration"], row["metric"]) for row in rows] == [
        ("a/base", "x/mIoU"), ("a/base", "y/mIoU"), ("a/none", "x/mIoU"), ("a/none", "y/mIoU"),
    ]  # fmt: skip
    assert rows[2] == {
        "configuration": "a/none", "metric": "x/mIoU", "seed 0": "", "seed 1": "51.0000", "mean": "51.0000",
        "spread": "", "difference to base": "-3.0000",
    }  # fmt: skip
    assert rows[3]["mean"] == rows[3]["seed 1"] == ""


def test_the_picture(tmp_path) -> None:
    bars = [AblationBar("a/base", [50.0, 54.0], 52.0, 2.8, True), AblationBar("a/$none", [], None, None, False)]
    plot_ablation({"x/mIoU": bars, "y/mIoU": bars}, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_ablation({}, tmp_path / "empty.png")
