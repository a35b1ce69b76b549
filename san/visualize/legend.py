"""Legends: colour swatches with class names."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from san.visualize.palette import palette, short_name
from san.visualize.text import FAINT, INK, PAPER, font

_FONT_SIZE = 15
_GAP = 12


def legend(
    names: Sequence[str],
    width: int,
    *,
    notes: Sequence[str] | None = None,
    max_entries: int | None = None,
    num_more: int = 0,
) -> Image.Image:
    """Colour swatches with names, in as many equal columns as fit the width.

    Args:
        names: class names, in the order shown.
        width: pixels.
        notes: a remark in grey behind each name, "" for none.
        max_entries: at most so many are shown; "+n more" stands for the others.
        num_more: classes that the caller has left out already, counted in "+n more".
    """
    letters = font(_FONT_SIZE)
    shown = list(names) if max_entries is None else list(names)[:max_entries]
    colors = palette(shown).tolist()
    texts = [short_name(name) for name in shown]
    remarks = list(notes or [""] * len(names))[: len(shown)]
    left_out = num_more + len(names) - len(shown)
    entries = len(shown) + (left_out > 0)
    swatch, line = _FONT_SIZE + 3, _FONT_SIZE + 11
    wanted = max((letters.getlength(f"{text}  {note}") for text, note in zip(texts, remarks, strict=True)), default=0.0)
    num_columns = int(max(1, min(entries, width // (wanted + swatch + 3 * _GAP))))
    num_rows = -(-entries // num_columns)
    canvas = Image.new("RGB", (width, max(1, num_rows * line)), PAPER)
    draw = ImageDraw.Draw(canvas)
    column_width = min(width / num_columns, wanted + swatch + 5 * _GAP)

    def place(index: int) -> tuple[int, int]:
        return int(index // num_rows * column_width), index % num_rows * line + 4

    for index, (text, note, color) in enumerate(zip(texts, remarks, colors, strict=True)):
        x, y = place(index)
        draw.rectangle((x, y, x + swatch, y + swatch), fill=tuple(color), outline=INK)
        x += swatch + _GAP - 4
        draw.text((x, y + swatch / 2), text, INK, letters, anchor="lm")
        draw.text((x + letters.getlength(f"{text}  "), y + swatch / 2), note, FAINT, letters, anchor="lm")
    if left_out:
        x, y = place(entries - 1)
        draw.text((x, y + swatch / 2), f"+{left_out} more", FAINT, letters, anchor="lm")
    return canvas
