"""Label maps over their images, and panels `image | truth | prediction` with a legend.

Images are (H, W, 3) uint8 RGB, label maps (H, W) integers; a label outside the names is shown as ignored: the image,
faded and grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from san.visualize.palette import palette, short_name

Array = npt.NDArray[Any]

_MIN_SIDE, _MAX_SIDE = 384, 768  # pixels of a shown image: short side at least, long side at most
_GAP = 12
_FONT_SIZE = 15
_INK, _FAINT, _PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)
_IGNORED = 245  # grey of pixels without a class
_MIN_SHARE = 0.002  # of a label map's pixels, to get a line in the legend


@dataclass(frozen=True)
class Sample:
    """One row of `panels`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) class indices.
        truth: (H, W) class indices, other values ignored; None where there is no truth.
    """

    image: Array
    prediction: Array
    truth: Array | None = None


def overlay(image: Array, labels: Array, names: Sequence[str], *, alpha: float = 0.7) -> Array:
    """The image in grey under its class colours, with a thin dark line between segments.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers; values outside 0..C-1 are shown faded and grey.
        names: C class names.
        alpha: weight of the class colour against the image.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image is {image.shape[:2]} but its label map {labels.shape}; resize one to the other")
    known = (labels >= 0) & (labels < len(names))
    colors = np.full((*labels.shape, 3), _IGNORED, np.float32)
    colors[known] = palette(names)[labels[known]]
    grey = image.mean(axis=2, dtype=np.float32)[..., None]
    tinted = alpha * colors + (1 - alpha) * grey
    tinted[_boundaries(labels)] *= 0.35
    blended: Array = tinted.astype(np.uint8)
    return blended


def legend(names: Sequence[str], width: int, *, notes: Sequence[str] | None = None) -> Image.Image:
    """Colour swatches with names, in as many equal columns as fit the width.

    Args:
        names: class names, in the order shown.
        width: pixels.
        notes: a remark in grey behind each name, "" for none.
    """
    font = _font(_FONT_SIZE)
    notes = notes or [""] * len(names)
    colors = palette(names).tolist()
    names = [short_name(name) for name in names]
    swatch, line = _FONT_SIZE + 3, _FONT_SIZE + 11
    wanted = max((font.getlength(f"{name}  {note}") for name, note in zip(names, notes, strict=True)), default=0.0)
    num_columns = int(max(1, min(len(names), width // (wanted + swatch + 3 * _GAP))))
    num_rows = -(-len(names) // num_columns)
    canvas = Image.new("RGB", (width, max(1, num_rows * line)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    column_width = min(width / num_columns, wanted + swatch + 5 * _GAP)
    for index, (name, note, color) in enumerate(zip(names, notes, colors, strict=True)):
        x, y = int(index // num_rows * column_width), index % num_rows * line + 4
        draw.rectangle((x, y, x + swatch, y + swatch), fill=tuple(color), outline=_INK)
        x += swatch + _GAP - 4
        draw.text((x, y + swatch / 2), name, _INK, font, anchor="lm")
        draw.text((x + font.getlength(f"{name}  "), y + swatch / 2), note, _FAINT, font, anchor="lm")
    return canvas


def panel(
    image: Array, truth: Array | None, prediction: Array, names: Sequence[str], path: str | Path | None = None
) -> Image.Image:
    """Image, truth and prediction side by side over a legend of the classes in them.

    Small images are enlarged by a whole factor, large ones reduced, so that the picture can be read.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) class indices, other values ignored; None leaves the column out.
        prediction: (H, W) class indices.
        names: C class names.
        path: PNG to write as well; folders are made.

    Raises:
        ValueError: the sizes differ.
    """
    return panels([Sample(image, prediction, truth)], names, path)


def panels(samples: Sequence[Sample], names: Sequence[str], path: str | Path | None = None) -> Image.Image:
    """Several samples as rows of one panel, under shared headings and over one legend; see `panel`.

    Raises:
        ValueError: no sample, or sizes that differ within one.
    """
    if not samples:
        raise ValueError("no sample to show; give at least one image with its prediction")
    with_truth = any(sample.truth is not None for sample in samples)
    titles = ["image", "truth", "prediction"] if with_truth else ["image", "prediction"]
    rows = [_row(sample, names, with_truth) for sample in samples]
    cell = max(image.width for row in rows for image in row)
    heading = 2 * _FONT_SIZE
    width = len(titles) * (cell + _GAP) + _GAP
    shown, notes = _legend_entries(samples, names)
    key = legend(shown, width - 2 * _GAP, notes=notes)
    heights = [row[0].height + _GAP for row in rows]
    canvas = Image.new("RGB", (width, heading + sum(heights) + key.height + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (cell + _GAP), heading / 2), title, _INK, _font(_FONT_SIZE + 2), anchor="lm")
    y = heading
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            canvas.paste(picture, (_GAP + column * (cell + _GAP), y))
        y += height
    canvas.paste(key, (_GAP, y))
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path)
    return canvas


def _row(sample: Sample, names: Sequence[str], with_truth: bool) -> list[Image.Image]:
    """The pictures of one row, brought to a readable size."""
    height, width = sample.image.shape[:2]
    grow = max(1, -(-_MIN_SIDE // min(height, width)))
    scale = min(grow, _MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS))
    pictures = [Image.fromarray(image)]
    for labels in (sample.truth, sample.prediction) if with_truth else (sample.prediction,):
        if labels is None:
            pictures.append(Image.new("RGB", size, _PAPER))
            continue
        if labels.shape != (height, width):
            raise ValueError(f"image is {(height, width)} but a label map {labels.shape}; resize one to the other")
        shown = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        pictures.append(_tagged(Image.fromarray(overlay(image, shown, names)), shown, names))
    return pictures


def _tagged(picture: Image.Image, labels: Array, names: Sequence[str]) -> Image.Image:
    """Write each class's name into its widest place, where there is room."""
    draw, font = ImageDraw.Draw(picture), _font(_FONT_SIZE - 2)
    for label in np.unique(labels):
        name = short_name(names[label]) if 0 <= label < len(names) else "ignored"
        x, y, side = _largest_square(labels == label)
        if side >= 1.5 * _FONT_SIZE:
            half = font.getlength(name) / 2 + 3
            inside = min(max(x, half), picture.width - half)  # not over the border
            draw.text((inside, y), name, _INK, font, anchor="mm", stroke_width=2, stroke_fill=_PAPER)
    return picture


def _largest_square(mask: npt.NDArray[np.bool_]) -> tuple[float, float, int]:
    """Centre (x, y) and side of the largest square inside the mask, the middle one of several."""
    integral = np.pad(mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1), ((1, 0), (1, 0)))
    top, left, side, too_long = 0, 0, 0, min(mask.shape) + 1
    while too_long - side > 1:  # a mask that holds a square holds all smaller ones: bisect the side
        n = (side + too_long) // 2
        filled = integral[n:, n:] - integral[:-n, n:] - integral[n:, :-n] + integral[:-n, :-n] == n * n
        if corners := np.argwhere(filled).tolist():
            side, (top, left) = n, corners[len(corners) // 2]
        else:
            too_long = n
    return left + side / 2, top + side / 2, side


def _legend_entries(samples: Sequence[Sample], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names in truth or prediction, largest first, with a note where just one of the two has them on judged pixels."""
    truth, prediction, judged = (np.zeros(len(names)) for _ in range(3))
    for sample in samples:
        prediction += _shares(sample.prediction, len(names))
        if sample.truth is not None:
            truth += _shares(sample.truth, len(names))
            known = (sample.truth >= 0) & (sample.truth < len(names))
            judged += _shares(np.where(known, sample.prediction, -1), len(names))
    least = _MIN_SHARE * len(samples)
    order = [int(i) for i in np.argsort(-(truth + prediction), kind="stable") if max(truth[i], prediction[i]) >= least]
    notes = ["missed" if truth[i] > judged[i] == 0 else "not there" if judged[i] > truth[i] == 0 else "" for i in order]
    return [names[i] for i in order], notes


def _shares(labels: Array, num_classes: int) -> Array:
    """Share of the pixels each class has, (C,)."""
    known = labels[(labels >= 0) & (labels < num_classes)]
    shares: Array = np.bincount(known, minlength=num_classes) / max(1, labels.size)
    return shares


def _boundaries(labels: Array) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic letters."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
