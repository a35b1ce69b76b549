"""Draws panels `image | truth | prediction | errors` with a legend, and contact sheets of labelled images.

Images are (H, W, 3) uint8 RGB, label maps (H, W) integers; see `san.visualize.overlay` for labels without a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from san.io.errors import brief_repr
from san.io.files import replacing
from san.visualize.legend import legend
from san.visualize.overlay import RIGHT_COLOR, WRONG_COLOR, check_sizes, error_map, overlay
from san.visualize.palette import palette
from san.visualize.text import FAINT, INK, PAPER, annotate, font

Array = npt.NDArray[Any]

_MIN_SIDE, _MAX_SIDE = 384, 768  # pixels of a shown image: minimum short side, maximum long side
_GAP = 12
_FONT_SIZE = 15
_WIDE = 1.5  # wider pictures (width over height) are stacked
_ERRORS = "errors"  # heading of the error map, with a key to its colours
_MIN_SHARE = 0.002  # minimum share of the pixels for a line in the legend
_MIN_COUNTED = 0.0005  # minimum share of the pixels to be counted in the legend's "+n more"
_MAX_LEGEND, _MAX_ROWS = 60, 20  # entries and lines of a legend below panels
_MIN_HEADED = 200  # width of a column with a heading, pixels
_MIN_WIDTH = 360  # width of a picture with a legend, pixels: fits a name
_PREVIEW_HEIGHT, _PREVIEW_WIDTH, _PREVIEW_LEGEND = 640, 1000, 12  # pixels, pixels, entries: below 1024 together
_SHEET_SIDE = 300  # longest side of an image of a contact sheet, pixels
_SHEET_WIDTH = 1500  # target width of a contact sheet, pixels


@dataclass(frozen=True)
class Sample:
    """One row of `panels`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices.
        truth: (H, W) class indices, other values ignored; None without ground truth.
    """

    image: Array
    prediction: Array
    truth: Array | None = None

    __repr__ = brief_repr


def panel(
    image: Array, truth: Array | None, prediction: Array, names: Sequence[str], path: str | Path | None = None
) -> Image.Image:
    """Draw image, truth, prediction and errors side by side, or stacked if wide, above a legend of their classes.

    Small images are enlarged by an integer factor, large ones reduced.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) class indices, other values ignored; None omits the columns of truth and errors.
        prediction: (H, W) class indices.
        names: C class names.
        path: file to write as well; missing folders are created.

    Raises:
        ValueError: the sizes differ.
    """
    return panels([Sample(image, prediction, truth)], names, path)


def panels(samples: Sequence[Sample], names: Sequence[str], path: str | Path | None = None) -> Image.Image:
    """Draw samples as rows of one panel with shared headings and one legend; see `panel`.

    Raises:
        ValueError: there is no sample, or the sizes of a sample differ.
    """
    if not samples:
        raise ValueError("no sample to show; give at least one image with its prediction")
    with_truth = any(sample.truth is not None for sample in samples)
    titles = ["image", "truth", "prediction", _ERRORS] if with_truth else ["image", "prediction"]
    rows = [_row(sample, names, with_truth) for sample in samples]
    columns = _num_columns(len(titles), max(image.width / image.height for row in rows for image in row))
    lines = [
        _Line(row[start : start + columns], titles[start : start + columns])
        for row in rows
        for start in range(0, len(titles), columns)
    ]
    if columns == len(titles):  # one line per sample: one heading for all
        lines = [lines[0], *(_Line(line.pictures) for line in lines[1:])]
    canvas = _sheet(lines, _legend_of(samples, names))
    if path is not None:
        save_picture(canvas, path)
    return canvas


def contact_sheet(
    samples: Iterable[tuple[str, Array, Array]], names: Sequence[str], path: str | Path | None = None
) -> Image.Image:
    """Draw many images beside their coloured label maps, above one legend, as an overview of a data set.

    Args:
        samples: (title, image (H, W, 3) uint8 RGB, labels (H, W) integers) of any sizes; consumed one at a time, so a
            generator saves memory. Labels outside 0..C-1 are drawn as in `overlay`.
        names: C class names.
        path: file to write as well; missing folders are created.

    Raises:
        ValueError: there is no sample, or the size of a label map differs from its image's.
    """
    cells = []
    counts = np.zeros(len(names))
    for title, image, labels in samples:
        check_sizes(image, labels)
        counts += _shares(labels, len(names))
        cells.append(_sheet_cell(title, image, labels, names))
    if not cells:
        raise ValueError("no sample to show; give at least one image with its label map")
    cell_width = max(cell.width for cell in cells)
    num_columns = max(1, min(len(cells), round(_SHEET_WIDTH / (cell_width + _GAP)), math.isqrt(2 * len(cells)) or 1))
    lines = [_Line(cells[i : i + num_columns]) for i in range(0, len(cells), num_columns)]
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0]
    notes = [_percent(counts[i] / len(cells)) for i in order]
    no_class = len(cells) - counts.sum() >= _MIN_COUNTED * len(cells)
    canvas = _sheet(lines, _Legend([names[i] for i in order], palette(names)[order], notes, no_class=bool(no_class)))
    if path is not None:
        save_picture(canvas, path)
    return canvas


def preview(image: Array, labels: Array, names: Sequence[str]) -> Image.Image:
    """Draw a label map with names over its image, and a legend, for a notebook: no side exceeds 1024 pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) class indices.
        names: C class names.

    Raises:
        ValueError: the sizes differ.
    """
    check_sizes(image, labels)
    size = _shown_size(labels.shape, (_PREVIEW_HEIGHT, _PREVIEW_WIDTH))
    pixels, (shown,) = resized(image, [labels], size)
    assert shown is not None
    key = _legend_of([Sample(image, labels)], names)
    return _sheet([_Line([_coloured(pixels, shown, names)])], key, max_entries=_PREVIEW_LEGEND)


def thumbnails(sample: Sample, names: Sequence[str], width: int = 236) -> Image.Image:
    """Draw the pictures of `panel` small and without text, in one row with all columns.

    Args:
        sample: image, prediction and truth.
        names: C class names.
        width: width of a column, in pixels; a tall picture is narrower.
    """
    height, columns = sample.image.shape[:2]
    scale = width / max(columns, height / 1.2)  # the height is at most 1.2 times the width
    size = (max(1, round(columns * scale)), max(1, round(height * scale)))
    image, (truth, prediction) = resized(sample.image, [sample.truth, sample.prediction], size)
    assert prediction is not None
    pictures = [image, None, overlay(image, prediction, names), None]
    if truth is not None:
        pictures[1], pictures[3] = overlay(image, truth, names), error_map(image, prediction, truth, len(names))
    row = Image.new("RGB", (4 * width + 3 * 4, size[1]), (128, 128, 128))
    for column, picture in enumerate(pictures):
        if picture is not None:
            row.paste(Image.fromarray(picture), (column * (width + 4) + (width - size[0]) // 2, 0))
    return row


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture atomically, in the format of the file extension; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")  # no chroma subsampling: text stays sharp
    options: dict[str, Any] = {"quality": 88, "subsampling": 0} if jpeg else {}
    with replacing(path) as file:
        picture.save(file, **options)


def resized(image: Array, labels: Sequence[Array | None], size: tuple[int, int]) -> tuple[Array, list[Array | None]]:
    """Resize to (width, height): an image with interpolation, its label maps with nearest neighbour."""
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    nearest = Image.Resampling.NEAREST
    maps = [
        None if m is None else np.asarray(Image.fromarray(m.astype(np.int32)).resize(size, nearest)) for m in labels
    ]
    return pixels, maps


@dataclass(frozen=True)
class _Line:
    """Draw pictures side by side, each with or without a heading."""

    pictures: Sequence[Image.Image]
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class _Legend:
    """Arguments of `legend`."""

    names: Sequence[str]
    colors: Array
    notes: Sequence[str]
    num_more: int = 0
    no_class: bool = False


def _num_columns(num_pictures: int, ratio: float) -> int:
    """Return how many pictures of a row are side by side, given width over height: all, two of four, or one."""
    if ratio <= _WIDE:
        return num_pictures
    return 2 if num_pictures == 4 and ratio <= 2 * _WIDE else 1


def _sheet(lines: Sequence[_Line], key: _Legend, *, max_entries: int = _MAX_LEGEND) -> Image.Image:
    """Draw lines of pictures (the first one is full) above a legend of at most `max_entries` classes."""
    cell = max(picture.width for line in lines for picture in line.pictures)
    cell = max(cell, _MIN_HEADED if lines[0].titles else 0)
    heading = 2 * _FONT_SIZE
    width = max(_MIN_WIDTH, len(lines[0].pictures) * (cell + _GAP) + _GAP)
    entries = legend(
        key.names,
        width - 2 * _GAP,
        colors=key.colors,
        notes=key.notes,
        max_entries=min(max_entries, _MAX_ROWS * max(1, width // _MIN_WIDTH)),
        num_more=key.num_more,
        no_class=key.no_class,
    )
    heights = [heading * bool(line.titles) + max(each.height for each in line.pictures) + _GAP for line in lines]
    y = 0 if lines[0].titles else _GAP
    canvas = Image.new("RGB", (width, y + sum(heights) + entries.height + _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, height in zip(lines, heights, strict=True):
        for column, picture in enumerate(line.pictures):
            x = _GAP + column * (cell + _GAP)
            if line.titles:
                draw.text((x, y + heading / 2), line.titles[column], INK, font(_FONT_SIZE + 2), anchor="lm")
                if line.titles[column] == _ERRORS:
                    _draw_error_key(draw, x + cell, y + heading // 2)
            canvas.paste(picture, (x, y + heading * bool(line.titles)))
        y += height
    canvas.paste(entries, (_GAP, y))
    return canvas


def _row(sample: Sample, names: Sequence[str], with_truth: bool) -> list[Image.Image]:
    """Draw the pictures of one row at a readable size."""
    for labels in (sample.truth, sample.prediction):
        if labels is not None:
            check_sizes(sample.image, labels)
    size = _shown_size(sample.image.shape[:2], (_MAX_SIDE, _MAX_SIDE))
    image, (truth, prediction) = resized(sample.image, [sample.truth, sample.prediction], size)
    assert prediction is not None
    blank = Image.new("RGB", size, PAPER)
    shown = [blank if truth is None else _coloured(image, truth, names)] if with_truth else []
    shown.append(_coloured(image, prediction, names))
    if with_truth:
        shown.append(blank if truth is None else Image.fromarray(error_map(image, prediction, truth, len(names))))
    return [Image.fromarray(image), *shown]


def _shown_size(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Return the shown (width, height): small images grow by an integer factor, large ones shrink to the limit.

    Args:
        size: height and width of the image.
        limit: maximum shown height and width, in pixels.
    """
    height, width = size
    grow = max(1, -(-_MIN_SIDE // min(height, width)))
    scale = min(grow, limit[0] / height, limit[1] / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _coloured(image: Array, labels: Array, names: Sequence[str]) -> Image.Image:
    return annotate(Image.fromarray(overlay(image, labels, names)), labels, names)


def _sheet_cell(title: str, image: Array, labels: Array, names: Sequence[str]) -> Image.Image:
    """Draw image and label map side by side below a title."""
    height, width = labels.shape
    scale = _SHEET_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels, (shown,) = resized(image, [labels], size)
    assert shown is not None
    heading = _FONT_SIZE + 9
    cell = Image.new("RGB", (2 * size[0] + 4, heading + size[1]), PAPER)
    ImageDraw.Draw(cell).text((0, heading / 2), _shortened(title, cell.width), INK, font(_FONT_SIZE - 1), anchor="lm")
    cell.paste(Image.fromarray(pixels), (0, heading))
    cell.paste(_coloured(pixels, shown, names), (size[0] + 4, heading))
    return cell


def _shortened(text: str, width: int) -> str:
    """Shorten a text to one line of a width, in the middle: the ends of a path matter most."""
    text, letters = " ".join(text.split()), font(_FONT_SIZE - 1)
    if letters.getlength(text) <= width:
        return text
    half = len(text) // 2
    while half > 1 and letters.getlength(f"{text[:half]}…{text[-half:]}") > width:
        half -= 1
    return f"{text[:half]}…{text[-half:]}"


def _draw_error_key(draw: ImageDraw.ImageDraw, right: int, middle: int) -> None:
    """Draw the key to the colours of an error map, at the right end of its heading."""
    letters = font(_FONT_SIZE - 2)
    for word, color in (("wrong", WRONG_COLOR), ("right", RIGHT_COLOR)):
        right -= round(letters.getlength(word))
        draw.text((right, middle), word, INK, letters, anchor="lm")
        right -= _FONT_SIZE + 3
        draw.rectangle((right, middle - 6, right + 12, middle + 6), color, FAINT)
        right -= _GAP


def _legend_of(samples: Sequence[Sample], names: Sequence[str]) -> _Legend:
    """Build the legend of the classes in truth or prediction, largest first, with a note if only one has them.

    Small classes are omitted and counted, except those below 0.05 % of the pixels.
    """
    truth, prediction, judged = (np.zeros(len(names)) for _ in range(3))
    num_maps = len(samples)
    for sample in samples:
        prediction += _shares(sample.prediction, len(names))
        if sample.truth is not None:
            num_maps += 1
            truth += _shares(sample.truth, len(names))
            known = (sample.truth >= 0) & (sample.truth < len(names))
            judged += _shares(np.where(known, sample.prediction.astype(np.int64), -1), len(names))
    least = _MIN_SHARE * len(samples)
    larger = np.maximum(truth, prediction)
    order = [int(i) for i in np.argsort(-(truth + prediction), kind="stable") if larger[i] >= least]
    notes = [_note(truth[i], judged[i]) for i in order]
    num_more = int((larger >= _MIN_COUNTED * len(samples)).sum()) - len(order)
    no_class = num_maps - truth.sum() - prediction.sum() >= _MIN_COUNTED * len(samples)
    return _Legend([names[i] for i in order], palette(names)[order], notes, num_more, bool(no_class))


def _note(truth: float, judged: float) -> str:
    """Return a class's note in the legend, from its shares of truth and predictions if there is a truth."""
    if truth > 0 and judged == 0:
        return "missed"
    if judged > 0 and truth == 0:
        return "not there"
    return ""


def _shares(labels: Array, num_classes: int) -> Array:
    """Return the share of pixels of each class, (C,)."""
    known = labels[(labels >= 0) & (labels < num_classes)].astype(np.int64)
    shares: Array = np.bincount(known, minlength=num_classes) / max(1, labels.size)
    return shares


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"
