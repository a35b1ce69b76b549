"""Reads label maps of a data set as class indices and checks them against its classes.  (H, W) label map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.label_mapping import LabelMapping
from san.io.image_files import read_label_map
from san.vocabulary.label_sets import check_label_values

Array = npt.NDArray[Any]

_MOST_IN_8_BITS = 256


def needs_16_bits(num_classes: int, mapping: LabelMapping | None) -> bool:
    """Whether 8-bit label maps cannot store the class indices; with a mapping, they do not have to."""
    return mapping is None and num_classes > _MOST_IN_8_BITS


def read_truth(path: str | Path, num_classes: int, ignore_label: int, mapping: LabelMapping | None = None) -> Array:
    """Read a label map of a data set.

    Args:
        path: its file.
        num_classes: C.
        ignore_label: value of pixels without a class.
        mapping: values of the file -> class indices; None if the file contains class indices.

    Returns:
        (H, W) int32, class indices and the ignore label.

    Raises:
        FileNotFoundError, ValueError: the file is missing, cannot be read, has too few bits for the classes or contains
            illegal values.
    """
    labels = read_label_map(path, wide=needs_16_bits(num_classes, mapping))
    if mapping is not None:
        labels = mapping.apply(labels, source=f"label map {path}")
    wrong = (labels < 0) | (labels >= num_classes)
    wrong &= labels != ignore_label
    if wrong.any():
        check_label_values(np.unique(labels[wrong]), num_classes, ignore_label, source=f"label map {path}")
    return labels


def doubt_about_masks(values: Iterable[int], ignore_label: int, mapping: LabelMapping | None) -> str:
    """Return a warning if all label maps contain only 0 and the ignore label, else "".

    Binary masks of 0 and 255 are the usual cause: all pixels of value 255 are ignored without a message.

    Args:
        values: the values that occur in the label maps read.
        ignore_label: value of pixels without a class.
        mapping: mapping of the values; if there is one, the values are assumed to be intended.
    """
    if mapping is not None or set(values) != {0, ignore_label}:
        return ""
    return (
        f"the label maps hold no values but 0 and {ignore_label}, and {ignore_label} is the ignore label, so that its "
        f"pixels are left out; if these are masks, write label_mapping {{0: <class>, {ignore_label}: <class>}} into "
        "the data set's file"
    )
