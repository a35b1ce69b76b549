"""Visualizes the attention biases of [SLS] tokens: mask proposals with the bias of each head.

(H, W) image, L bias layers, N bias heads, (h, w) patch grid. Source: docs/method.md#4.2 and #5.2.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from san.io.errors import brief_repr
from san.visualize.palette import class_color, short_name
from san.visualize.plots import literal, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.gridspec import GridSpec

Array = npt.NDArray[Any]

_HEADS_PER_ROW = 6
_SHOWN_SIDE = 480  # pixels of a shown image, at most
_NO_OBJECT_COLOR = "#d62728"
_EXPLANATION = (
    "Each block is one mask proposal (query). CLIP classifies the mask with its [SLS] token, which attends to image "
    "patches through several attention heads. The side network adds a bias to the attention of each head to each "
    "patch. Right: the bias per head. A bias of b multiplies the weight of a patch by e^b before normalization: red "
    "patches get more attention, blue ones less, white ones are unchanged. Third picture: the attention that results "
    "from the biases alone, averaged over all heads. The line is the outline of the mask: a head may attend to the "
    "object, to its border or to its surroundings."
)


@dataclass(frozen=True, eq=False)
class AttentionView:
    """One mask proposal and the attention biases of its [SLS] token.

    Attributes:
        query: index of the query.
        name: most probable class; None for "no object".
        probability: probability of that class, 0..1.
        mask_probs: (H, W), 0..1, at the image's size.
        bias: (L, N, h, w), on CLIP's patch grid, or on the side network's grid before pooling.
        covered: fraction of the grid's height and width that the image covers; the rest is padding, bottom and right.
        color: colour of the outline, red, green, blue in 0..255; by default that of the class name.
    """

    query: int
    name: str | None
    probability: float
    mask_probs: Array
    bias: Array
    covered: tuple[float, float] = (1.0, 1.0)
    color: tuple[int, int, int] | None = None

    __repr__ = brief_repr


def attention_panel(
    image: Array, views: Sequence[AttentionView], path: str | Path | None = None, *, title: str = ""
) -> Any:
    """Draw for each mask proposal its outline, its mask probability, and the attention bias of each head.

    Args:
        image: (H, W, 3) uint8 RGB.
        views: the proposals, one block each.
        path: file to write as well; missing folders are created.
        title: title of the picture.

    Returns:
        the matplotlib figure.

    Raises:
        ValueError: there is no proposal, or the shapes of arrays do not match.
    """
    if not views:
        raise ValueError("no mask proposal to show; give at least one")
    for view in views:
        _check(image, view)
    step = max(1, -(-max(image.shape[:2]) // _SHOWN_SIDE))
    heads = views[0].bias.shape[0] * views[0].bias.shape[1]
    columns = min(_HEADS_PER_ROW, heads)
    aspect = min(image.shape[0] / image.shape[1], 2.0)
    cell = 2.0 if heads <= 4 else 1.55
    block = 0.85 + max(-(-heads // columns) * (cell * aspect + 0.25), 2.4 * aspect + 0.3)
    width = 3 * 2.75 + cell * columns + 1.2
    lines = textwrap.wrap(_EXPLANATION, int(12.5 * width))
    top = 0.2 * len(lines) + (0.6 if title else 0.3)
    figure = new_figure(width, block * len(views) + top)
    parts: Any = figure.subfigures(1 + len(views), 1, height_ratios=[top, *[block] * len(views)])
    head, *blocks = parts
    if title:
        head.text(0.012, 1 - 0.12 / top, literal(title), fontsize=13, fontweight="bold", va="top")
    head.text(0.012, 0.1 / top, "\n".join(lines), fontsize=9.5, va="bottom", linespacing=1.35)
    for part, view in zip(blocks, views, strict=True):
        _draw_block(part, image[::step, ::step], view, view.mask_probs[::step, ::step], columns, cell)
    if path is not None:
        save_figure(figure, path)
    return figure


def _check(image: Array, view: AttentionView) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image has shape {image.shape} but must be RGB, (height, width, 3); convert it")
    if view.mask_probs.shape != image.shape[:2]:
        raise ValueError(
            f"image is {image.shape[:2]} but the mask of query {view.query} is {view.mask_probs.shape}; "
            "resize one to the other"
        )
    if view.bias.ndim != 4 or 0 in view.bias.shape:
        raise ValueError(f"the bias of query {view.query} has shape {view.bias.shape} but must be (L, N, h, w)")


def _draw_block(part: SubFigure, image: Array, view: AttentionView, mask: Array, columns: int, cell: float) -> None:
    """Draw one proposal: heading, image, mask, attention by the biases alone, and the bias of each head."""
    name = "no object" if view.name is None else f"“{literal(short_name(view.name, 60))}”"
    part.suptitle(f"query {view.query}: {name}, probability {view.probability:.0%}", x=0.012, ha="left", fontsize=11.5)
    rows = -(-view.bias.shape[0] * view.bias.shape[1] // columns)
    grid = part.add_gridspec(rows, columns + 4, width_ratios=[2.75, 2.75, 2.75, *[cell] * columns, 0.12])
    color: Any = _NO_OBJECT_COLOR
    if view.name is not None:
        color = tuple(value / 255 for value in view.color or class_color(view.name))
    axes = _axes(part, grid[:, 0], "image and outline of the mask")
    axes.imshow(image)
    _outline(axes, mask, color)
    axes = _axes(part, grid[:, 1], "mask probability")
    _bar(part, axes.imshow(mask, cmap="viridis", vmin=0, vmax=1), axes)
    axes = _axes(part, grid[:, 2], "attention by the biases alone")
    weights = np.exp(view.bias - view.bias.max(axis=(2, 3), keepdims=True))
    weights = (weights / weights.sum(axis=(2, 3), keepdims=True)).mean(axis=(0, 1))  # (h, w), sum 1
    _bar(part, _draw_patches(axes, image, weights, view, mask, cmap="inferno", vmin=0), axes, percent=True)
    _draw_heads(part, grid, image, view, mask, columns)


def _draw_heads(part: SubFigure, grid: GridSpec, image: Array, view: AttentionView, mask: Array, columns: int) -> None:
    """Draw the bias of every head with one colour scale."""
    biases = view.bias.reshape(-1, *view.bias.shape[2:])
    seen = np.stack([_covered(bias, view.covered) for bias in biases])
    limit = max(1e-6, float(np.quantile(np.abs(seen), 0.9)))
    layers, heads = view.bias.shape[:2]
    for index, bias in enumerate(biases):
        layer, head = divmod(index, heads)
        title = f"head {head + 1}" if layers == 1 else f"layer {layer + 1}, head {head + 1}"
        axes = _axes(part, grid[index // columns, 3 + index % columns], title)
        shown = _draw_patches(axes, image, bias, view, mask, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = part.colorbar(shown, cax=part.add_subplot(grid[:, -1]), extend="both")
    bar.set_label("attention bias", fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)


def _draw_patches(axes: Axes, image: Array, values: Array, view: AttentionView, mask: Array, **colors: Any) -> Any:
    """Draw the values (h, w) of patches over the faded image, with the mask's outline."""
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=-80, vmax=255)
    extent = _extent(values, view.covered, (image.shape[0], image.shape[1]))
    shown = axes.imshow(_covered(values, view.covered), alpha=0.8, extent=extent, interpolation="nearest", **colors)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    _outline(axes, mask, "black")
    return shown


def _axes(part: SubFigure, place: Any, title: str) -> Axes:
    axes = part.add_subplot(place)
    axes.set_title(title, fontsize=8.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _outline(axes: Axes, mask: Array, color: Any) -> None:
    """Draw the mask's outline with a white margin, visible on any background."""
    if mask.min() < 0.5 < mask.max():
        axes.contour(mask, levels=[0.5], colors="white", linewidths=2.4)
        axes.contour(mask, levels=[0.5], colors=[color], linewidths=1.2)


def _bar(part: SubFigure, shown: Any, axes: Axes, *, percent: bool = False) -> None:
    """Draw the colour bar of one picture."""
    unit = (lambda value, _: f"{100 * value:.3g} %") if percent else None
    bar = part.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, format=unit)
    bar.ax.tick_params(labelsize=7.5)


def _covered(bias: Array, covered: tuple[float, float]) -> Array:
    """Crop the patches (h, w) to those that the image covers, without pure padding."""
    rows, columns = (max(1, math.ceil(n * share - 1e-6)) for n, share in zip(bias.shape, covered, strict=True))
    return bias[:rows, :columns]


def _extent(bias: Array, covered: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the extent of the patches of `_covered` in an image of (H, W) pixels: left, right, bottom, top."""
    (rows, columns), kept = bias.shape, _covered(bias, covered).shape
    bottom, right = kept[0] / (rows * covered[0]) * size[0], kept[1] / (columns * covered[1]) * size[1]
    return -0.5, right - 0.5, bottom - 0.5, -0.5
