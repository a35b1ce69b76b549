from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.visualize import AttentionView, attention_panel
from san.visualize.attention import _covered, _extent


def make_view(
    size: tuple[int, int] = (48, 64), bias: tuple[int, ...] = (1, 3, 4, 5), **changes: object
) -> AttentionView:
    rng = np.random.default_rng(0)
    mask = np.zeros(size, np.float32)
    mask[10:30, 20:50] = 0.9
    values = {"query": 7, "name": "red star", "probability": 0.93, "mask_probs": mask, "bias": rng.normal(0, 5, bias)}
    return AttentionView(**(values | changes))  # type: ignore[arg-type]


def test_one_picture_per_head(tmp_path: Path) -> None:
    image = np.full((48, 64, 3), 90, np.uint8)
    empty = np.zeros((48, 64), np.float32)  # a mask without an outline
    views = [make_view(bias=(2, 3, 4, 5)), make_view(bias=(2, 3, 4, 5), name=None, mask_probs=empty, query=11)]
    figure = attention_panel(image, views, tmp_path / "sub" / "attention.png", title="A title")
    with Image.open(tmp_path / "sub" / "attention.png") as picture:
        assert min(picture.size) > 600
    head, first, second = figure.subfigs
    titles = [axes.get_title() for axes in first.axes]
    for layer in (1, 2):
        for number in (1, 2, 3):
            assert f"layer {layer}, head {number}" in titles
    assert first._suptitle.get_text() == "query 7: “red star”, probability 93%"
    assert "query 11: no object" in second._suptitle.get_text()
    assert any("[SLS]" in text.get_text() for text in head.texts)
    heads = [axes for axes in first.axes if axes.get_title().startswith("layer")]
    limits = {axes.images[-1].get_clim() for axes in heads}
    assert len(limits) == 1  # one meaning of the colours in all heads
    low, high = limits.pop()
    assert low == -high
    (alone,) = [axes for axes in first.axes if axes.get_title() == "attention by the biases alone"]
    assert alone.images[-1].get_array().sum() == pytest.approx(1)


def test_padding_is_cut_off() -> None:
    """An image that takes 3 of 4 rows and 2.5 of 5 columns: so many patches are shown, in their true places."""
    bias = np.arange(20.0).reshape(4, 5)
    assert _covered(bias, (0.75, 0.5)).tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12]]
    left, right, bottom, top = _extent(bias, (0.75, 0.5), (30, 50))
    assert (left, top, bottom, right) == (-0.5, -0.5, 29.5, 59.5)  # the third column of patches is half padding
    assert _covered(bias, (1.0, 1.0)).shape == (4, 5)


def test_bad_views_are_refused() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="at least one"):
        attention_panel(image, [])
    with pytest.raises(ValueError, match="resize one to the other"):
        attention_panel(image[:-1], [make_view()])
    with pytest.raises(ValueError, match=r"must be \(L, N, h, w\)"):
        attention_panel(image, [make_view(bias=(3, 4, 5))])
    with pytest.raises(ValueError, match="must be RGB"):
        attention_panel(image[..., 0], [make_view()])
