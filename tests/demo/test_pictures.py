"""Uploads of visitors: decoded within limits, or refused with a message."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from san.demo.limits import Limits
from san.io.image_files import read_image

LIMITS = Limits(max_bytes=100_000, max_pixels=50_000).of_pictures


def read_picture(content: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the process that decodes does
        return read_image(content, LIMITS, source="the picture")


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width: int = 60, height: int = 40) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG"])
def test_formats(form):
    pixels = read_picture(encoded(picture(), form))
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    if form in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels, np.asarray(picture()))


def test_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(picture(), "JPEG", exif=exif)).shape == (60, 40, 3)


BAD = {
    "empty": (b"", "empty"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "is an SVG, a drawing"),
    "svg with a header": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg></svg>', "is an SVG, a drawing"),
    "text": (b"hello", r"cannot be read \(it is not PNG, JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"cannot be read \(it is not PNG, JPEG"),
    "cut off": (encoded(picture())[:2000], r"the picture cannot be read \(.*choose another"),
    "too many bytes": (
        b"\x89PNG" + bytes(100_001),
        "the picture has 0.1 MB, but at most 0.1 MB are accepted; shrink it",
    ),
    "too many pixels": (
        encoded(Image.new("L", (300, 200))),
        r"the picture is 300x200 \(width x height\), 0.06 million pixels, but at most 0.05 million are.*; shrink it$",
    ),
    "a bomb": (encoded(Image.new("1", (20_000, 20_000))), "over 179 million pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(name):
    content, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read_picture(content)


def test_mutated_files_raise_nothing_else():
    """Bytes changed, cut and repeated at random: a picture, or a ValueError."""
    rng = random.Random(0)
    seeds = [encoded(picture(), form) for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")]
    refused = 0
    for _ in range(300):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 12)):
            content[rng.randrange(min(len(content), 400))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        try:
            assert read_picture(bytes(content)).ndim == 3
        except ValueError:
            refused += 1
    assert refused > 30
