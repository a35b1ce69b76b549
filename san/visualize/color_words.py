"""Colour words in class names: a "red car" is drawn in a shade of red.

Each colour word has one point in Oklab. A colour matches the word with the nearest point, if that is within a maximum
distance.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from san.visualize.oklab import oklab

COLOR_WORDS = {
    "red": (222, 28, 28),
    "orange": (245, 140, 20),
    "yellow": (242, 218, 25),
    "green": (40, 160, 50),
    "cyan": (50, 205, 215),
    "blue": (40, 70, 225),
    "purple": (140, 45, 190),
    "magenta": (225, 40, 190),
    "pink": (250, 160, 195),
    "brown": (125, 75, 35),
    "beige": (222, 200, 160),
    "white": (232, 232, 226),
    "grey": (140, 142, 146),
    "black": (45, 44, 48),
}
"""Red, green and blue of each colour word."""

_SYNONYMS = {
    "crimson": "red",
    "scarlet": "red",
    "maroon": "red",
    "golden": "yellow",
    "gold": "yellow",
    "turquoise": "cyan",
    "aqua": "cyan",
    "teal": "cyan",
    "violet": "purple",
    "fuchsia": "magenta",
    "tan": "beige",
    "gray": "grey",
    "silver": "grey",
}
_SHADES = {"dark": -1, "deep": -1, "light": 1, "pale": 1}
_PATTERN = re.compile(rf"(?:\b({'|'.join(_SHADES)})[\s-]+)?\b({'|'.join([*COLOR_WORDS, *_SYNONYMS])})\b")
_WEIGHTS = np.array([0.5, 1, 1])  # lightness matters less than hue
_MAX_DISTANCE, _MAX_GREY_DISTANCE = 0.07, 0.045  # maximum distances in Oklab with these weights


def color_word(key: str) -> tuple[str, int] | None:
    """Return the first colour word of a lower-case name and its shade (-1 dark, 0, 1 light), or None."""
    found = _PATTERN.search(key)
    if found is None:
        return None
    word = found[2]
    return _SYNONYMS.get(word, word), _SHADES.get(found[1] or "", 0)


def matches_word(points: npt.NDArray[Any], word: str, shade: int = 0) -> npt.NDArray[np.bool_]:
    """Return which colours (N, 3) of Oklab match a colour word, (N,) bool.

    Args:
        points: the colours.
        word: one of `COLOR_WORDS`.
        shade: -1 excludes colours that are lighter than the word's own, 1 those that are darker.
    """
    words, own = _anchors(), list(COLOR_WORDS).index(word)
    steps = points[:, None] - words  # (N, words, 3)
    nearest = np.linalg.norm(steps, axis=-1).argmin(axis=1)
    reach = _MAX_GREY_DISTANCE if np.hypot(*words[own, 1:]) < _MAX_GREY_DISTANCE else _MAX_DISTANCE
    near = np.linalg.norm(steps[:, own] * _WEIGHTS, axis=-1) < reach
    matches: npt.NDArray[np.bool_] = (nearest == own) & near & (shade * steps[:, own, 0] >= 0)
    return matches


@cache
def _anchors() -> npt.NDArray[np.float64]:
    return oklab(np.array(list(COLOR_WORDS.values())))
