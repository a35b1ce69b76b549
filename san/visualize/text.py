"""Draws text on pictures: the font, and class names on label maps that are readable and hide no object.

A name is drawn on an opaque plate, for contrast on any background. The plate is on the segment if most of it stays
visible, else beside it with a connecting line; without space for either, the name is only in the legend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from san.visualize.palette import palette, short_name

Array = npt.NDArray[Any]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded

INK, FAINT, PAPER = (25, 25, 25), (110, 110, 110), (255, 255, 255)
MAX_COVERED = 0.35
"""Share of a segment's pixels that plates may hide."""

_FONT_SIZE = 13
_PAD_X, _PAD_Y = 4, 2
_MIN_AREA = 100  # shown pixels that a class needs to get a name in the picture
_MAX_TAGS = 16  # names in one picture; other classes are only in the legend
_DIRECTIONS = [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)]


@dataclass(frozen=True)
class Tag:
    """A name and its position in a picture.

    Attributes:
        name: the text.
        label: class index.
        box: the plate: left, top, right, bottom in pixels.
        anchor: (x, y) on the segment, end of the connecting line; None if the plate is on the segment.
    """

    name: str
    label: int
    box: Box
    anchor: tuple[int, int] | None


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, the font of matplotlib's plots; it has Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(str(Path(__file__).parent / "assets" / "DejaVuSans.ttf"), size)


def cut_to(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """Shorten a text to `width` pixels; a removed end is replaced by "…"."""
    if letters.getlength(text) <= width:
        return text
    length = len(text)
    while length > 1 and letters.getlength(f"{text[:length]}…") > width:
        length -= 1
    return f"{text[:length].rstrip(', ')}…"


def annotate(picture: Image.Image, labels: Array, names: Sequence[str]) -> Image.Image:
    """Draw the class names on a picture of a label map; see `place_tags`.

    Args:
        picture: RGB, modified in place.
        labels: (H, W) class indices of the same size.
        names: C class names.

    Returns:
        the same picture.
    """
    draw, letters = ImageDraw.Draw(picture), font(_FONT_SIZE)
    tags, colors = place_tags(labels, names), palette(names).tolist()
    for tag in tags:
        if tag.anchor is not None:
            start = _nearest(tag.box, tag.anchor)
            draw.line((start, tag.anchor), PAPER, 3)
            draw.line((start, tag.anchor), INK, 1)
            x, y = tag.anchor
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), INK, PAPER)
    for tag in tags:
        left, top, right, bottom = tag.box
        draw.rectangle((left, top, right - 1, bottom - 1), PAPER, tuple(colors[tag.label]))
        draw.text(((left + right) / 2, (top + bottom) / 2), tag.name, INK, letters, anchor="mm")
    return picture


def place_tags(labels: Array, names: Sequence[str]) -> list[Tag]:
    """Find positions for the names of a label map's classes.

    Plates do not overlap each other or the border, and all together hide at most `MAX_COVERED` of any class.

    Args:
        labels: (H, W) integers at the shown size; values outside 0..C-1 get no name.
        names: C class names.

    Returns:
        at most one tag per class, largest classes first. Classes without space or of few pixels have none.
    """
    known = (labels >= 0) & (labels < len(names))
    areas = np.bincount(labels[known].astype(np.int64), minlength=len(names))
    space = _FreeSpace(labels, areas)
    tags = []
    for label in np.argsort(-areas, kind="stable")[:_MAX_TAGS].tolist():
        if areas[label] < _MIN_AREA:
            break
        tag = space.take(label, short_name(names[label]))
        if tag is not None:
            tags.append(tag)
    return tags


class _FreeSpace:
    """The free space of a label map of (H, W) shown pixels."""

    def __init__(self, labels: Array, areas: Array) -> None:
        self.labels = np.where((labels >= 0) & (labels < len(areas)), labels.astype(np.int64), len(areas))
        self.areas = areas
        self.hidden = np.zeros(len(areas) + 1, np.int64)
        self.taken: list[Box] = []

    def take(self, label: int, name: str) -> Tag | None:
        """Reserve the best free position for a class's name; None if there is no space."""
        _, top, _, bottom = font(_FONT_SIZE).getbbox(f"{name}Ág", anchor="ls")
        width = round(font(_FONT_SIZE).getlength(name)) + 2 * _PAD_X
        height = round(bottom - top) + 2 * _PAD_Y
        mask = self.labels == label
        x, y, side = largest_square(mask)
        if side >= height and self._reserve(box := self._inside(x, y, width, height)):
            return Tag(name, label, box, None)
        anchor = (min(int(x), mask.shape[1] - 1), min(int(y), mask.shape[0] - 1))
        for box in self._around(mask, anchor, width, height):
            if not mask[box[1] : box[3], box[0] : box[2]].any() and self._reserve(box):
                return Tag(name, label, box, anchor)
        return None

    def _inside(self, x: float, y: float, width: int, height: int) -> Box:
        """Return a box around a point, moved inside the picture."""
        rows, columns = self.labels.shape
        left = min(max(round(x - width / 2), 0), max(0, columns - width))
        top = min(max(round(y - height / 2), 0), max(0, rows - height))
        return left, top, left + width, top + height

    def _around(self, mask: Array, anchor: tuple[int, int], width: int, height: int) -> Iterator[Box]:
        """Yield boxes beside a segment, the nearest first."""
        size = np.sqrt(mask.sum()) / 2
        for distance in (size + 8, size + 24, size + 48, 2 * size + 80):
            for dx, dy in _DIRECTIONS:
                x = anchor[0] + dx * (distance + width / 2)
                y = anchor[1] + dy * (distance + height / 2)
                yield self._inside(x, y, width, height)

    def _reserve(self, box: Box) -> bool:
        """Reserve a box if it is free and hides little of each class below it; return whether it is reserved."""
        left, top, right, bottom = box
        rows, columns = self.labels.shape
        if left < 0 or top < 0 or right > columns or bottom > rows:
            return False
        for other in self.taken:
            if left < other[2] + 2 and other[0] < right + 2 and top < other[3] + 2 and other[1] < bottom + 2:
                return False
        hidden = self.hidden + np.bincount(self.labels[top:bottom, left:right].ravel(), minlength=len(self.hidden))
        if (hidden[:-1] > MAX_COVERED * self.areas).any():
            return False
        self.hidden = hidden
        self.taken.append(box)
        return True


def largest_square(mask: npt.NDArray[np.bool_]) -> tuple[float, float, int]:
    """Return centre (x, y) and side of the largest square inside the mask; the middle one of several."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0
    first_row, first_column = int(rows[0]), int(columns[0])
    mask = mask[first_row : rows[-1] + 1, first_column : columns[-1] + 1]  # crop, to save time
    integral = np.pad(mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1), ((1, 0), (1, 0)))
    top, left, side, too_long = 0, 0, 0, min(mask.shape) + 1
    while too_long - side > 1:  # a mask that contains a square contains all smaller ones: bisect
        n = (side + too_long) // 2
        filled = integral[n:, n:] - integral[:-n, n:] - integral[n:, :-n] + integral[:-n, :-n] == n * n
        corners = np.flatnonzero(filled)
        if len(corners):
            side, (top, left) = n, divmod(int(corners[len(corners) // 2]), filled.shape[1])
        else:
            too_long = n
    return first_column + left + side / 2, first_row + top + side / 2, side


def _nearest(box: Box, point: tuple[int, int]) -> tuple[int, int]:
    """Return the point of a box that is nearest to another point."""
    return min(max(point[0], box[0]), box[2] - 1), min(max(point[1], box[1]), box[3] - 1)
