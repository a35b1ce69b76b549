"""Writes the files of an error analysis: oracle.json, confusions.csv, confusions.png, oracle.html.  C classes.

docs/error_analysis.md#definitions defines each figure.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from san.evaluation.confusion import ConfusionMatrix
from san.evaluation.metrics import metrics
from san.evaluation.oracle import SEGMENT_COLUMNS, Counts, OracleCounts
from san.evaluation.per_image import ORACLE_PAGE
from san.io.files import write_text, write_together
from san.visualize import drawing
from san.visualize.confusion_plot import plot_confusions
from san.visualize.error_page import ClassErrors, ErrorPage, render_error_page

KINDS = ("plain", "true_masks", "true_names", "best_proposals")
"""The evaluations compared."""

JSON_FILE, CSV_FILE, PLOT_FILE = "oracle.json", "confusions.csv", "confusions.png"
"""The files of an error analysis beside its page, `ORACLE_PAGE`."""

_SHOWN_PAIRS = 40  # of the page


@dataclass(frozen=True)
class Confusion:
    """Pixels of one class that were predicted as another.

    Attributes:
        truth, prediction: class names.
        pixels: number of pixels in the prediction.
        share_of_truth: share of the class's labelled pixels, in percent.
        share_of_errors: share of all wrong pixels, in percent.
        pixels_true_masks: number of pixels with true masks, where only the class is wrong.
    """

    truth: str
    prediction: str
    pixels: int
    share_of_truth: float
    share_of_errors: float
    pixels_true_masks: int


def confusions(plain: ConfusionMatrix, true_masks: ConfusionMatrix, names: Sequence[str]) -> list[Confusion]:
    """Return all pairs of different classes that were confused, most pixels first."""
    labelled = plain.counts.sum(axis=1)
    wrong, named = (matrix.counts * (1 - np.eye(len(names), dtype=np.int64)) for matrix in (plain, true_masks))
    total = wrong.sum()
    pairs = np.argwhere((wrong > 0) | (named > 0)).tolist()
    found = [
        Confusion(
            names[truth],
            names[other],
            int(wrong[truth, other]),
            100.0 * float(wrong[truth, other] / labelled[truth]),
            100.0 * float(wrong[truth, other] / total) if total else 0.0,
            int(named[truth, other]),
        )
        for truth, other in pairs
    ]
    return sorted(found, key=lambda each: (-each.pixels, -each.pixels_true_masks))


def oracle_figures(
    plain: ConfusionMatrix,
    oracle: OracleCounts,
    class_names: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Compute all figures of an error analysis, in percent; NaN for absent classes, as in `metrics`.

    Args:
        plain: the counts of the evaluation itself.
        oracle: of the same images.
        class_names: C distinct names.
        groups: see `metrics`.

    Returns:
        mIoU: by kind (`KINDS`), and ``mIoU-<group>`` of each group.
        zero_iou_classes: by kind, the names of present classes with IoU 0.
        segments: over all classes, the counts (`SEGMENT_COLUMNS`), "recall" at each IoU, and the share classified
            correctly of all segments and of those recalled at 0.5.
        classes: the same per class, with its labelled pixels and its IoU by kind.
    """
    matrices = {"plain": plain, "true_masks": oracle.true_masks, "true_names": oracle.true_names}
    values = {kind: metrics(matrix, class_names, groups) for kind, matrix in matrices.items()}
    values["best_proposals"] = _best_values(oracle.best_pixels, class_names, groups or {})
    ious = {kind: [values[kind][f"IoU-{name}"] for name in class_names] for kind in KINDS}
    means = ["mIoU", *(f"mIoU-{group}" for group in groups or {})]
    classes = [
        {
            "name": name,
            "label_pixels": int(plain.counts[index].sum()),
            "IoU": {kind: ious[kind][index] for kind in KINDS},
            **_segment_figures(oracle.segments[index]),
        }
        for index, name in enumerate(class_names)
    ]
    return {
        **{mean: {kind: values[kind][mean] for kind in KINDS} for mean in means},
        "zero_iou_classes": {
            kind: [name for name, iou in zip(class_names, ious[kind], strict=True) if iou == 0] for kind in KINDS
        },
        "segments": _segment_figures(oracle.segments.sum(axis=0)),
        "classes": classes,
    }


def write_oracle_report(
    folder: str | Path,
    plain: ConfusionMatrix,
    oracle: OracleCounts,
    class_names: Sequence[str],
    title: str,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Write the files of an error analysis to `folder`, which is created if missing.

    Args:
        folder: folder to write to.
        plain: the counts of the evaluation itself.
        oracle: of the same images.
        class_names: C distinct names.
        title: the data set and the part of it that was evaluated.
        groups: see `metrics`.

    Returns:
        the result of `oracle_figures`.
    """
    folder = Path(folder)
    figures = oracle_figures(plain, oracle, class_names, groups)
    pairs = confusions(plain, oracle.true_masks, class_names)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLOT_FILE).unlink(missing_ok=True)  # so that the page does not show that of an earlier evaluation
    if any(pair.pixels for pair in pairs):
        with drawing(folder / PLOT_FILE):
            matrices = {"as predicted": plain.counts, "with true masks: names alone": oracle.true_masks.counts}
            plot_confusions(matrices, class_names, folder / PLOT_FILE, title=f"Confusions, {title}")
    picture = PLOT_FILE if (folder / PLOT_FILE).is_file() else ""
    page = _page(title, figures, pairs, picture)
    write_together(
        {
            folder / JSON_FILE: lambda path: write_text(path, _json({"dataset": title, **figures})),
            folder / CSV_FILE: lambda path: write_text(path, _csv(pairs)),
            folder / ORACLE_PAGE: lambda path: write_text(path, render_error_page(page)),
        }
    )
    return figures


def format_oracle(figures: Mapping[str, Any]) -> str:
    """Format the main figures of mask and classification errors in one line for the log."""
    means, segments = figures["mIoU"], figures["segments"]
    return (
        f"mIoU {means['plain']:.2f}; with true masks {means['true_masks']:.2f}, with true names "
        f"{means['true_names']:.2f}, best proposals {means['best_proposals']:.2f}; segments recalled at IoU 0.5 "
        f"{segments['recall_50']:.1f} %, at 0.75 {segments['recall_75']:.1f} %, named right "
        f"{segments['named_right']:.1f} %"
    )


def _best_values(pixels: Counts, class_names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return IoU per class and the means, in percent, from intersections and unions (C, 2)."""
    ious = {name: _percent(*pair) for name, pair in zip(class_names, pixels.tolist(), strict=True)}
    means = {"mIoU": _mean(ious.values())}
    means |= {
        f"mIoU-{group}": _mean(ious[name] for name in members if name in ious) for group, members in groups.items()
    }
    return means | {f"IoU-{name}": iou for name, iou in ious.items()}


def _segment_figures(row: Counts) -> dict[str, Any]:
    """Return the numbers and shares of segments from a row of `OracleCounts.segments`."""
    numbers = dict(zip(SEGMENT_COLUMNS, row.tolist(), strict=True))
    return {
        "num_segments": numbers,
        "recall_50": _percent(numbers["recalled_50"], numbers["all"]),
        "recall_75": _percent(numbers["recalled_75"], numbers["all"]),
        "named_right": _percent(numbers["named"], numbers["all"]),
        "named_right_recalled_50": _percent(numbers["named_recalled_50"], numbers["recalled_50"]),
    }


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan


def _mean(values: Any) -> float:
    """Return the mean of the values that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(content), indent=2, ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    """Replace NaN by null, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(pairs: Sequence[Confusion]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "truth", "prediction", "pixels", "share_of_truth", "share_of_errors", "pixels_true_masks"])
    for rank, pair in enumerate(pairs, 1):
        shares = [f"{pair.share_of_truth:.4f}", f"{pair.share_of_errors:.4f}"]
        writer.writerow([rank, pair.truth, pair.prediction, pair.pixels, *shares, pair.pixels_true_masks])
    return text.getvalue()


def _page(title: str, figures: Mapping[str, Any], pairs: Sequence[Confusion], picture: str) -> ErrorPage:
    """Build the content of the page from the figures."""
    taken_for: dict[str, str] = {}
    for pair in pairs:
        taken_for.setdefault(pair.truth, pair.prediction)
    present = [each for each in figures["classes"] if each["label_pixels"]]
    lines = [
        ClassErrors(
            each["name"],
            tuple(each["IoU"][kind] for kind in KINDS),
            each["num_segments"]["all"],
            (each["recall_50"], each["recall_75"], each["named_right"]),
            taken_for.get(each["name"], ""),
        )
        for each in sorted(present, key=lambda each: each["IoU"]["plain"])
    ]
    means = {mean: tuple(figures[mean][kind] for kind in KINDS) for mean in figures if mean.startswith("mIoU")}
    means = {mean: row for mean, row in means.items() if mean == "mIoU" or not math.isnan(row[0])}
    shown = [
        (each.truth, each.prediction, each.pixels, each.share_of_truth, each.share_of_errors, each.pixels_true_masks)
        for each in pairs[:_SHOWN_PAIRS]
    ]
    return ErrorPage(title, means, figures["segments"], lines, shown, len(pairs), picture, CSV_FILE)
