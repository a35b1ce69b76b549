"""Lists the classes of a label map; each is one target mask of the criterion (docs/method.md#8.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from san.vocabulary.label_sets import check_label_values


def classes_present(label_map: Tensor, ignore_label: int, num_classes: int, *, source: str = "the label map") -> Tensor:
    """Return the classes of a label map.

    Args:
        label_map: (H, W) integers, class indices or `ignore_label`.
        ignore_label: value of pixels without a class.
        num_classes: C.
        source: file name for the error message.

    Returns:
        (M,) int64 ascending; M is 0 if all pixels are ignored.

    Raises:
        ValueError: a value is neither a class index nor the ignore label.
    """
    present = label_map.unique()
    check_label_values(present.tolist(), num_classes, ignore_label, source=source)
    classes: Tensor = present[present != ignore_label].to(torch.int64)
    return classes
