"""Reads raw label files, maps their pixel values to class indices, and writes label files."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.io.errors import listed
from san.io.image_files import ImageLimits, decode, open_image, orientation, turn_upright
from san.preparation.files import write_bytes
from san.vocabulary.label_sets import load_label_set

Array = npt.NDArray[Any]

_DOWNLOADED = ImageLimits(damage_remedy="unpack the download again")


def read_indices(path: Path) -> Array:
    """Read the pixel values of a one-channel 8-bit label PNG. For a palette image they are the indices.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not a PNG, or has colours.
    """
    image = _open_png(path)
    if image.mode not in ("L", "P"):
        raise ValueError(
            f"label file {path} has mode {image.mode} but must be an 8-bit PNG of indices (mode L or P): it was "
            "converted to colours or to another type; use the published file"
        )
    return np.asarray(decode(image, f"label file {path}", _DOWNLOADED))


def read_colors(path: Path) -> Array:
    """Read the pixels of an RGB label PNG, (H, W, 3) uint8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not a PNG, or not RGB.
    """
    image = _open_png(path)
    if image.mode != "RGB":
        raise ValueError(
            f"label file {path} has mode {image.mode} but must have mode RGB, because red and green encode the object "
            "number: it was converted; use the published file"
        )
    return np.asarray(decode(image, f"label file {path}", _DOWNLOADED))


def _open_png(path: Path) -> Image.Image:
    """Open a label file, which must be a PNG regardless of its name: JPEG does not preserve pixel values."""
    image = open_image(path, f"label file {path}", _DOWNLOADED)
    if image.format != "PNG":
        raise ValueError(
            f"label file {path} is a {image.format} but must be a PNG: it was converted, which may change values; use "
            "the published file"
        )
    return image


def check_raw_values(values: Array, legal: frozenset[int], path: Path, remedy: str) -> None:
    """Refuse raw values that published files never contain: they come from another release or a converted file.

    Raises:
        ValueError: a value is not legal; the message names the file, the values and the remedy.
    """
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=1))
    wrong = [int(value) for value in present if int(value) not in legal]
    if wrong:
        found = listed(wrong, 5)
        raise ValueError(f"label file {path} holds the value {found}, but this set's raw labels never do; {remedy}")


@cache
def class_table(label_set: str) -> Array:
    """Return a table from raw values to class indices; values without a class map to the ignore label.

    Returns:
        (65536,) of the label set's type, uint8 or uint16.
    """
    labels = load_label_set(label_set)
    table = np.full(1 << 16, labels.ignore_label, np.dtype(labels.label_dtype))
    table[list(labels.raw_values)] = np.arange(labels.num_classes)
    table.flags.writeable = False
    return table


def fit_to_image(values: Array, image_path: Path, label_path: Path) -> Array:
    """Rotate a label map as its image's EXIF tag says.

    The published label files have no EXIF tag and match the stored pixels, so they are rotated with the image.

    Raises:
        FileNotFoundError: the image does not exist.
        ValueError: the sizes differ.
    """
    with open_image(image_path, f"image {image_path}", _DOWNLOADED) as image:
        tag = orientation(image)
        stored = image.height, image.width
    if values.shape != stored:
        raise ValueError(
            f"label file {label_path} is {values.shape[0]}x{values.shape[1]} (height x width) but image {image_path} "
            f"is {stored[0]}x{stored[1]}: they are from different releases; unpack both downloads again"
        )
    return turn_upright(values, tag)


def write_labels(path: Path, values: Array) -> None:
    """Write a label map atomically: uint8 as PNG, uint16 as losslessly compressed 16-bit TIFF.

    Raises:
        ValueError: the file extension does not match the type.
    """
    form = {(".png", "uint8"): ("PNG", {}), (".tif", "uint16"): ("TIFF", {"compression": "tiff_adobe_deflate"})}
    key = path.suffix, str(values.dtype)
    if key not in form:
        raise ValueError(f"label map {path} has type {values.dtype}; write uint8 as .png and uint16 as .tif")
    name, options = form[key]
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, name, **options)
    write_bytes(path, buffer.getvalue())


def read_upright(path: Path) -> Image.Image:
    """Read an image, upright by its EXIF tag: grey as mode L, everything else as RGB.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged.
    """
    source = f"image {path}"
    image = decode(open_image(path, source, _DOWNLOADED), source, _DOWNLOADED)
    color = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return Image.fromarray(turn_upright(np.asarray(color), orientation(image)))
