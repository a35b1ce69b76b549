"""Panoptic quality: PQ, SQ and RQ of segments.  C classes, (H, W) image.

As arXiv 1801.00868 defines it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from san.evaluation.confusion import add_counts
from san.io.errors import brief_repr

_STEPS = 2**30


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of an image.

    Attributes:
        ids: (H, W) integers; 0 is no segment.
        classes: class index of each id in `ids`.
        crowd: ids of crowds, which are neither found nor missed; in the ground truth only.
    """

    ids: npt.NDArray[np.int64]
    classes: Mapping[int, int]
    crowd: frozenset[int] = frozenset()

    __repr__ = brief_repr


class PanopticCounts:
    """Counts of matched and unmatched segments per class, updated per image.

    Attributes:
        found: (C,) int64, pairs of a predicted and a true segment of the class whose IoU is above 0.5.
        wrong: (C,) predicted segments without such a partner.
        missed: (C,) true segments without such a partner.
        iou: (C,) float64, summed IoU of the pairs, each rounded to a multiple of 2**-30: such sums are exact, so that
            they do not depend on the order of images.
    """

    def __init__(self, num_classes: int) -> None:
        self.found, self.wrong, self.missed = (np.zeros(num_classes, np.int64) for _ in range(3))
        self.iou = np.zeros(num_classes)

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All counts by name."""
        return {"found": self.found, "wrong": self.wrong, "missed": self.missed, "iou": self.iou}

    def merge(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add another worker's `arrays`.

        Raises:
            ValueError: a name, type or shape differs, or a count is negative; nothing is added in that case.
        """
        add_counts(self.arrays, arrays, f"of segments are none of {len(self.found)} classes")

    def update(self, prediction: Segments, truth: Segments, *, file_name: str = "the image") -> None:
        """Count one image.

        Pixels of no true segment are not counted in an IoU. A predicted segment of which more than half lies in such
        pixels, or in a crowd of its class, is not wrong.

        Raises:
            ValueError: the shapes differ, or an id has no class.
        """
        if prediction.ids.shape != truth.ids.shape:
            raise ValueError(
                f"the prediction of {file_name} has shape {prediction.ids.shape}, but the ground truth has "
                f"{truth.ids.shape}; predict at the size of the image"
            )
        pairs = _overlaps(prediction.ids, truth.ids)
        predicted, true = (
            _areas(prediction, f"the prediction of {file_name}"),
            _areas(truth, f"the truth of {file_name}"),
        )
        matched_predictions, matched_truths, outside = set(), set(), dict.fromkeys(predicted, 0)
        for (mine, theirs), overlap in pairs.items():
            if mine == 0:
                continue
            label = prediction.classes[mine]
            if theirs == 0 or (truth.classes[theirs] == label and theirs in truth.crowd):
                outside[mine] += overlap
            elif truth.classes[theirs] == label:
                union = predicted[mine] + true[theirs] - overlap - pairs.get((mine, 0), 0)
                if 2 * overlap > union:  # at most one partner has so much
                    self.found[label] += 1
                    self.iou[label] += round(overlap / union * _STEPS) / _STEPS
                    matched_predictions.add(mine)
                    matched_truths.add(theirs)
        for theirs in true.keys() - matched_truths - truth.crowd:
            self.missed[truth.classes[theirs]] += 1
        for mine in predicted.keys() - matched_predictions:
            if 2 * outside[mine] <= predicted[mine]:
                self.wrong[prediction.classes[mine]] += 1


def panoptic_metrics(
    counts: PanopticCounts, names: Sequence[str], groups: Mapping[str, Sequence[str]] | None = None
) -> dict[str, float]:
    """Compute panoptic quality in percent: means over the classes that occur, and per class.

    Args:
        counts: of all images.
        names: C class names.
        groups: group name -> class names, such as things and stuff; names that are not a class here are skipped.

    Returns:
        PQ, SQ and RQ, then the same with ``-<group>``, then ``PQ-<name>``. A class occurs if it has a true or a
        predicted segment that counts; the others are NaN. SQ is 0 for a class of which nothing was found.
    """
    total = counts.found + (counts.wrong + counts.missed) / 2
    occurs = total > 0
    safe = np.where(occurs, total, 1)
    rq = counts.found / safe
    sq = counts.iou / np.maximum(counts.found, 1)
    values = {"PQ": 100 * sq * rq, "SQ": 100 * sq, "RQ": 100 * rq}
    members = {"": [*names], **{f"-{name}": [*own] for name, own in (groups or {}).items()}}
    result = {}
    for suffix, own in members.items():
        chosen = occurs & np.isin(np.array(names, object), own)
        for kind, value in values.items():
            result[kind + suffix] = float(value[chosen].mean()) if chosen.any() else float("nan")
    for index, name in enumerate(names):
        result[f"PQ-{name}"] = float(values["PQ"][index]) if occurs[index] else float("nan")
    return result


def panoptic_rows(figures: Mapping[str, float], groups: Sequence[str]) -> str:
    """Format PQ, SQ, RQ, and AP where it is known, of all classes and of groups, as a table.

    Args:
        figures: of `panoptic_metrics`, or of `PanopticEvaluation.figures`.
        groups: names of groups, such as things and stuff.
    """
    kinds = ["PQ", "SQ", "RQ", *(["AP"] if "AP" in figures else [])]
    width = max(8, *(len(group) + 1 for group in groups))
    lines = ["".join([" " * width, *(f"{kind:>7}" for kind in kinds)])]
    for group in ("", *groups):
        keys = [f"{kind}-{group}" if group else kind for kind in kinds]
        if "AP" in figures:
            keys[-1] = {"": "", "things": "AP"}.get(group, keys[-1])
        cells = [_shown(figures.get(key, float("nan"))) for key in keys]
        lines.append((group or "all").ljust(width) + "".join(cell.rjust(7) for cell in cells))
    if "AP" in figures:
        lines.append(f"AP50 {_shown(figures['AP50'])}, AP75 {_shown(figures['AP75'])} (AP is that of things)")
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: float) -> str:
    return "–" if value != value else f"{value:.1f}"


def _overlaps(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """Return the number of pixels of each pair of ids that occurs."""
    mine, first_places = np.unique(first, return_inverse=True)
    theirs, second_places = np.unique(second, return_inverse=True)
    cells, counts = np.unique(first_places.ravel() * len(theirs) + second_places.ravel(), return_counts=True)
    return {
        (int(mine[cell // len(theirs)]), int(theirs[cell % len(theirs)])): int(count)
        for cell, count in zip(cells, counts, strict=True)
    }


def _areas(segments: Segments, what: str) -> dict[int, int]:
    """Return the number of pixels of each segment.

    Raises:
        ValueError: an id has no class.
    """
    ids, counts = np.unique(segments.ids, return_counts=True)
    areas = {int(key): int(count) for key, count in zip(ids, counts, strict=True) if key != 0}
    unknown = areas.keys() - segments.classes.keys()
    if unknown:
        raise ValueError(f"{what} has the segment id {min(unknown)} without a class; list it in segments_info")
    return areas
