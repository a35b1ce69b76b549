"""Bar chart of an ablation with the spread over seeds and a line at the base, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from san.visualize.plots import literal, new_figure, save_figure

_BAR_COLOR, _BASE_COLOR, _VALUE_COLOR = "#3b6fb6", "#c0392b", "#1c2833"


@dataclass(frozen=True)
class AblationBar:
    """One metric of one configuration.

    Attributes:
        name: label of the bar.
        values: values of the seeds, drawn as points.
        mean: length of the bar; None: no bar.
        spread: half the length of the error bar.
        is_base: draw a line at its mean across all bars.
    """

    name: str
    values: Sequence[float]
    mean: float | None
    spread: float | None
    is_base: bool


def plot_ablation(columns: Mapping[str, Sequence[AblationBar]], path: str | Path, *, title: str = "Ablation") -> None:
    """Draw one column of bars per metric.

    Args:
        columns: bars of each metric from top to bottom; all with the same configurations.
        path: PNG to write; missing folders are created.
        title: title of the picture.

    Raises:
        ValueError: there is no metric or no bar.
    """
    rows = max(map(len, columns.values()), default=0)
    if not rows:
        raise ValueError("no run has a metric, so there is nothing to draw")
    figure = new_figure(2.2 + 3.4 * len(columns), 1.3 + 0.3 * rows)
    for index, (metric, bars) in enumerate(columns.items()):
        axes = figure.add_subplot(1, len(columns), index + 1)
        for row, bar in enumerate(bars):
            if bar.mean is None:
                axes.text(0, row, " no run finished", va="center", fontsize=6.5)
                continue
            axes.barh(row, bar.mean, xerr=bar.spread, height=0.7, color=_BAR_COLOR, error_kw={"capsize": 2})
            axes.plot(bar.values, [row] * len(bar.values), ".", color=_VALUE_COLOR, markersize=3)
            end = max(bar.mean + (bar.spread or 0), *bar.values)
            axes.text(end, row, f"  {bar.mean:.1f}", va="center", fontsize=6.5)
            if bar.is_base:
                axes.axvline(bar.mean, color=_BASE_COLOR, linewidth=1)
        axes.set_yticks(range(rows), [literal(bar.name) for bar in bars] if index == 0 else [""] * rows, fontsize=7)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(literal(metric), fontsize=7)
        axes.set_xlabel("percent", fontsize=7)
    figure.suptitle(literal(title), fontsize=9)
    save_figure(figure, path)
