"""Colours and short forms of class names.

Each name has a colour that depends on the name alone. Where colours of a vocabulary are too similar, `palette` changes
as few of them, and as little, as possible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from san.io.errors import printable
from san.visualize.color_words import COLOR_WORDS, color_word, matches_word
from san.visualize.oklab import color_grid, oklab, srgb

MIN_DISTANCE = {32: 0.08, 128: 0.05, 1000: 0.025}
"""Vocabulary size -> minimum distance of its colours in Oklab; 0.02 is about the smallest visible difference.

A name with a colour word keeps to that colour: thirty red things are as far apart as reds can be. Beyond 1,000 names
colours are no longer compared.
"""

_SALT = b"3897"
_LIGHTNESS, _MIN_CHROMA = (0.42, 0.92), 0.05  # visible on dark and light, distinct from the grey image
_STEP = 12  # step of the grid of replacement colours, in red, green and blue


def class_color(name: str) -> tuple[int, int, int]:
    """Return the colour of a class name, which depends on the name alone; case and outer blanks are ignored.

    The names of the six benchmarks and of the shapes world have colours of `san/data/class_colors.json`, chosen by
    `tools/maintainers/make_class_colors.py` so that the classes of one label set differ clearly. Another name with a
    colour word ("red car") gets a matching colour; for all others, hue, lightness and chroma come from a hash.

    Returns:
        red, green, blue, each 0..255.
    """
    key = color_key(name)
    known = _known_colors().get(key)
    return _generated_color(key) if known is None else known


def palette(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the colours of the C names of a vocabulary, at least `MIN_DISTANCE` apart, independent of their order.

    A name keeps its own colour (`class_color`) unless a name of higher priority has a similar one: then it gets the
    nearest free colour. Known names have the highest priority, then names with a colour word. So the rest of the
    vocabulary rarely changes the colour of a class.

    Returns:
        (C, 3) uint8 RGB; equal for equal names.
    """
    colors: npt.NDArray[np.uint8] = _palette(tuple(names)).copy()
    return colors


def color_key(name: str) -> str:
    """Return the part of a name that determines its colour."""
    return name.strip().lower()


def may_have(word: tuple[str, int] | None, points: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which colours (N, 3) of Oklab a name may have, (N,) bool: those of its `color_word`, else any visible."""
    if word is not None:
        return matches_word(points, *word)
    chroma = np.hypot(points[:, 1], points[:, 2])
    lightness: npt.NDArray[Any] = points[:, 0]
    seen: npt.NDArray[np.bool_] = (lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1]) & (chroma > _MIN_CHROMA)
    return seen


@lru_cache(maxsize=32)
def _palette(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    keys = [color_key(name) for name in names]
    order = sorted(set(keys), key=_priority)
    colors = np.array([class_color(key) for key in order], np.uint8).reshape(-1, 3)
    apart = next((least for most, least in MIN_DISTANCE.items() if len(order) <= most), None)
    if apart is not None and len(order) > 1:
        _separate(order, colors, apart)
    place = {key: index for index, key in enumerate(order)}
    return colors[[place[key] for key in keys]]


def _separate(keys: Sequence[str], colors: npt.NDArray[np.uint8], apart: float) -> None:
    """Change the colours (C, 3) of names that are closer than `apart` to an earlier one."""
    points = oklab(colors)
    grid, grid_points = _grid()
    room = np.full(len(grid), np.inf)  # distance of each grid colour to the nearest of the first `known` names
    known = 0
    for index, key in enumerate(keys):
        if index and np.linalg.norm(points[:index] - points[index], axis=1).min() < apart:
            for point in points[known:index]:
                np.minimum(room, np.linalg.norm(grid_points - point, axis=1), out=room)
            known = index
            choice = _candidates(color_word(key))
            free = choice[room[choice] >= apart]
            if len(free):
                best = free[np.linalg.norm(grid_points[free] - points[index], axis=1).argmin()]
            else:
                best = choice[room[choice].argmax()]
            colors[index], points[index] = grid[best], grid_points[best]


def _priority(key: str) -> tuple[bool, bool, bytes]:
    """Return the sort key of a name's priority, which does not depend on the vocabulary."""
    return key not in _known_colors(), color_word(key) is None, _digest(key)


@cache
def _grid() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    colors = color_grid(_STEP)
    return colors, oklab(colors)


@cache
def _candidates(word: tuple[str, int] | None) -> npt.NDArray[np.intp]:
    """Return the grid indices of the colours that a name with this colour word, or without one, may have."""
    return np.flatnonzero(may_have(word, _grid()[1]))


@cache
def _known_colors() -> dict[str, tuple[int, int, int]]:
    table = json.loads(files("san.data").joinpath("class_colors.json").read_text(encoding="utf-8"))
    rgb = {name: bytes.fromhex(color[1:]) for name, color in table.items()}
    return {name: (color[0], color[1], color[2]) for name, color in rgb.items()}


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=4, salt=_SALT).digest()


def _generated_color(key: str) -> tuple[int, int, int]:
    """Return the colour of a name that has no entry in the table."""
    digest = _digest(key)
    word = color_word(key)
    if word is not None:  # among the nearest to the word's colour, or the darkest or lightest
        (color, shade), (grid, points), choice = word, _grid(), _candidates(word)
        distance = np.linalg.norm(points[choice] - oklab(np.array([COLOR_WORDS[color]])), axis=1)
        order = np.argsort(-shade * points[choice, 0] if shade else distance, kind="stable")
        nearest = choice[order[: max(1, len(choice) // 6)]]
        red, green, blue = grid[nearest[int.from_bytes(digest, "little") % len(nearest)]].tolist()
        return red, green, blue
    hue = 2 * np.pi * int.from_bytes(digest[:2], "little") / 65536
    lightness, chroma = 0.48 + 0.40 * digest[2] / 255, 0.07 + 0.13 * digest[3] / 255
    return srgb([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])


def short_name(name: str, length: int = 30) -> str:
    """Return the name on one line, cut to at most `length` characters; some benchmark names list ten synonyms."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= length else name[: length - 1].rstrip(", ") + "…"
