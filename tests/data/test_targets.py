from __future__ import annotations

import pytest
import torch

from san.data.targets import classes_present


def test_each_class_once_without_the_ignore_label() -> None:
    labels = classes_present(torch.tensor([[3, 3, 255], [0, 3, 255]]), 255, 5)
    assert labels.tolist() == [0, 3]
    assert labels.dtype == torch.int64


def test_no_annotated_pixel() -> None:
    assert classes_present(torch.full((4, 6), 255), 255, 5).shape == (0,)


@pytest.mark.parametrize("value", [5, -1, 254])
def test_values_outside_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"label map x\.png holds the value {value} "):
        classes_present(torch.tensor([[0, value]]), 255, 5, source="label map x.png")
