"""Reads what a visitor uploads, within limits; runs in a process of its own, see `san.demo.decoding`."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from san.data.transforms import DAMAGE, to_rgb
from san.demo.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded; Pillow's other readers, some of which start programs, are never tried."""


def read_picture(content: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """A picture's pixels, turned upright by its EXIF orientation; of an animation the first frame.

    Args:
        content: the uploaded file.
        limits: its size is checked before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: it is no picture, damaged, or too large. The message is for the visitor.
    """
    if not content:
        raise ValueError("the file is empty (0 bytes); choose another one")
    if len(content) > limits.max_bytes:
        raise ValueError(
            f"the file has {len(content) / 1e6:.1f} MB, the limit here is {limits.max_bytes / 1e6:.1f} MB; shrink it"
        )
    _refuse_drawings(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, and its limit, which is above ours
            return _decoded(content, limits)
    except UnidentifiedImageError as error:
        raise ValueError(f"the file is not a picture that is read here ({', '.join(FORMATS)}); convert it") from error
    except Image.DecompressionBombError as error:
        millions = limits.max_pixels / 1e6
        raise ValueError(f"the picture is far too large; the limit here is {millions:.1f} million pixels") from error
    except ValueError:
        raise  # it is in words for the visitor
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the picture is damaged or cut off and cannot be read ({reason}); choose another") from error


def _decoded(content: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    image = Image.open(io.BytesIO(content), formats=FORMATS)  # reads the header only
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ValueError(
            f"the picture has {width} × {height} = {width * height / 1e6:.1f} million pixels, the limit here is "
            f"{limits.max_pixels / 1e6:.1f} million; shrink it"
        )
    image.load()
    pixels: npt.NDArray[np.uint8] = to_rgb(image, "the picture")
    return pixels


def _refuse_drawings(content: bytes) -> None:
    start = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in content[:5000].lower()):
        raise ValueError("SVG is a drawing without pixels; export it as PNG and choose that")
