from __future__ import annotations

import pytest
import torch

from san.data.targets import masks_from_label_map


def test_one_mask_per_class_present() -> None:
    label_map = torch.tensor([[3, 3, 255], [0, 3, 255]])
    labels, masks = masks_from_label_map(label_map, 255, 5)
    assert labels.tolist() == [0, 3]
    assert labels.dtype == torch.int64
    assert masks.dtype == torch.bool
    assert masks.int().tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 1, 0]]]


def test_masks_partition_the_annotated_pixels() -> None:
    label_map = torch.randint(0, 9, (31, 17), generator=torch.Generator().manual_seed(0)).int()
    label_map[label_map == 8] = 65535
    _, masks = masks_from_label_map(label_map, 65535, 8)
    assert torch.equal(masks.sum(0), (label_map != 65535).long())


def test_no_annotated_pixel() -> None:
    labels, masks = masks_from_label_map(torch.full((4, 6), 255), 255, 5)
    assert labels.shape == (0,)
    assert masks.shape == (0, 4, 6)


@pytest.mark.parametrize("value", [5, -1, 254])
def test_values_outside_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"label map x\.png holds the value {value} "):
        masks_from_label_map(torch.tensor([[0, value]]), 255, 5, source="label map x.png")
