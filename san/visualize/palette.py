"""How a class name is shown: its colour and its short form.

A name has a colour of its own, a function of the name alone. In a vocabulary, where some of these may be too much
alike, `palette` moves as few of them as it can, as little as it can.
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

from san.errors import printable
from san.visualize.color_words import COLOR_WORDS, color_word, is_called
from san.visualize.oklab import color_grid, oklab, srgb

APART = {32: 0.08, 128: 0.05, 1000: 0.025}
"""Least distance in Oklab of the colours of a vocabulary of at most so many names; 0.02 is the least that is seen.

A name with a colour word keeps to that colour: thirty red things are as far apart as reds can be. Beyond 1,000 names
colours are no longer compared.
"""

_SALT = b"3897"
_LIGHTNESS, _MIN_CHROMA = (0.42, 0.92), 0.05  # well seen on dark and on light, and none is taken for a grey image
_STEP = 12  # of the colours that names are moved to, in red, green and blue


def class_color(name: str) -> tuple[int, int, int]:
    """A class name's own colour, a function of the name alone (case and outer blanks ignored); see `palette`.

    The names of the six benchmarks and of the shapes world have colours of `san/data/class_colors.json`, chosen by
    `tools/maintainers/make_class_colors.py` so that the classes of one label set are well apart. Of other names, one
    with a colour word ("red car") gets such a colour; any other's hue, lightness and chroma are drawn from a hash of
    it.

    Returns:
        red, green, blue, each 0..255.
    """
    key = color_key(name)
    known = _known_colors().get(key)
    return _drawn(key) if known is None else known


def palette(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Colours of the C names of a vocabulary, at least `APART` from each other; their order makes no difference.

    A name keeps its own colour (`class_color`) unless another name that goes before has one much like it: then it gets
    the nearest colour that is free. Known names go first, then those with a colour word. So a class changes its colour
    with the rest of the vocabulary only where it must.

    Returns:
        (C, 3) uint8 RGB; equal for equal names.
    """
    colors: npt.NDArray[np.uint8] = _palette(tuple(names)).copy()
    return colors


def color_key(name: str) -> str:
    """What of a name decides its colour."""
    return name.strip().lower()


def may_have(word: tuple[str, int] | None, points: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which colours (N, 3) of Oklab a name may have, (N,): those of its `color_word`, else any that is well seen."""
    if word is not None:
        return is_called(points, *word)
    chroma = np.hypot(points[:, 1], points[:, 2])
    lightness: npt.NDArray[Any] = points[:, 0]
    seen: npt.NDArray[np.bool_] = (lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1]) & (chroma > _MIN_CHROMA)
    return seen


@lru_cache(maxsize=32)
def _palette(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    keys = [color_key(name) for name in names]
    order = sorted(set(keys), key=_rank)
    colors = np.array([class_color(key) for key in order], np.uint8).reshape(-1, 3)
    apart = next((least for most, least in APART.items() if len(order) <= most), None)
    if apart is not None and len(order) > 1:
        _set_apart(order, colors, apart)
    place = {key: index for index, key in enumerate(order)}
    return colors[[place[key] for key in keys]]


def _set_apart(keys: Sequence[str], colors: npt.NDArray[np.uint8], apart: float) -> None:
    """Changes the colours (C, 3) of names that are closer than `apart` to one before them."""
    points = oklab(colors)
    grid, grid_points = _grid()
    room = np.full(len(grid), np.inf)  # distance of each colour of the grid to the nearest of the first `known` names
    known = 0
    for index, key in enumerate(keys):
        if index and np.linalg.norm(points[:index] - points[index], axis=1).min() < apart:
            for point in points[known:index]:
                np.minimum(room, np.linalg.norm(grid_points - point, axis=1), out=room)
            known = index
            choice = _allowed(color_word(key))
            free = choice[room[choice] >= apart]
            if len(free):
                best = free[np.linalg.norm(grid_points[free] - points[index], axis=1).argmin()]
            else:
                best = choice[room[choice].argmax()]
            colors[index], points[index] = grid[best], grid_points[best]


def _rank(key: str) -> tuple[bool, bool, bytes]:
    """Sorts names by who goes first; the same for any two names in every vocabulary."""
    return key not in _known_colors(), color_word(key) is None, _digest(key)


@cache
def _grid() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    colors = color_grid(_STEP)
    return colors, oklab(colors)


@cache
def _allowed(word: tuple[str, int] | None) -> npt.NDArray[np.intp]:
    """Indices of the grid's colours that a name with this colour word, or without one, may have."""
    return np.flatnonzero(may_have(word, _grid()[1]))


@cache
def _known_colors() -> dict[str, tuple[int, int, int]]:
    table = json.loads(files("san.data").joinpath("class_colors.json").read_text(encoding="utf-8"))
    rgb = {name: bytes.fromhex(color[1:]) for name, color in table.items()}
    return {name: (color[0], color[1], color[2]) for name, color in rgb.items()}


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=4, salt=_SALT).digest()


def _drawn(key: str) -> tuple[int, int, int]:
    """The colour of a name that has no entry in the table."""
    digest = _digest(key)
    word = color_word(key)
    if word is not None:  # one of those nearest to the word's own colour, or of the darkest or lightest
        (color, shade), (grid, points), choice = word, _grid(), _allowed(word)
        distance = np.linalg.norm(points[choice] - oklab(np.array([COLOR_WORDS[color]])), axis=1)
        order = np.argsort(-shade * points[choice, 0] if shade else distance, kind="stable")
        nearest = choice[order[: max(1, len(choice) // 6)]]
        red, green, blue = grid[nearest[int.from_bytes(digest, "little") % len(nearest)]].tolist()
        return red, green, blue
    hue = 2 * np.pi * int.from_bytes(digest[:2], "little") / 65536
    lightness, chroma = 0.48 + 0.40 * digest[2] / 255, 0.07 + 0.13 * digest[3] / 255
    return srgb([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])


def short_name(name: str, length: int = 30) -> str:
    """The name on one line, cut to at most `length` letters; some benchmarks' names list ten synonyms."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= length else name[: length - 1].rstrip(", ") + "…"
