"""Oklab, a perceptually uniform colour space (Ottosson 2020, https://bottosson.github.io/posts/oklab)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.707614701],
    ]
)


def oklab(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB colours (N, 3) in 0..255 to Oklab, (N, 3) float64: lightness 0..1, green-red, blue-yellow.

    A distance of 0.02 is about the smallest visible difference.
    """
    linear = linear_light(colors)
    points: npt.NDArray[np.float64] = np.cbrt(linear @ np.linalg.inv(_LMS_TO_RGB).T) @ np.linalg.inv(_OKLAB_TO_LMS).T
    return points


def srgb(point: npt.ArrayLike) -> tuple[int, int, int]:
    """Convert one point of Oklab to the nearest sRGB colour: red, green, blue, each 0..255."""
    linear = (_LMS_TO_RGB @ (_OKLAB_TO_LMS @ point) ** 3).clip(0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(255 * float(value)) for value in values)
    return red, green, blue


def linear_light(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB values in 0..255 to linear light in 0..1."""
    values = np.asarray(colors, np.float64) / 255
    light: npt.NDArray[np.float64] = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light


def color_grid(step: int) -> npt.NDArray[np.uint8]:
    """Return a regular grid of sRGB colours, (N, 3)."""
    values = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(-1, 3)
