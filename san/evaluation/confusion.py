"""A confusion matrix that grows image by image and adds up over workers.  C classes, (H, W) image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.label_sets import check_label_values


class ConfusionMatrix:
    """Pixel counts, `counts[label, prediction]`; pixels with the ignore label count nowhere.

    Attributes:
        num_classes: C.
        ignore_label: label of pixels that are left out.
        counts: (C, C) int64.
    """

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes} but must be at least 1; give the dataset's class list")
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
            ValueError: the shapes differ, or a value is neither a class nor (in `label`) the ignore label; nothing is
                counted then.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction of {file_name} has shape {prediction.shape} but its label map {label.shape}; predict at "
                "the label map's size"
            )
        ignored, num_cells = label == self.ignore_label, self.num_classes**2
        self._check(label, ignored, f"label map of {file_name}", self.ignore_label)
        self._check(prediction, ignored, f"prediction of {file_name}", None)
        cells = label.astype(np.intp)  # the only copy of all pixels
        cells *= self.num_classes
        np.add(cells, prediction, out=cells, casting="unsafe")
        cells[ignored] = num_cells  # a cell more, which is dropped
        counts = np.bincount(cells.ravel(), minlength=num_cells + 1)[:num_cells]
        self.counts += counts.reshape(self.counts.shape)

    def merge(self, counts: npt.NDArray[np.int64]) -> None:
        """Add another worker's `counts`.

        Raises:
            ValueError: they are of another number of classes.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"counts {counts.shape} cannot be added to {self.counts.shape}; give all workers the same class list"
            )
        self.counts += counts

    def _check(
        self, values: npt.NDArray[Any], ignored: npt.NDArray[np.bool_], source: str, ignore_label: int | None
    ) -> None:
        """Refuse values that count but are no class."""
        if values.size and (values.min() < 0 or values.max() >= self.num_classes):
            counted = values[~ignored]
            if counted.size and (counted.min() < 0 or counted.max() >= self.num_classes):
                check_label_values(np.unique(counted), self.num_classes, ignore_label, source=source)
