"""The resize of the published ADE20K-847 conversion: OpenCV's bilinear and nearest arithmetic in NumPy.

Pillow's resize widens its filter when shrinking and PyTorch rounds differently, so neither gives the published images.
Legend: sizes are (height, width) in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_COEFFICIENT_BITS = 11  # OpenCV's weights are multiples of 1/2048


def shrunk_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the size with the shorter side reduced to `short_side`; smaller sizes are unchanged.

    Returns:
        (height, width); the longer side is `round(longer / shorter * short_side)`.
    """
    shorter, longer = min(height, width), max(height, width)
    if shorter <= short_side:
        return height, width
    other = round(longer / shorter * short_side)
    return (short_side, other) if height <= width else (other, short_side)


def resize_nearest(labels: Array, size: tuple[int, int]) -> Array:
    """Resize with OpenCV's INTER_NEAREST: take the pixel at floor(x * old / new).

    Args:
        labels: (H, W) of any type.
        size: size of the result.
    """
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * _scale(old, new)).astype(np.intp), old - 1)
        for old, new in zip(labels.shape, size, strict=True)
    )
    picked: Array = labels[rows[:, None], columns]
    return picked


def resize_bilinear(image: Array, size: tuple[int, int]) -> Array:
    """Resize as OpenCV's 8-bit INTER_LINEAR does, bit for bit.

    Pixel centres are at half integers; two neighbours per axis at any scale (no antialias); weights are rounded to
    1/2048, sums shifted and rounded as in OpenCV.

    Args:
        image: (H, W) or (H, W, channels) uint8.
        size: size of the result.

    Returns:
        uint8 of that size.

    Raises:
        ValueError: the image is not uint8.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"image has type {image.dtype} but must be uint8")
    left, right, to_left, to_right = _taps(image.shape[1], size[1])
    upper, lower, to_upper, to_lower = _taps(image.shape[0], size[0])
    channels = image.size // (image.shape[0] * image.shape[1])
    used, where = np.unique(np.concatenate([upper, lower]), return_inverse=True)  # other rows are not read
    rows = image.reshape(image.shape[0], -1)[used]  # (rows, W * channels)
    across = _columns(rows, left, channels) * np.repeat(to_left, channels)
    across += _columns(rows, right, channels) * np.repeat(to_right, channels)
    across >>= 4  # (rows, new W * channels)
    down = across[where[: size[0]]] * to_upper[:, None] >> 16
    down += across[where[size[0] :]] * to_lower[:, None] >> 16
    down += 2
    down >>= 2
    resized: Array = down.astype(np.uint8).reshape(*size, *image.shape[2:])
    return resized


def _columns(rows: Array, columns: Array, channels: int) -> Array:
    """Select all channels of some columns of (rows, W * channels), as int32."""
    index = (columns[:, None] * channels + np.arange(channels)).ravel()
    picked: Array = rows.take(index, axis=1, mode="clip").astype(np.int32)
    return picked


def _taps(old: int, new: int) -> tuple[Array, Array, Array, Array]:
    """Return the two old pixels on either side of each new one, and their weights in 1/2048 (int32)."""
    position = ((np.arange(new) + 0.5) * _scale(old, new) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int32)
    fraction = position - first.astype(np.float32)
    fraction[(first < 0) | (first >= old - 1)] = 0
    first = first.clip(0, old - 1)
    unit = np.float32(1 << _COEFFICIENT_BITS)
    weights = (np.rint((1 - fraction) * unit).astype(np.int32), np.rint(fraction * unit).astype(np.int32))
    return first, np.minimum(first + 1, old - 1), *weights


def _scale(old: int, new: int) -> float:
    return 1.0 / (new / old)  # not old / new: OpenCV inverts the ratio, and the last bit decides ties
