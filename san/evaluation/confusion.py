"""Confusion matrix, updated per image and summed over workers.  C classes, (H, W) image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from san.vocabulary.label_sets import check_label_values


class ConfusionMatrix:
    """Pixel counts, `counts[label, prediction]`; pixels with the ignore label are not counted.

    Attributes:
        num_classes: C.
        ignore_label: label of pixels that are not counted.
        counts: (C, C) int64.
    """

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes} but must be at least 1; pass the dataset's class list")
        if 0 <= ignore_label < num_classes:
            raise ValueError(
                f"ignore_label {ignore_label} is a class of 0..{num_classes - 1}; use a value outside "
                "(255, or 65535 for 16-bit label maps)"
            )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: npt.NDArray[Any], label: npt.NDArray[Any], *, file_name: str = "the image") -> None:
        """Count one image.

        Args:
            prediction: (H, W) integers, class indices.
            label: (H, W) integers, class indices or the ignore label.
            file_name: name for error messages.

        Raises:
            ValueError: the shapes differ, or a value is neither a class nor (in `label`) the ignore label. Nothing is
                counted in that case.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction of {file_name} has shape {prediction.shape} but its label map has {label.shape}; predict "
                "at the label map's size"
            )
        ignored, num_cells = label == self.ignore_label, self.num_classes**2
        self._check(label, ignored, f"label map of {file_name}", self.ignore_label)
        self._check(prediction, ignored, f"prediction of {file_name}", None)
        cells = label.astype(np.intp)  # the only copy of all pixels, to save memory
        cells *= self.num_classes
        np.add(cells, prediction, out=cells, casting="unsafe")
        cells[ignored] = num_cells  # an extra cell, which is dropped
        counts = np.bincount(cells.ravel(), minlength=num_cells + 1)[:num_cells]
        self.counts += counts.reshape(self.counts.shape)

    def merge(self, counts: npt.NDArray[np.int64]) -> None:
        """Add another worker's `counts`.

        Raises:
            ValueError: the number of classes differs.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"counts {counts.shape} cannot be added to {self.counts.shape}; use the same class list in all workers"
            )
        self.counts += counts

    def _check(
        self, values: npt.NDArray[Any], ignored: npt.NDArray[np.bool_], source: str, ignore_label: int | None
    ) -> None:
        """Raise if a counted value is not a class."""
        if values.size and (values.min() < 0 or values.max() >= self.num_classes):
            counted = values[~ignored]
            if counted.size and (counted.min() < 0 or counted.max() >= self.num_classes):
                check_label_values(np.unique(counted), self.num_classes, ignore_label, source=source)


def add_counts(own: Mapping[str, npt.NDArray[Any]], more: Mapping[str, npt.NDArray[Any]], complaint: str) -> None:
    """Add another worker's counts to arrays, in place.

    Args:
        own: the arrays by name.
        more: what is added to each.
        complaint: what is wrong with counts that do not fit, for the message.

    Raises:
        ValueError: a name, type or shape differs, or a count is negative; nothing is added in that case.
    """
    for name, values in own.items():
        found = more.get(name)
        if (
            not isinstance(found, np.ndarray)
            or (found.dtype, found.shape) != (values.dtype, values.shape)
            or not (found >= 0).all()  # NaN is not
        ):
            raise ValueError(f"the counts {name!r} {complaint}")
    for name, values in own.items():
        values += more[name]
