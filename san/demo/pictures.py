"""Reads what a visitor uploads, within limits; runs in a process of its own, see `san.demo.decoding`."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from san.data.image_files import decode, open_image, to_rgb
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
    source = "the picture"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files, and its limit, which is above ours
        image = open_image(content, source, max_pixels=None, formats=FORMATS, remedy="choose another one")
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ValueError(
                f"the picture has {width} × {height} = {width * height / 1e6:.1f} million pixels, the limit here is "
                f"{limits.max_pixels / 1e6:.1f} million; shrink it"
            )
        pixels: npt.NDArray[np.uint8] = to_rgb(decode(image, source, remedy="choose another one"), source)
    return pixels
