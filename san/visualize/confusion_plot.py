"""Heat map of the most confused classes, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from san.visualize.palette import short_name
from san.visualize.plots import literal, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Counts = npt.NDArray[np.int64]

MAX_CLASSES = 25
"""Maximum rows and columns of a heat map."""

_LEAST_WRITTEN = 5.0  # minimum percentage that is written in a cell


def plot_confusions(
    matrices: Mapping[str, Counts],
    names: Sequence[str],
    path: str | Path,
    *,
    title: str = "Confusions",
) -> None:
    """Draw one heat map per matrix, stacked vertically, with the classes of the largest confusions.

    A cell is the share of a class's labelled pixels (row) that are predicted as another class (column), in percent. The
    diagonal (correct pixels) is grey. The last column is the sum over classes without a column. The colour scale ends
    at 60 %.

    Args:
        matrices: heading and (C, C) pixel counts, ``counts[label, prediction]``; the first one determines the classes.
        names: C class names.
        path: PNG to write; missing folders are created.
        title: title of the picture.

    Raises:
        ValueError: the first matrix has no confusion.
    """
    chosen = most_confused(next(iter(matrices.values())), MAX_CLASSES)
    if not chosen:
        raise ValueError("no class is confused with another, so there is nothing to draw")
    side = 0.28 * max(len(chosen), 8)
    figure = new_figure(side + 2.2, (side + 1.9) * len(matrices) + 0.3)
    for place, (heading, counts) in enumerate(matrices.items(), 1):
        axes = figure.add_subplot(len(matrices), 1, place)
        _draw(axes, shares(counts, chosen), [short_name(names[index]) for index in chosen])
        axes.set_title(literal(heading), fontsize=9)
    note = "" if len(chosen) == len(names) else f", the {len(chosen)} of {len(names)} classes confused most"
    figure.suptitle(f"{literal(title)}{note}:\n% of a class's pixels (row) that got a name (column)", fontsize=9)
    save_figure(figure, path)


def most_confused(counts: Counts, limit: int) -> list[int]:
    """Return the classes of the largest confusions (both of each pair), most confused first; at most `limit`."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[: (wrong > 0).sum()]
    chosen: dict[int, None] = {}
    for cell in order.tolist():
        pair = divmod(cell, len(counts))
        if len(chosen.keys() | set(pair)) > limit:
            break
        chosen.update(dict.fromkeys(pair))
    return list(chosen)


def shares(counts: Counts, chosen: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the shares of the selected classes' pixels in percent, (N, N + 1); the last column is for other classes.

    The diagonal is 0; a class without a labelled pixel has a row of zeros.
    """
    rows = counts[list(chosen)].astype(np.float64)  # (N, C)
    inside = rows[:, list(chosen)]
    values = np.concatenate([inside, (rows.sum(axis=1) - inside.sum(axis=1))[:, None]], axis=1)
    np.fill_diagonal(values, 0.0)
    result: npt.NDArray[np.float64] = 100.0 * values / np.maximum(rows.sum(axis=1), 1)[:, None]
    return result


def _draw(axes: Axes, values: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    """Draw one heat map."""
    axes.imshow(values, cmap="Reds", vmin=0, vmax=60, aspect="auto", interpolation="nearest")
    for index in range(len(names)):
        axes.fill_between([index - 0.5, index + 0.5], index - 0.5, index + 0.5, color="#c9d0d8", linewidth=0)
    for row, column in np.argwhere(values >= _LEAST_WRITTEN).tolist():
        value = values[row, column]
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6,
                  color="white" if value > 40 else "black")  # fmt: skip
    labels = [literal(name) for name in names]
    axes.set_xticks(range(len(names) + 1), [*labels, "any other"], rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("ground truth", fontsize=8)
    axes.set_xticks(np.arange(len(names)) + 0.5, minor=True)
    axes.set_yticks(np.arange(max(len(names) - 1, 0)) + 0.5, minor=True)
    axes.grid(which="minor", color="#d5dae0", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
