"""Malformed files made by mutating good ones; the same seed gives the same files."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

SPLICED = (
    b"",
    b"\0",
    b"\xff",
    b"\xff\xd8",
    b"IEND",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80" * 8,
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 100_000, 1_000_000)


def good_images() -> dict[str, bytes]:
    """Small good files of the six formats that everybody has, in several modes and codings; name -> bytes."""
    values = np.random.default_rng(0).integers(0, 256, (24, 36, 4), dtype=np.uint8)
    smooth = np.linspace(0, 255, 24 * 36 * 3).reshape(24, 36, 3).astype(np.uint8)
    color, soft = Image.fromarray(values[..., :3]), Image.fromarray(smooth)
    alpha, grey = Image.fromarray(values, "RGBA"), Image.fromarray(values[..., 0])
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    plans: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "rgb.jpg": (soft, "JPEG", {"exif": exif}),
        "progressive.jpg": (color, "JPEG", {"progressive": True, "quality": 60}),
        "grey.jpg": (grey, "JPEG", {}),
        "cmyk.jpg": (color.convert("CMYK"), "JPEG", {}),
        "rgb.png": (color, "PNG", {"exif": exif}),
        "alpha.png": (alpha, "PNG", {}),
        "palette.png": (color.quantize(16), "PNG", {"transparency": 3}),
        "deep.png": (deep, "PNG", {}),
        "moving.png": (color, "PNG", {"save_all": True, "append_images": [soft]}),
        "moving.gif": (color, "GIF", {"save_all": True, "append_images": [soft, color]}),
        "still.gif": (grey, "GIF", {}),
        "raw.tif": (color, "TIFF", {"exif": exif}),
        "lzw.tif": (soft, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (soft, "TIFF", {"compression": "jpeg"}),
        "two.tif": (grey, "TIFF", {"save_all": True, "append_images": [color]}),
        "lossy.webp": (soft, "WEBP", {"exif": exif}),
        "lossless.webp": (alpha, "WEBP", {"lossless": True}),
        "moving.webp": (color, "WEBP", {"save_all": True, "append_images": [soft]}),
        "rgb.bmp": (color, "BMP", {}),
        "palette.bmp": (color.quantize(16), "BMP", {}),
        "bits.bmp": (grey.convert("1"), "BMP", {}),
    }
    return {name: _encoded(*plan) for name, plan in plans.items()}


def _encoded(image: Image.Image, form: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def malformed_images(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """That many files, each a good one with one to four mutations; (name, bytes)."""
    rng = random.Random(seed)
    good = list(good_images().items())
    for index in range(count):
        name, content = good[index % len(good)]
        if rng.random() < 0.25:
            content = header_lie(name, content, rng)
        for _ in range(rng.randint(0 if rng.random() < 0.1 else 1, 4)):
            content = mutated(content, rng)
        if name.endswith(".png") and rng.random() < 0.5:
            content = with_png_checksums(content)  # else most lies would end at the checksum
        yield f"{index:05d}_{name}", content


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One mutation: a bit, a byte, a number, a cut, a repetition, a removal, an insertion or a change of order."""
    data = bytearray(content)
    if not data:
        return bytes(rng.choice(SPLICED))
    place = rng.randrange(min(len(data), rng.choice((16, 64, 400, len(data)))))
    length = rng.randint(1, max(1, min(64, len(data) - place)))
    kind = rng.randrange(8)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place] = rng.randrange(256)
    elif kind == 2:
        form = rng.choice(("<H", ">H", "<I", ">I"))
        number = struct.pack(form, rng.choice(EXTREMES) & (0xFFFF if form.endswith("H") else 0xFFFFFFFF))
        data[place : place + len(number)] = number
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        data[place:place] = data[place : place + length] * rng.randint(1, 20)
    elif kind == 5:
        del data[place : place + length]
    elif kind == 6:
        data[place:place] = rng.choice(SPLICED)
    else:
        data[place : place + length] = reversed(data[place : place + length])
    return bytes(data)


def header_lie(name: str, content: bytes, rng: random.Random) -> bytes:
    """The same file that says it is of another size, or whose chunk says it is of another length."""
    number = rng.choice(EXTREMES)
    data = bytearray(content)
    wide = struct.pack(">I", number)
    if name.endswith(".png"):
        place = rng.choice((16, 20, content.find(b"IDAT") - 4, 8))
        data[place : place + 4] = wide
        return with_png_checksums(bytes(data))
    if name.endswith(".jpg"):
        frames = [place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := content.find(mark)) > 0]
        place = rng.choice([frames[0] + 2, frames[0] + 5, frames[0] + 7])
        data[place : place + 2] = wide[-2:]
    elif name.endswith(".gif"):
        place = rng.choice((6, 8, content.find(b",") + 5))
        data[place : place + 2] = wide[-2:]
    elif name.endswith(".bmp"):
        place = rng.choice((2, 10, 18, 22, 28, 30, 34, 46))
        data[place : place + 4] = struct.pack("<I", number)
    elif name.endswith(".webp"):
        place = rng.choice((4, 16, 20, 24, 27))
        data[place : place + 4] = struct.pack("<I", number)
    else:
        (start,) = struct.unpack_from("<I", content, 4)
        (entries,) = struct.unpack_from("<H", content, start)
        place = start + 2 + 12 * rng.randrange(entries) + rng.choice((0, 2, 4, 8))
        data[place : place + 4] = struct.pack("<I", number)
    return bytes(data)


def with_png_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksum of what they hold."""
    data, place = bytearray(content), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)
