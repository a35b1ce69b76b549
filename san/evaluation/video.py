"""Metrics of video label maps: region IoU J, boundary measure F, mIoU, and temporal consistency.

Legend: T frames, C classes, (H, W) frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.008
"""Maximum distance of matching boundaries, as a share of the frame's diagonal (DAVIS 2016)."""


def region_similarity(prediction: Mask, truth: Mask) -> float:
    """Compute J of one frame: intersection over union of two masks (H, W), 0..1; 1 if both are empty."""
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary_similarity(prediction: Mask, truth: Mask, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Compute F of one frame: F-measure of boundary precision and recall, 0..1; 1 if both masks are empty.

    A boundary pixel is correct if the other boundary has a pixel within the tolerance (a disc with its radius rounded
    up to whole pixels), as in DAVIS.

    Args:
        prediction: (H, W).
        truth: (H, W).
        tolerance: share of the diagonal.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    found, true = _boundary(prediction), _boundary(truth)
    num_found, num_true = np.count_nonzero(found), np.count_nonzero(true)
    if not num_found or not num_true:
        return float(num_found == num_true)
    precision = np.count_nonzero(found & _grown(true, radius)) / num_found
    recall = np.count_nonzero(true & _grown(found, radius)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass
class VideoScores:
    """Accumulates J, F and IoU per class over videos.

    J and F of a class are means over all frames of the videos in which the class has a labelled pixel, also over frames
    without one. The IoU of a class is that of its pixels in these videos together.

    Attributes:
        num_classes: C.
        region: (C,) sums of J.
        boundary: (C,) sums of F.
        frames: (C,) number of frames in these sums.
        intersection: (C,) pixels.
        union: (C,) pixels.
    """

    num_classes: int
    region: Array = field(init=False)
    boundary: Array = field(init=False)
    frames: Array = field(init=False)
    intersection: Array = field(init=False)
    union: Array = field(init=False)

    def __post_init__(self) -> None:
        self.region, self.boundary = np.zeros(self.num_classes), np.zeros(self.num_classes)
        self.frames, self.intersection, self.union = (np.zeros(self.num_classes, np.int64) for _ in range(3))

    def update(self, prediction: Array, truth: Array) -> None:
        """Count one video.

        Args:
            prediction: (T, H, W) class indices.
            truth: (T, H, W) class indices; pixels of other values have no class, and a class predicted there counts as
                wrong.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction is {prediction.shape} but the truth {truth.shape}; predict every frame")
        for label in np.unique(truth[(truth >= 0) & (truth < self.num_classes)]).tolist():
            for found, true in zip(prediction == label, truth == label, strict=True):
                self.region[label] += region_similarity(found, true)
                self.boundary[label] += boundary_similarity(found, true)
                self.frames[label] += 1
                self.intersection[label] += np.count_nonzero(found & true)
                self.union[label] += np.count_nonzero(found | true)

    def per_class(self) -> dict[str, Array]:
        """Return J, F and IoU in percent, (C,) each; NaN for classes that do not occur."""
        with np.errstate(invalid="ignore"):
            parts = (self.region / self.frames, self.boundary / self.frames, self.intersection / self.union)
        return {name: 100 * part for name, part in zip(("J", "F", "IoU"), parts, strict=True)}

    def metrics(self) -> dict[str, float]:
        """Return J, F, their mean J&F, and mIoU in percent: means over the classes that occur; NaN if none does."""
        seen = self.frames > 0
        if not seen.any():
            return dict.fromkeys(("J", "F", "J&F", "mIoU"), math.nan)
        region, boundary, iou = (float(each[seen].mean()) for each in self.per_class().values())
        return {"J": region, "F": boundary, "J&F": (region + boundary) / 2, "mIoU": iou}


def stable_pixels(labels: Array, sources: Array) -> Mask:
    """Return where a surface keeps its label: (T, H, W), false in the first frame and where `sources` is -1.

    Args:
        labels: (T, H, W) predicted.
        sources: (T, H, W), position of a pixel's surface in the previous frame, as row * W + column; -1 if not visible.
            See `san.shapes.clips.render_clip`.
    """
    before = np.roll(labels, 1, axis=0).reshape(len(labels), -1)
    moved = np.take_along_axis(before, sources.reshape(len(labels), -1).clip(0), axis=1).reshape(labels.shape)
    stable: Mask = (moved == labels) & (sources >= 0)
    return stable


def _boundary(mask: Mask) -> Mask:
    """Return the pixels that differ from their right, lower or lower right neighbour, as in DAVIS; (H, W)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: Mask = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return edge


def _grown(mask: Mask, radius: int) -> Mask:
    """Dilate the mask by `radius`: add all pixels at most that far from one of its pixels."""
    height, width = mask.shape
    grown = np.zeros((height + 2 * radius, width + 2 * radius), bool)
    rows, columns = np.nonzero(mask)
    for top, left in _disc(radius):
        grown[rows + top, columns + left] = True
    return grown[radius : radius + height, radius : radius + width]


def _disc(radius: int) -> Iterator[tuple[int, int]]:
    """Return the offsets of a disc's pixels from the corner of its bounding square."""
    for row in range(-radius, radius + 1):
        for column in range(-radius, radius + 1):
            if row**2 + column**2 <= radius**2:
                yield row + radius, column + radius
