"""How a class name is shown: its colour, the same in every vocabulary, picture and run, and its short form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SALT = b"3897"  # of a few thousand tried, one that keeps the 36 classes of shapes and the 20 of VOC well apart

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

    Hue, lightness and chroma are drawn from a hash of the name, in a space (Oklab) where equal steps look equal.

    Returns:
        red, green, blue, each 0..255.
    """
    digest = hashlib.blake2b(name.strip().lower().encode(), digest_size=4, salt=_SALT).digest()
    hue = 2 * np.pi * int.from_bytes(digest[:2], "little") / 65536
    lightness, chroma = 0.48 + 0.40 * digest[2] / 255, 0.07 + 0.13 * digest[3] / 255
    lms = (_OKLAB_TO_LMS @ [lightness, chroma * np.cos(hue), chroma * np.sin(hue)]) ** 3
    linear = (_LMS_TO_RGB @ lms).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(255 * float(value)) for value in srgb)
    return red, green, blue


def short_name(name: str, length: int = 30) -> str:
    """The name, cut to at most `length` letters; some benchmarks' names list ten synonyms."""
    return name if len(name) <= length else name[: length - 1].rstrip(", ") + "…"


def palette(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Colours of C names.

    Returns:
        (C, 3) uint8 RGB.
    """
    return np.array([class_color(name) for name in names], np.uint8).reshape(-1, 3)
