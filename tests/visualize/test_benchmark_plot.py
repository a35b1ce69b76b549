"""Bars of times and floors."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from san.visualize import benchmark_plot
from san.visualize.benchmark_plot import TimeBar, plot_benchmark


def test_a_bar_says_what_the_table_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The median of the rounds' ratios, which is not the ratio of the medians; inside the picture."""
    drawn: list[Figure] = []
    monkeypatch.setattr(benchmark_plot, "save_figure", lambda figure, path: drawn.append(figure))
    bars = [TimeBar("one", 0.926, 0.015, 0.676, 1.29, 1.489), TimeBar("long", 42.48, 2.68, 429.4, 0.1, 521.4)]
    plot_benchmark(bars, tmp_path / "benchmark.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == [" 926 ms, 1.29 × floor", " 42,480 ms, 0.10 × floor"]
    right = max(text.get_window_extent().x1 for text in axes.texts)
    assert right < axes.get_window_extent().x1
