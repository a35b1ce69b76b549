"""Plots training curves and bars per class."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from san.data.metrics_lines import metrics_lines
from san.io.errors import excerpt, listed, one_line, printable, require_extra
from san.visualize.palette import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Curve = tuple[list[int], list[float]]

_BARS_PER_COLUMN = 60
_MAX_COLUMNS = 6
_BAR_COLOR, _MEAN_COLOR = "#3b6fb6", "#c0392b"


def plot_curves(metrics_file: str | Path, path: str | Path, *, title: str = "Training") -> None:
    """Draw losses, metrics, learning rate and speed over iterations.

    Args:
        metrics_file: ``metrics.json`` of a run, in JSON lines, one dict with `iteration` per line. After a resume an
            iteration may occur twice: the later line is used.
        path: PNG to write; missing folders are created.
        title: title of the picture.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no line with an iteration.
    """
    curves = read_curves(metrics_file)
    groups: dict[str, dict[str, Curve]] = {
        "total loss": _starting(curves, "total_loss"),
        "losses": _starting(curves, "loss_"),
        "metrics (%)": {name: curve for name, curve in curves.items() if _is_summary_metric(name)},
        "learning rate": _starting(curves, "lr"),
        "seconds per iteration": {name: curves[name] for name in ("time", "data_time") if name in curves},
    }
    groups = {heading: group for heading, group in groups.items() if group}
    figure = new_figure(13, 3.6 * -(-len(groups) // 2) + 0.4)
    for index, (heading, group) in enumerate(groups.items()):
        axes = figure.add_subplot(-(-len(groups) // 2), 2, index + 1)
        _draw_curves(axes, heading, group)
    figure.suptitle(literal(title))
    save_figure(figure, path)


def plot_per_class(values: Mapping[str, float], path: str | Path, *, title: str = "IoU per class") -> None:
    """Draw one bar per class, best first; absent classes (NaN) are only counted.

    Args:
        values: class name -> percentage.
        path: PNG to write; missing folders are created.
        title: title of the picture.
    """
    ranked = sorted(
        ((v, name) for name, v in values.items() if not math.isnan(v)), key=lambda pair: (-pair[0], pair[1])
    )
    num_columns = min(_MAX_COLUMNS, max(1, -(-len(ranked) // _BARS_PER_COLUMN)))
    num_rows = max(1, -(-len(ranked) // num_columns))
    figure = new_figure(max(7.0, 4.3 * num_columns), 1.2 + 0.18 * max(num_rows, 4))
    mean = sum(value for value, _ in ranked) / len(ranked) if ranked else math.nan
    for column in range(num_columns):
        axes = figure.add_subplot(1, num_columns, column + 1)
        _draw_bars(axes, ranked[column * num_rows : (column + 1) * num_rows], num_rows, mean)
    absent = f", {len(values) - len(ranked)} absent" if len(ranked) < len(values) else ""
    figure.suptitle(f"{literal(title)}: mean {mean:.1f} % of {len(ranked)} classes present{absent}", fontsize=11)
    save_figure(figure, path)


def plot_pixel_histogram(pixels: Mapping[str, int], path: str | Path, *, title: str = "Pixels per class") -> None:
    """Draw one bar per class on a logarithmic axis, most pixels first; classes without a pixel are only counted.

    Args:
        pixels: class name -> number of pixels.
        path: PNG to write; missing folders are created.
        title: title of the picture.
    """
    ranked = sorted(
        ((count, name) for name, count in pixels.items() if count > 0), key=lambda pair: (-pair[0], pair[1])
    )
    num_columns = min(_MAX_COLUMNS, max(1, -(-len(ranked) // _BARS_PER_COLUMN)))
    num_rows = max(1, -(-len(ranked) // num_columns))
    figure = new_figure(max(7.0, 4.3 * num_columns), 1.2 + 0.18 * max(num_rows, 4))
    limits = (0.5, 30 * max((count for count, _ in ranked), default=1))
    for column in range(num_columns):
        axes = figure.add_subplot(1, num_columns, column + 1)
        _draw_counts(axes, ranked[column * num_rows : (column + 1) * num_rows], num_rows, limits)
    never = len(pixels) - len(ranked)
    heading = f"{sum(pixels.values()):,} pixels of {len(ranked)} classes"
    if never:
        heading += f"; {never} of {len(pixels)} classes never occur"
    figure.suptitle(f"{literal(title)}: {heading}", fontsize=11)
    save_figure(figure, path)


_LARGEST = 1e100  # matplotlib cannot scale an axis near the largest float


def read_curves(metrics_file: str | Path) -> dict[str, Curve]:
    """Read each metric of a JSON-lines file as (iterations, values), iterations ascending; see `plot_curves`."""
    metrics_file = Path(metrics_file)
    points: dict[str, dict[int, float]] = {}
    odd: list[int] = []
    for number, (line, record) in enumerate(metrics_lines(metrics_file), 1):
        if record is None:
            odd += [number] if line.strip() else []
            continue
        iteration = int(record.pop("iteration"))
        for name, value in record.items():
            if abs(value) < _LARGEST:  # false for NaN
                points.setdefault(name, {})[iteration] = float(value)
    if odd:
        logger.warning(
            "%s: %d line(s) cannot be read as records and are skipped (a run was stopped while writing?): %s",
            metrics_file,
            len(odd),
            listed(odd, 5),
        )
    if not points:
        raise ValueError(
            f"metrics file {metrics_file} has no line with an iteration; pass the metrics.json of a training run"
        )
    return {name: tuple(map(list, zip(*sorted(curve.items()), strict=True))) for name, curve in points.items()}  # type: ignore[misc]


def _starting(curves: Mapping[str, Curve], prefix: str) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name.startswith(prefix)}


def _is_summary_metric(name: str) -> bool:
    """Whether a name is that of an evaluation result (`dataset/sem_seg/mIoU`) and not of a per-class one."""
    return name.rpartition("/")[2] in ("mIoU", "pACC", "mACC")


def _draw_curves(axes: Axes, heading: str, group: Mapping[str, Curve]) -> None:
    few = max(len(iterations) for iterations, _ in group.values()) <= 20
    colors: dict[str, str] = {}
    for name, (iterations, values) in group.items():
        earlier_layer = name.startswith("loss_") and name.endswith("_0")
        color = colors.setdefault(name.removesuffix("_0"), f"C{len(colors)}")
        axes.plot(iterations, values, label=literal(name), color=color, linestyle=":" if earlier_layer else "-",
                  linewidth=1.4, marker="o" if few else None, markersize=3.5)  # fmt: skip
    axes.set_title(heading, fontsize=10, loc="left")
    axes.set_xlabel("iteration", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    if len(group) > 1 or heading.startswith("metrics"):
        axes.legend(fontsize=7, framealpha=0.8)


def _draw_bars(axes: Axes, ranked: Sequence[tuple[float, str]], num_rows: int, mean: float) -> None:
    values = [value for value, _ in ranked]
    axes.barh(range(len(values)), values, color=_BAR_COLOR, height=0.75)
    for row, value in enumerate(values):
        axes.text(value + 1, row, f"{value:.1f}", va="center", fontsize=6.5,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    if values:
        axes.axvline(mean, color=_MEAN_COLOR, linewidth=0.9, linestyle="--")
    _class_axis(axes, ranked, num_rows)
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))


def _draw_counts(axes: Axes, ranked: Sequence[tuple[int, str]], num_rows: int, limits: tuple[float, float]) -> None:
    counts = [count for count, _ in ranked]
    axes.set_xscale("log")
    axes.barh(range(len(counts)), counts, color=_BAR_COLOR, height=0.75)
    for row, count in enumerate(counts):
        number = axes.text(count * 1.15, row, _short_count(count), va="center", fontsize=6.5)
        number.set_in_layout(False)  # it is inside the axes; the layout of hundreds of texts is slow
    _class_axis(axes, ranked, num_rows)
    axes.set_xlim(*limits)


def _short_count(count: int) -> str:
    """Format a number of pixels with about three digits: 812, 3.4k, 51M."""
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _class_axis(axes: Axes, ranked: Sequence[tuple[float, str]], num_rows: int) -> None:
    """Label the axis with class names, best at the top, and use one bar height in all columns."""
    axes.set_yticks(range(len(ranked)), [literal(short_name(name)) for _, name in ranked], fontsize=7)
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


@contextlib.contextmanager
def drawing(path: str | Path) -> Iterator[None]:
    """Context manager for optional pictures: if drawing fails, a warning is logged and the run continues.

    Args:
        path: path of the picture, for the message.
    """
    try:
        yield
    except Exception as error:  # matplotlib may raise anything for unusual names and numbers
        logger.warning("%s is not drawn: %s: %s", path, type(error).__name__, one_line(error))


def literal(text: str) -> str:
    """Escape a text so that matplotlib shows it unchanged: no ``$`` formulas, no control characters."""
    return printable(text).replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """Create a figure (size in inches) without pyplot, so that no backend or global state changes."""
    require_extra("train", "plotting", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; missing folders are created. Characters missing in the font are logged in one line."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=150)
    missing: dict[str, None] = {}
    for each in caught:  # matplotlib warns once per character
        if found := re.match(r"Glyph (\d+) .* missing from", str(each.message)):
            missing[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if missing:
        logger.warning(
            "%d characters (%s) are not in the font DejaVu Sans and are drawn as boxes in %s",
            len(missing),
            excerpt("".join(missing), limit=20),
            path,
        )
