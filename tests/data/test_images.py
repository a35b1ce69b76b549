"""Whatever people call an image: every mode, EXIF, arrays, tensors, limits, and files that are no image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.data.images import image_pixels
from san.io.image_files import ImageLimits, read_image


def picture(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)


def thrice(channel: np.ndarray) -> np.ndarray:
    return np.repeat(channel[..., None], 3, axis=2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B"])
def test_modes(tmp_path: Path, mode: str) -> None:
    """A Pillow image and, where a format holds the mode, the file of it."""
    if mode.startswith("I"):
        dtype = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
        values = grey().astype(np.int64) * 257
        image, expected = Image.fromarray(values.astype(dtype)), thrice(grey())
        assert image.mode == mode
    else:
        image = Image.fromarray(picture()).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(image_pixels(image), expected)
    if mode not in ("HSV", "YCbCr", "CMYK"):
        image.save(tmp_path / "a.tif")
        assert np.array_equal(image_pixels(tmp_path / "a.tif"), expected)


def test_grey_channels_are_what_they_were() -> None:
    """Not only Pillow's own conversion."""
    assert np.array_equal(image_pixels(Image.fromarray(grey())), thrice(grey()))
    with_alpha = np.dstack([picture(), grey()])
    assert np.array_equal(image_pixels(Image.fromarray(with_alpha)), picture())
    assert set(np.unique(image_pixels(Image.fromarray(grey() > 127)))) == {0, 255}


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(picture(), {3: 2, 6: -1}[orientation])
    assert np.array_equal(image_pixels(tmp_path / "a.png"), expected)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(image_pixels(image), expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (picture(), picture()),
        (picture()[:, ::-1], picture()[:, ::-1]),
        (grey(), thrice(grey())),
        (grey()[..., None], thrice(grey())),
        (np.dstack([grey(), 255 - grey()]), thrice(grey())),
        (np.dstack([picture(), grey()]), picture()),
        (grey() > 127, thrice((grey() > 127) * np.uint8(255))),
        (grey().astype(np.uint16) * 257, thrice(grey())),
        (picture().tolist(), None),
    ],
    ids=["RGB", "view", "grey", "one channel", "grey+alpha", "RGBA", "bool", "16 bits", "list of int64"],
)
def test_arrays(array: Any, expected: np.ndarray | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="type int64; give"):
            image_pixels(array)
        return
    found = image_pixels(array)
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint8
    assert np.array_equal(image_pixels(np.moveaxis(array, -1, 0), layout="CHW"), expected) or array.ndim == 2


def test_the_result_is_a_copy_that_stays() -> None:
    array = picture()
    found = image_pixels(array)
    array[:] = 0
    assert np.array_equal(found, picture())
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 0


def test_tensors_say_their_layout() -> None:
    whole = torch.from_numpy(picture())
    for tensor, layout in ((whole, "HWC"), (whole.permute(2, 0, 1), "CHW"), (whole.double() / 255, "HWC")):
        assert np.array_equal(image_pixels(tensor, layout=layout), picture())
    assert np.array_equal(image_pixels((whole / 255).permute(2, 0, 1).requires_grad_(), layout="CHW"), picture())
    assert np.array_equal(image_pixels(torch.from_numpy(grey())), thrice(grey()))
    three = torch.arange(27, dtype=torch.uint8).view(3, 3, 3)  # ambiguous
    assert np.array_equal(image_pixels(three, layout="HWC"), three.numpy())
    assert np.array_equal(image_pixels(three, layout="CHW"), three.permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\) may be read in two ways; say layout='CHW'"):
        image_pixels(three)
    with pytest.raises(ValueError, match="unknown layout 'NCHW'"):
        image_pixels(three, layout="NCHW")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_float_tensors_outside_their_range(value: float) -> None:
    tensor = torch.rand(3, 4, 4)
    tensor[0, 0, 0] = value
    with pytest.raises(ValueError, match="must be 0..1; divide by 255"):
        image_pixels(tensor, layout="CHW")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5)), r"\(5, 5\) and type float64"),
        (np.zeros((5, 5, 3), np.float32), "type float32"),
        (np.zeros((5, 5, 5), np.uint8), r"\(5, 5, 5\)"),
        (np.zeros((1, 5, 5, 3), np.uint8), r"\(1, 5, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\)"),
        (None, "type object"),
        (Image.new("F", (4, 4)), "floating-point values"),
        (Image.new("RGB", (0, 4)), "at least one pixel"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_pixels(image)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert image_pixels(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and then holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""))
    parts = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [20_000, 13_400])
def test_a_huge_file_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    """The file has no pixels at all, so decoding it would be another error."""
    (tmp_path / "huge.png").write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"huge.png is too large .* pixels.*; shrink it"):
        read_image(tmp_path / "huge.png")
    (tmp_path / "large.png").write_bytes(png_header(2000, 2000))
    with pytest.raises(ValueError, match=r"large.png is 2000x2000 .* 4 million pixels, but at most 3 million"):
        read_image(tmp_path / "large.png", ImageLimits(max_pixels=3_000_000))


def test_the_limit_is_a_choice(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", picture(), Image.fromarray(picture()), torch.from_numpy(picture())):
        assert image_pixels(image, layout="HWC", max_pixels=54).shape == (6, 9, 3)
        assert image_pixels(image, layout="HWC", max_pixels=None).shape == (6, 9, 3)
        with pytest.raises(ValueError, match=r"is 9x6 \(width x height\).*raise max_pixels"):
            image_pixels(image, layout="HWC", max_pixels=53)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_truncated_files(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / f"whole.{ending}"
    Image.fromarray(picture(64, 64)).save(whole)
    content = whole.read_bytes()
    for share in (0.0, 0.02, 0.6):
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=f"cut.{ending} .*prepare it again"):
            image_pixels(cut)


def test_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert image_pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_files_that_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>')
    with pytest.raises(ValueError, match=r"a.svg is an SVG.*export it as PNG"):
        image_pixels(tmp_path / "a.svg")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a.txt cannot be read"):
        image_pixels(str(tmp_path / "a.txt"))
    Image.new("F", (4, 4)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f.tif holds floating-point values"):
        image_pixels(tmp_path / "f.tif")
    for path, message in ((tmp_path / "none.png", "does not exist"), (tmp_path, "is a folder; name a file in it")):
        with pytest.raises(FileNotFoundError, match=message):
            image_pixels(path)
