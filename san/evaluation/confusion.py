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
        counted = label != self.ignore_label
        labels, predictions = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
        self._check(labels, f"label map of {file_name}", self.ignore_label)
        self._check(predictions, f"prediction of {file_name}", None)
        cells = np.bincount(labels * self.num_classes + predictions, minlength=self.num_classes**2)
        self.counts += cells.reshape(self.num_classes, self.num_classes)

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

    def _check(self, values: npt.NDArray[np.int64], source: str, ignore_label: int | None) -> None:
        if values.size and (values.min() < 0 or values.max() >= self.num_classes):
            check_label_values(np.unique(values), self.num_classes, ignore_label, source=source)
