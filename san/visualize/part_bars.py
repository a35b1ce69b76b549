"""Bar chart of the cost of each part of a model, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from san.visualize.plots import literal, new_figure, save_figure

_COLOR, _INNER_COLOR = "#9db8dc", "#2f5d9e"


@dataclass(frozen=True)
class PartBars:
    """One quantity.

    Attributes:
        title: name and unit.
        values: part -> number.
        inner_values: part -> portion of that number, drawn as a darker bar inside; None: no such bar.
        inner_title: legend entries: the whole, and the portion.
    """

    title: str
    values: Mapping[str, float]
    inner_values: Mapping[str, float] | None = None
    inner_title: tuple[str, str] = ("", "")


def plot_parts(groups: Sequence[PartBars], path: str | Path, *, order: Sequence[str], title: str) -> None:
    """Draw one panel per quantity with one bar per part; a part has the same row in all panels.

    Args:
        groups: the quantities, from left to right.
        path: PNG to write; missing folders are created.
        order: parts from top to bottom; parts without a value are omitted.
        title: title of the picture.
    """
    parts = [part for part in order if any(part in group.values for group in groups)]
    figure = new_figure(1.5 + 3.6 * len(groups), 1.5 + 0.32 * len(parts))
    first = None
    for column, group in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), column + 1, sharey=first)
        first = first or axes
        longest = max(group.values.values(), default=0) or 1
        for row, part in enumerate(parts):
            if part not in group.values:
                continue
            value = group.values[part]
            axes.barh(row, value, color=_COLOR if group.inner_values is not None else _INNER_COLOR, height=0.75)
            if group.inner_values is not None:
                axes.barh(row, group.inner_values.get(part, 0), color=_INNER_COLOR, height=0.75)
            axes.text(value + 0.01 * longest, row, _three_digits(value), va="center", fontsize=8)
        if group.inner_values is not None:
            for name, color in zip(group.inner_title, (_COLOR, _INNER_COLOR), strict=True):
                axes.barh(0, 0, color=color, label=name)
            axes.legend(fontsize=7, loc="upper right")
        axes.set_title(group.title, fontsize=9, loc="left")
        axes.set_yticks(range(len(parts)), parts, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.tick_params(axis="y", labelleft=column == 0)
        axes.set_xlim(0, 1.25 * longest)
        axes.spines[["top", "right"]].set_visible(False)
    if first is not None:
        first.set_ylim(len(parts) - 0.4, -0.6)
    figure.suptitle(literal(title), fontsize=10)
    save_figure(figure, path)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
