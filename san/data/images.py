"""Converts files, Pillow images, arrays and tensors to RGB pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from san.io.image_files import MAX_PIXELS, ImageLimits, check_size, read_image, to_rgb

Layout = Literal["HWC", "CHW"]
"""The order of an image's axes: H height, W width, C channels."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def image_pixels(
    image: Any, *, layout: Layout | None = None, max_pixels: int | None = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Return an image as upright RGB, in a read-only copy.

    Args:
        image: one of
            - a file, see `san.io.image_files.read_image`;
            - a Pillow image of any mode but floating point, see `san.io.image_files.to_rgb`;
            - an array of uint8, uint16 (65535 is white) or bool, with 1 to 4 channels (grey, grey with transparency,
              RGB, RGBA; transparency is dropped), or a grey one without a channel axis;
            - a tensor of uint8, bool or floating point in 0..1, with channels likewise.
        layout: axes of an array or tensor with channels, "HWC" or "CHW"; the default for arrays is "HWC", tensors have
            none.
        max_pixels: maximum number of pixels; a larger file is refused before it is decoded. None: no limit.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the image is not accepted; the message names the problem and what is accepted.
    """
    limits = ImageLimits(max_pixels=max_pixels)
    if isinstance(image, (str, Path)):
        pixels = read_image(image, limits)
    elif isinstance(image, Image.Image):
        check_size(image.height, image.width, limits)
        pixels = to_rgb(image)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image, layout, limits)
    else:
        pixels = _from_array(np.asarray(image), layout or "HWC", limits)
    if 0 in pixels.shape:
        raise ValueError(f"the image has shape {pixels.shape}; it needs at least one pixel")
    pixels.setflags(write=False)
    return pixels


def _from_array(array: npt.NDArray[Any], layout: str, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    array = _channels_last(array, layout)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _MODES) or 0 in array.shape:
        raise _unfit(array)
    check_size(array.shape[0], array.shape[1], limits)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise _unfit(array)
    channels = array[..., None] if array.ndim == 2 else array
    colors = channels[..., :1] if channels.shape[2] < 3 else channels[..., :3]  # transparency is dropped
    rgb: npt.NDArray[np.uint8] = np.broadcast_to(colors, (*colors.shape[:2], 3)).copy()
    return rgb


def _from_tensor(tensor: Tensor, layout: Layout | None, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    if layout is None and tensor.ndim != 2:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} may be read in two ways; say layout='CHW' or layout='HWC'"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
        low, high = (tensor.min().item(), tensor.max().item()) if tensor.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # also if a value is NaN
            raise ValueError(
                f"the floating-point image tensor has values {low:g}..{high:g} but they must be 0..1; divide by 255, "
                "undo a normalisation, or give uint8"
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    return _from_array(tensor.numpy(), layout or "HWC", limits)


def _channels_last(array: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    if layout not in ("HWC", "CHW"):
        raise ValueError(f"unknown layout {layout!r}; give 'HWC' or 'CHW'")
    return array.transpose(1, 2, 0) if layout == "CHW" and array.ndim == 3 else array


def _unfit(array: npt.NDArray[Any]) -> ValueError:
    return ValueError(
        f"the image has shape {array.shape} and type {array.dtype}; give (height, width, 3) uint8 RGB, a PIL image "
        "or a file (grey, transparent, 16-bit and bool arrays are accepted too; floating point as a tensor in 0..1)"
    )
