"""Writes metrics.json, per_class.csv and per_class.png of an evaluation, and formats a summary for the log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from san.evaluation.confusion import ConfusionMatrix
from san.evaluation.metrics import metrics
from san.io.files import write_text

SUMMARY_KEYS = ("mIoU", "mIoU_detectron2_v0.6", "fwIoU", "mACC", "pACC", "zero_iou_share")
"""The metrics that are not per class, in display order."""

SEGMENT_KINDS = ("PQ", "SQ", "RQ", "AP", "AP50", "AP75")
"""Kinds of metrics of segments, in panoptic sets; of all classes, and with ``-<group>`` or ``-<class>``."""


def write_report(
    folder: str | Path,
    matrix: ConfusionMatrix,
    class_names: Sequence[str],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    title: str = "IoU per class",
    subset: str = "",
    segments: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Write an evaluation's three files to `folder`, which is created if missing.

    `metrics.json` contains the result of `metrics`, with null for NaN; `per_class.csv` one row per class with its pixel
    counts, IoU and accuracy (empty for absent classes); `per_class.png` the IoUs as bars.

    Args:
        folder: folder to write to.
        matrix: the counts.
        class_names: C distinct names.
        groups: see `metrics`.
        title: title of the picture.
        subset: the part of the data set that was evaluated, such as "20 of 5000 images"; it is written to
            `metrics.json` under "subset". "" = all of it.
        segments: figures of `PanopticEvaluation.figures`, which are written, too; those per class as columns PQ and AP.

    Returns:
        the metrics, in percent.

    Raises:
        ValueError: the names are not C distinct names.
    """
    from san.visualize import drawing, plot_per_class

    values = metrics(matrix, class_names, groups) | dict(segments or {})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: None if math.isnan(value) else value for key, value in values.items()}
    content = {"subset": subset, **plain} if subset else plain
    write_text(folder / "metrics.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _write_csv(folder / "per_class.csv", matrix, class_names, plain)
    with drawing(folder / "per_class.png"):
        plot_per_class({name: values[f"IoU-{name}"] for name in class_names}, folder / "per_class.png", title=title)
    return values


def summary_keys(values: Mapping[str, float]) -> list[str]:
    """Return the keys of the metrics that are not per class: the six, and those of groups and segments with a value."""
    return [*SUMMARY_KEYS, *(key for key in values if _is_mean(key, values) and not math.isnan(values[key]))]


def _is_mean(key: str, values: Mapping[str, float]) -> bool:
    """Whether a metric besides the six is a mean over classes."""
    kind, _, rest = key.partition("-")
    return (kind == "mIoU" and bool(rest)) or (kind in SEGMENT_KINDS and f"IoU-{rest}" not in values)


def format_summary(values: Mapping[str, float]) -> str:
    """Format the metrics of `summary_keys` that are of label maps as a two-row table for the log."""
    keys = [key for key in summary_keys(values) if key.partition("-")[0] not in SEGMENT_KINDS]
    widths = [max(len(key), 6) for key in keys]
    rows = (keys, [f"{values[key]:.2f}" for key in keys])
    return "\n".join(" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _write_csv(
    path: Path, matrix: ConfusionMatrix, class_names: Sequence[str], values: Mapping[str, float | None]
) -> None:
    labelled, predicted = matrix.counts.sum(axis=1).tolist(), matrix.counts.sum(axis=0).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        kinds = ["IoU", "ACC", *(["PQ", "AP"] if "PQ" in values else [])]
        writer.writerow(["index", "class", "label_pixels", "predicted_pixels", *kinds])
        for index, name in enumerate(class_names):
            found = [values.get(f"{kind}-{name}") for kind in kinds]
            scores = ["" if v is None else f"{v:.4f}" for v in found]
            writer.writerow([index, name, labelled[index], predicted[index], *scores])
