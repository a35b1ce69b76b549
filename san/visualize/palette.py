"""How a class name is shown: its colour, the same in every vocabulary, picture and run, and its short form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

_SALT = b"3897"

# Oklab to linear sRGB (Ottosson 2020, https://bottosson.github.io/posts/oklab).
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


def class_color(name: str) -> tuple[int, int, int]:
    """The colour of a class name, a function of the name alone (case and outer blanks ignored).

    The names of the six benchmarks and of the shapes world have colours of `san/data/class_colors.json`, chosen by
    `tools/make_class_colors.py` so that the classes of one label set are well apart. Any other name's hue, lightness
    and chroma are drawn from a hash of it. Both in Oklab, a space where equal steps look equal.

    Returns:
        red, green, blue, each 0..255.
    """
    key = color_key(name)
    known = _known_colors().get(key)
    return _hashed(key) if known is None else known


def color_key(name: str) -> str:
    """What of a name decides its colour."""
    return name.strip().lower()


@cache
def _known_colors() -> dict[str, tuple[int, int, int]]:
    table = json.loads(files("san.data").joinpath("class_colors.json").read_text(encoding="utf-8"))
    rgb = {name: bytes.fromhex(color[1:]) for name, color in table.items()}
    return {name: (color[0], color[1], color[2]) for name, color in rgb.items()}


def _hashed(key: str) -> tuple[int, int, int]:
    digest = hashlib.blake2b(key.encode(), digest_size=4, salt=_SALT).digest()
    hue = 2 * np.pi * int.from_bytes(digest[:2], "little") / 65536
    lightness, chroma = 0.48 + 0.40 * digest[2] / 255, 0.07 + 0.13 * digest[3] / 255
    lms = (_OKLAB_TO_LMS @ [lightness, chroma * np.cos(hue), chroma * np.sin(hue)]) ** 3
    linear = (_LMS_TO_RGB @ lms).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(255 * float(value)) for value in srgb)
    return red, green, blue


def oklab(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours of sRGB (N, 3) of 0..255 as points of Oklab, (N, 3) float64: lightness 0..1, green-red, blue-yellow.

    A distance of 0.02 is about the least that is seen, side by side.
    """
    linear = linear_light(colors)
    points: npt.NDArray[np.float64] = np.cbrt(linear @ np.linalg.inv(_LMS_TO_RGB).T) @ np.linalg.inv(_OKLAB_TO_LMS).T
    return points


def linear_light(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values of sRGB of 0..255 as amounts of light of 0..1."""
    values = np.asarray(colors, np.float64) / 255
    light: npt.NDArray[np.float64] = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light


def short_name(name: str, length: int = 30) -> str:
    """The name, cut to at most `length` letters; some benchmarks' names list ten synonyms."""
    return name if len(name) <= length else name[: length - 1].rstrip(", ") + "…"


def palette(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Colours of C names.

    Returns:
        (C, 3) uint8 RGB.
    """
    return np.array([class_color(name) for name in names], np.uint8).reshape(-1, 3)
