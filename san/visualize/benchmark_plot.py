"""Bar chart of measured times with the machine's lower bound (floor)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from san.visualize.plots import literal, new_figure, save_figure

_TIME_COLOR, _FLOOR_COLOR, _PLAIN_COLOR = "#3b6fb6", "#2c3e50", "#c9d3e0"


@dataclass(frozen=True)
class TimeBar:
    """One case.

    Attributes:
        name: label of the bar.
        seconds: median time of a run.
        spread: half the distance between the quartiles, in seconds.
        floor_seconds: the floor, drawn as a line across the bar; None if unknown.
        times_floor: time over floor, the median over the rounds, as in the table; written beside the bar.
        plain_seconds: time of the plain path, drawn as a pale bar behind; None if not measured.
    """

    name: str
    seconds: float
    spread: float = 0.0
    floor_seconds: float | None = None
    times_floor: float | None = None
    plain_seconds: float | None = None


def plot_benchmark(bars: Sequence[TimeBar], path: str | Path, *, title: str = "Time of a run") -> None:
    """Draw one bar per case on a logarithmic axis of milliseconds, with the floor as a line across it.

    Args:
        bars: the cases, from top to bottom.
        path: PNG to write; missing folders are created.
        title: title of the picture.

    Raises:
        ValueError: there is no bar.
    """
    if not bars:
        raise ValueError("no case was measured, so there is nothing to draw; see the errors above")
    figure = new_figure(9, 1.4 + 0.28 * len(bars))
    axes = figure.add_subplot()
    for row, bar in enumerate(bars):
        if bar.plain_seconds is not None:
            axes.barh(row, bar.plain_seconds * 1000, height=0.8, color=_PLAIN_COLOR)
        axes.barh(row, bar.seconds * 1000, xerr=bar.spread * 1000, height=0.5, color=_TIME_COLOR)
        label = f" {bar.seconds * 1000:,.{0 if bar.seconds >= 0.1 else 2}f} ms"
        if bar.floor_seconds:
            axes.plot([bar.floor_seconds * 1000] * 2, [row - 0.45, row + 0.45], color=_FLOOR_COLOR, linewidth=2)
        if bar.times_floor:
            label += f", {bar.times_floor:.2f} × floor"
        axes.text(max(bar.seconds, bar.plain_seconds or 0) * 1000, row, label, va="center", fontsize=7)
    longest = max(max(bar.seconds, bar.plain_seconds or 0) for bar in bars) * 1000
    shortest = min(min(bar.seconds, bar.floor_seconds or bar.seconds) for bar in bars) * 1000
    axes.set_xscale("log")
    axes.set_xlim(shortest / 2, longest * 20)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds; dark line: floor of this machine; pale: the plain path")
    figure.suptitle(literal(title), fontsize=9)
    save_figure(figure, path)
