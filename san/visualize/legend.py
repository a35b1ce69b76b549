"""Legends: colour swatches with class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from san.visualize.overlay import overlay
from san.visualize.palette import palette, short_name
from san.visualize.text import FAINT, INK, PAPER, cut_to, font

NO_CLASS = "no class"
"""Legend entry of pixels without a class: predicted as no class, or not labelled."""

_FONT_SIZE = 15
_GAP = 12
_SWATCH, _LINE = _FONT_SIZE + 3, _FONT_SIZE + 11  # side of a square and distance of lines, in pixels


def legend(
    names: Sequence[str],
    width: int,
    *,
    colors: npt.NDArray[Any] | None = None,
    notes: Sequence[str] | None = None,
    max_entries: int | None = None,
    num_more: int = 0,
    no_class: bool = False,
) -> Image.Image:
    """Draw colour swatches with names, in as many equal columns as fit the width.

    Args:
        names: class names, in the order shown.
        width: width in pixels.
        colors: colours of the names, (N, 3) uint8; by default `palette(names)`.
        notes: remark in grey after each name, "" for none.
        max_entries: maximum number of names shown; the others are counted in "+n more".
        num_more: number of classes omitted by the caller, also counted in "+n more".
        no_class: append the hatched square of pixels without a class.
    """
    letters = font(_FONT_SIZE)
    shown = list(names) if max_entries is None else list(names)[:max_entries]
    squares: list[Image.Image | None] = [
        Image.new("RGB", (_SWATCH, _SWATCH), tuple(color)) for color in _colors(names, colors)[: len(shown)]
    ]
    remarks = list(notes or [""] * len(names))[: len(shown)]
    room = width - _SWATCH - _GAP
    texts = [
        cut_to(short_name(name), room - letters.getlength(f"  {note}"), letters)
        for name, note in zip(shown, remarks, strict=True)
    ]
    if left_out := num_more + len(names) - len(shown):
        squares, texts, remarks = [*squares, None], [*texts, ""], [*remarks, f"+{left_out} more"]
    if no_class:
        squares, texts, remarks = [*squares, _hatched()], [*texts, NO_CLASS], [*remarks, ""]
    return _draw_entries(squares, texts, remarks, width)


def _draw_entries(
    squares: Sequence[Image.Image | None], texts: Sequence[str], remarks: Sequence[str], width: int
) -> Image.Image:
    """Draw the entries, each a square, a text and a remark, column by column."""
    letters = font(_FONT_SIZE)
    lengths = [letters.getlength(f"{text}  {note}") for text, note in zip(texts, remarks, strict=True)]
    wanted = max(lengths, default=0.0)
    num_columns = int(max(1, min(len(texts), width // (wanted + _SWATCH + 3 * _GAP))))
    num_rows = -(-len(texts) // num_columns)
    canvas = Image.new("RGB", (width, max(1, num_rows * _LINE)), PAPER)
    draw = ImageDraw.Draw(canvas)
    column_width = min(width / num_columns, wanted + _SWATCH + 5 * _GAP)
    for index, (square, text, note) in enumerate(zip(squares, texts, remarks, strict=True)):
        x, y = int(index // num_rows * column_width), index % num_rows * _LINE + 4
        middle = y + _SWATCH / 2
        if square is not None:
            canvas.paste(square, (x, y))
            draw.rectangle((x, y, x + _SWATCH, y + _SWATCH), outline=INK)
            x += _SWATCH + _GAP - 4
        draw.text((x, middle), text, INK, letters, anchor="lm")
        if text:
            x += round(letters.getlength(f"{text}  "))
        draw.text((x, middle), note, FAINT, letters, anchor="lm")
    return canvas


def _colors(names: Sequence[str], given: npt.NDArray[Any] | None) -> list[list[int]]:
    found: list[list[int]] = (palette(names) if given is None else np.asarray(given)).tolist()
    return found


def _hatched() -> Image.Image:
    """Return the square for pixels without a class, hatched as in `overlay`."""
    white = np.full((_SWATCH, _SWATCH, 3), 255, np.uint8)
    return Image.fromarray(overlay(white, np.full((_SWATCH, _SWATCH), -1), [], alpha=1.0))
