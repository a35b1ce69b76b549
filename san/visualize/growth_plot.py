"""Plots how time grows with a parameter, one panel per parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from san.visualize.plots import literal, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIME_COLOR, _FLOOR_COLOR, _PROPORTIONAL_COLOR = "#3b6fb6", "#2c3e50", "#b8c4d6"
_COLUMNS = 3


@dataclass(frozen=True)
class Growth:
    """One series.

    Attributes:
        name: the parameter; heading and axis label of the panel.
        fixed: the fixed settings; second line of the heading.
        values: two or more values of the parameter, ascending.
        seconds: median time of a run for each value.
        spreads: half the distance between the quartiles, in seconds.
        floors: the floor for each value, in seconds; None if unknown.
    """

    name: str
    fixed: str
    values: Sequence[int]
    seconds: Sequence[float]
    spreads: Sequence[float]
    floors: Sequence[float] | None = None


def plot_growth(series: Sequence[Growth], path: str | Path, *, title: str = "How time grows") -> None:
    """Draw one panel per series: measured time, floor, and proportional growth from the first value.

    The axes are logarithmic, so that a power law is a straight line; they are linear if a value is 0.

    Args:
        series: one per panel, row by row.
        path: PNG to write; missing folders are created.
        title: title of the picture.

    Raises:
        ValueError: there is no series.
    """
    if not series:
        raise ValueError("no series has two measured values, so there is nothing to draw; see the errors above")
    columns = min(_COLUMNS, len(series))
    rows = -(-len(series) // columns)
    figure = new_figure(4.3 * columns, 3.4 * rows + 0.5)
    for index, each in enumerate(series):
        _draw(figure.add_subplot(rows, columns, index + 1), each)
    figure.suptitle(literal(title), fontsize=10)
    save_figure(figure, path)


def _draw(axes: Axes, series: Growth) -> None:
    """Draw one panel."""
    from matplotlib.ticker import LogLocator

    times = [seconds * 1000 for seconds in series.seconds]
    logarithmic = min(series.values) > 0
    proportional = [times[0] * value / series.values[0] for value in series.values] if logarithmic else []
    if logarithmic:
        axes.plot(series.values, proportional, color=_PROPORTIONAL_COLOR, linestyle=":", label="proportional")
    if series.floors is not None:
        floors = [seconds * 1000 for seconds in series.floors]
        axes.plot(series.values, floors, color=_FLOOR_COLOR, linestyle="--", linewidth=1, label="floor of the machine")
    spreads = [spread * 1000 for spread in series.spreads]
    axes.errorbar(series.values, times, yerr=spreads, color=_TIME_COLOR, marker="o", markersize=4, label="measured")
    for value, time in zip(series.values, times, strict=True):
        axes.annotate(
            _short(time), (value, time), (0, 7), textcoords="offset points", fontsize=7, ha="center", color=_TIME_COLOR
        )
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        drawn = times + [seconds * 1000 for seconds in series.floors or ()]
        axes.set_ylim(min(drawn) / 1.6, max(*drawn, min(max(proportional), 4 * max(times))) * 1.6)
    else:
        axes.set_ylim(0, max(times) * 1.2)
    axes.set_xticks(series.values, [f"{value:,}" for value in series.values], fontsize=7)
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.tick_params(axis="y", labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_ylabel("milliseconds", fontsize=8)
    power = _power(series) if logarithmic else ""
    axes.set_title(f"{series.name}{power}\n", fontsize=9)
    axes.text(0.5, 1.02, series.fixed, transform=axes.transAxes, ha="center", fontsize=7)
    axes.legend(fontsize=6, loc="best", frameon=False)
    axes.grid(alpha=0.25)


def _power(series: Growth) -> str:
    """Format the exponent of the power law through the first and last value."""
    first, last = series.values[0], series.values[-1]
    return f": time ~ value^{math.log(series.seconds[-1] / series.seconds[0]) / math.log(last / first):.2f}"


def _short(milliseconds: float) -> str:
    """Format a time with two or more significant digits."""
    return f"{milliseconds:,.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"
