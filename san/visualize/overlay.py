"""Draws label maps and segments in class colours over the image, and error maps of predictions.

Images are (H, W, 3) uint8 RGB, label maps (H, W) integers. A label outside 0..C-1 (−1, 255 or 65535, depending on the
file) is not a class: the image is shown there faded, grey and hatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.visualize.palette import palette
from san.visualize.text import annotate

Array = npt.NDArray[Any]

RIGHT_COLOR, WRONG_COLOR = (214, 224, 235), (203, 36, 49)
"""Colours of right and wrong pixels in an error map, which also differ in lightness."""

_IGNORED = 245  # grey of pixels without a class
_HATCH, _HATCH_STEP, _HATCH_WIDTH = 185, 10, 2  # grey, distance and width of the hatch lines
_SHADES = (0.0, 0.35, -0.3, 0.6, -0.5)  # of the segments of a class, in turn: share of white, or of black
_OUTLINE_SIDE = 400  # pixels of the short side per pixel of the width of an outline
_BAND_PIXELS = 2**20  # coloured at a time, so that an image of any size needs only 12 MB of float32


def overlay(
    image: Array, labels: Array, names: Sequence[str], *, alpha: float = 0.7, tags: bool = False
) -> npt.NDArray[np.uint8]:
    """Draw class colours over the grey image, with a thin dark line between segments.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers; values outside 0..C-1 are shown faded, grey and hatched.
        names: C class names.
        alpha: weight of the class colours, 0..1.
        tags: write the classes' names into the picture.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ, or alpha is not in 0..1.
    """
    check_sizes(image, labels)
    result = _tinted(image, labels, palette(names), _boundaries(labels), alpha)
    if tags:
        result = np.asarray(annotate(Image.fromarray(result), labels, names))
    return result


def segment_overlay(
    image: Array, ids: Array, classes: Sequence[int], names: Sequence[str], *, alpha: float = 0.7
) -> npt.NDArray[np.uint8]:
    """Draw segments over the grey image in shades of their class colours, each with a dark outline.

    The first segment of a class has the colour of the class.

    Args:
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) integers, 1..R; pixels of other values are shown as those without a class in `overlay`.
        classes: R class indices.
        names: C class names.
        alpha: weight of the colours, 0..1.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ, or alpha is not in 0..1.
    """
    check_sizes(image, ids)
    order = [[*classes[:number]].count(label) for number, label in enumerate(classes)]  # among those of its class
    shares = np.array([_SHADES[number % len(_SHADES)] for number in order], np.float32)[:, None]  # (R, 1)
    plain = palette(names)[np.array(classes, np.int64)].astype(np.float32)  # (R, 3)
    colors = plain + np.abs(shares) * (np.where(shares > 0, 255, 0) - plain)
    edges = _boundaries(ids)
    for _ in range(min(ids.shape) // _OUTLINE_SIDE):
        edges = _widened(edges)
    return _tinted(image, ids.astype(np.int64) - 1, colors, edges, alpha)


def _tinted(
    image: Array, labels: Array, colors: Array, edges: npt.NDArray[np.bool_], alpha: float
) -> npt.NDArray[np.uint8]:
    """Blend colours (C, 3) of labels (H, W) with the grey image; edges (H, W) are dark."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha} but must be from 0 to 1; it is the weight of the class colours")
    greys = np.repeat([[_IGNORED], [_HATCH]], 3, axis=1)  # of pixels without a class
    num_classes, colors = len(colors), np.vstack([colors, greys]).astype(np.float32)  # (C + 2, 3)
    known = (labels >= 0) & (labels < num_classes)
    result = np.empty((*labels.shape, 3), np.uint8)
    step = max(1, _BAND_PIXELS // max(1, labels.shape[1]))
    for top in range(0, labels.shape[0], step):
        band = slice(top, top + step)
        hatched = _diagonals(top, known[band].shape)
        index = np.where(known[band], labels[band], num_classes + hatched).astype(np.int64)
        grey = image[band].mean(axis=2, dtype=np.float32)[..., None]
        tinted = alpha * colors[index] + (1 - alpha) * grey
        tinted[edges[band]] *= 0.35
        result[band] = tinted
    return result


def error_map(image: Array, prediction: Array, truth: Array, num_classes: int) -> npt.NDArray[np.uint8]:
    """Draw over the grey image where a prediction is right (pale blue), wrong (red) or ignored (nearly white).

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices.
        truth: (H, W) class indices; pixels of other values are ignored.
        num_classes: C.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ.
    """
    check_sizes(image, prediction)
    check_sizes(image, truth)
    judged = (truth >= 0) & (truth < num_classes)
    kind = np.where(judged, (prediction.astype(np.int64) == truth).astype(np.int64), 2)
    colors = np.array([WRONG_COLOR, RIGHT_COLOR, (_IGNORED,) * 3], np.float32)[kind]
    weights = np.array([0.85, 0.75, 0.75], np.float32)[kind][..., None]
    grey = image.mean(axis=2, dtype=np.float32)[..., None]
    blended: npt.NDArray[np.uint8] = (weights * colors + (1 - weights) * grey).astype(np.uint8)
    return blended


def check_sizes(image: Array, labels: Array) -> None:
    """Check that the image is (H, W, 3) and the label map (H, W).

    Raises:
        ValueError: it is not; the message names the sizes.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image has shape {image.shape} but must be RGB, (height, width, 3); convert it")
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image is {image.shape[:2]} but the label map is {labels.shape}; resize one to the other")


def _diagonals(top: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return rows (h, W) from row `top` of the hatch: 1 on its lines, else 0."""
    rows, columns = np.ogrid[top : top + shape[0], : shape[1]]
    return ((rows + columns) % _HATCH_STEP < _HATCH_WIDTH).astype(np.int64)


def _widened(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return edges that are one pixel wider, to the right and down."""
    wider: npt.NDArray[np.bool_] = edges.copy()
    wider[:, 1:] |= edges[:, :-1]
    wider[1:] |= edges[:-1]
    return wider


def _boundaries(labels: Array) -> npt.NDArray[np.bool_]:
    """Return the pixels with another label than their right or lower neighbour."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
