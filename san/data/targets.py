"""From one label map to the classes, or binary masks, that the criterion matches.  M classes present, (H, W) image."""

from __future__ import annotations

import torch
from torch import Tensor

from san.data.label_sets import check_label_values


def classes_present(label_map: Tensor, ignore_label: int, num_classes: int, *, source: str = "the label map") -> Tensor:
    """The classes of a label map.

    Args:
        label_map: (H, W) integers, class indices or `ignore_label`.
        ignore_label: value of pixels without a class.
        num_classes: C.
        source: file name for the error message.

    Returns:
        (M,) int64 ascending; M is 0 when every pixel is ignored.

    Raises:
        ValueError: a value that is neither a class index nor the ignore label.
    """
    present = label_map.unique()
    check_label_values(present.tolist(), num_classes, ignore_label, source=source)
    classes: Tensor = present[present != ignore_label].to(torch.int64)
    return classes


def masks_from_label_map(
    label_map: Tensor, ignore_label: int, num_classes: int, *, source: str = "the label map"
) -> tuple[Tensor, Tensor]:
    """One binary mask per class present; the ignore label belongs to none (docs/method.md#8.1).

    Returns:
        labels (M,) as `classes_present` gives them, and masks (M, H, W) bool.

    Raises:
        ValueError: as `classes_present`.
    """
    labels = classes_present(label_map, ignore_label, num_classes, source=source)
    return labels, label_map == labels[:, None, None]
