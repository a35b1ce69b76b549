"""Scatter plot of IoU against the similarity of a class name to the trained names, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from san.visualize.palette import short_name
from san.visualize.plots import literal, new_figure, save_figure

_KNOWN_COLOR, _OTHER_COLOR = "#8a94a6", "#3b6fb6"
_MAX_NAMED = 40


@dataclass(frozen=True)
class ClassPoint:
    """One class.

    Attributes:
        name: class name, written beside the point if there are few points.
        similarity: cosine similarity to the nearest name.
        iou: IoU in percent.
        known: whether the name itself is in the other label set.
    """

    name: str
    similarity: float
    iou: float
    known: bool = False


def plot_similarity(
    points: Sequence[ClassPoint],
    path: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    other: str = "the other set",
) -> None:
    """Draw one point per class.

    Args:
        points: classes that have an IoU.
        path: PNG to write; missing folders are created.
        title: title of the picture.
        notes: further lines of the title.
        other: name of the other label set.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("no class has an IoU, so there is nothing to draw")
    figure = new_figure(8, 5.5)
    axes = figure.add_subplot()
    for known, color, label in ((True, _KNOWN_COLOR, "the same name"), (False, _OTHER_COLOR, "another name")):
        own = [point for point in points if point.known == known]
        if own:
            text = literal(f"{label} in {other}: {len(own)} classes")
            axes.scatter([p.similarity for p in own], [p.iou for p in own], s=22, color=color, label=text, alpha=0.8)
    apart = [point for point in points if not point.known]
    for point in apart if len(apart) <= _MAX_NAMED else ():
        axes.annotate(
            literal(short_name(point.name)), (point.similarity, point.iou), xytext=(4, 3),
            textcoords="offset points", fontsize=7,
        )  # fmt: skip
    axes.set_xlabel(literal(f"cosine similarity to the nearest name of {other}"))
    axes.set_ylabel("IoU (%)")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.suptitle("\n".join(map(literal, (title, *notes))), fontsize=10)
    save_figure(figure, path)
