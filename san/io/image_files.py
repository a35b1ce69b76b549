"""Opens image and label files, for all of SAN: limits, EXIF orientation, RGB pixels, label values.

Images are (H, W, 3) uint8 RGB, label maps (H, W) int32, both turned upright by the EXIF orientation of their own file.

A malicious file can be expensive to decode. Therefore these are checked before decoding: the number of pixels and the
side ratio in the header (resizing works along each side, so an image one pixel high, of a few bytes, can need
gigabytes), and the number of scans of a JPEG (each needs a pass over the whole image).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from san.io.jpeg_limits import check_jpeg

Array = npt.NDArray[Any]

MAX_PIXELS = 180_000_000
"""Default maximum of height times width: 0.5 GB as RGB, equal to Pillow's own limit."""

MAX_SIDE_RATIO = 2000
"""Maximum ratio of long to short side: resized to a long side of 2560, the short side still has one pixel.

Together with `MAX_PIXELS` it limits the long side to 600,000.
"""

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
)
"""Exceptions that Pillow's readers raise for damaged files; tests/fuzz searches for others."""

NO_PICTURES = ("BLP", "BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
"""Pillow formats that need another program (EPS: Ghostscript, WMF: the system), contain no pixels, or contain a picture
of another format (BLP), so that size and scans may differ from the header."""

UNREAD_ENDINGS = (
    *(".arw", ".avif", ".blp", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif"),
    *(".jp2", ".jxl", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".svg", ".svgz", ".wmf"),
)
"""Extensions of other picture files; the installed Pillow may open some of them."""

ORIENTATION_TAG = 0x0112

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")
_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda v: v,
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: np.rot90(v, -1),
    7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Limits for image files, and the remedies shown when one is refused.

    The limits on the side ratio and on the scans of a JPEG are the same for all files.

    Attributes:
        max_pixels: maximum height times width; None: no limit.
        max_bytes: maximum file size; None: no limit.
        formats: names of accepted Pillow formats; None: all except `NO_PICTURES`.
        damage_remedy: remedy for a file that is missing, empty or damaged.
        size_remedy: remedy for a file that is too large.
    """

    max_pixels: int | None = MAX_PIXELS
    max_bytes: int | None = None
    formats: tuple[str, ...] | None = None
    damage_remedy: str = "copy or prepare it again"
    size_remedy: str = "shrink it, or raise max_pixels if the memory suffices"


_USUAL = ImageLimits()


def image_endings() -> frozenset[str]:
    """Return the lower-case extensions, with the dot, that the installed Pillow and its plug-ins open."""
    Image.init()
    return frozenset(
        ending
        for ending, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in NO_PICTURES  # MPO is opened as JPEG
    )


def read_image(file: str | Path | bytes, limits: ImageLimits = _USUAL, *, source: str = "") -> Array:
    """Read an image file of any mode as RGB, upright by its EXIF orientation; see `to_rgb`.

    The first frame of an animation is used.

    Args:
        file: path, or content.
        limits: limits, checked before the file is decoded.
        source: name in error messages; by default "image" and its path.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, damaged, no image, of a mode without an RGB equivalent, or beyond a limit.
    """
    source = source or ("the image" if isinstance(file, bytes) else f"image {file}")
    return to_rgb(decode(open_image(file, source, limits), source, limits), source)


def to_rgb(image: Image.Image, source: str = "the image") -> Array:
    """Convert a Pillow image of any mode to RGB, upright by its EXIF orientation.

    Grey, palette, black and white, CMYK and similar modes are converted, transparency is dropped, 16-bit grey is
    reduced to 8 bits (65535 -> 255).

    Args:
        image: any mode except floating point, which has no defined range.
        source: name in error messages.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the image is damaged, or its mode has no RGB equivalent.
    """
    if image.mode == "F":
        raise ValueError(
            f"{source} holds floating-point values (mode F), whose range is unknown; save it as 8-bit RGB, or give an "
            "array or tensor in a stated range"
        )
    try:
        _load(image)  # the orientation may follow the pixels; for a TIFF, Pillow applies it here
        if image.mode.startswith("I"):
            pixels = _sixteen_to_eight(np.asarray(image), wide=image.mode != "I")
        else:
            pixels = np.array(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{source} has mode {image.mode}, which has no RGB form; save it as RGB") from error
    except DAMAGE as error:
        raise ValueError(f"{source} cannot be read ({_reason(error)}); {_USUAL.damage_remedy}") from error
    return turn_upright(pixels, orientation(image))


def _sixteen_to_eight(grey: Array, *, wide: bool) -> Array:
    """Convert 16-bit grey values (H, W) to (H, W, 3) uint8; unless `wide`, values of at most 255 count as 8-bit."""
    grey = grey.astype(np.int64).clip(0, 65535)
    eight = grey // 257 if wide or grey.max() > 255 else grey
    return np.repeat(eight.astype(np.uint8)[..., None], 3, axis=2)


def read_label_map(path: str | Path, *, wide: bool = False) -> Array:
    """Read a label map's pixel values as stored: 8 or 16 bits; for a palette image the indices, not the colours.

    Like an image, it is turned upright by the EXIF orientation of its own file, which few label files have.

    Args:
        path: the file.
        wide: refuse 8-bit files, which have at most 256 values.

    Returns:
        (H, W) int32.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, damaged, no image, beyond a limit, of a format that changes values, or has more
            than one channel or too few bits.
    """
    source = f"label map {path}"
    image = open_image(path, source)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"{source} is a JPEG, which changes values; save label maps as PNG")
    levels = _levels_of_grey(image)
    image = decode(image, source)
    if image.mode not in _LABEL_MODES:
        raise ValueError(
            f"{source} has mode {image.mode} but must have one channel of class indices (8-bit PNG, or 16-bit PNG or "
            "TIFF); convert colour-coded labels to indices (see docs/datasets.md)"
        )
    if wide and not image.mode.startswith("I"):
        raise ValueError(
            f"{source} has 8 bits (mode {image.mode}), which hold 256 values, but the data set has more classes; save "
            "its label maps with 16 bits"
        )
    values = np.asarray(image).astype(np.int32)
    return turn_upright(values if levels is None else values * (levels - 1) // 255, orientation(image))


def _levels_of_grey(image: Image.Image) -> int | None:
    """Return the number of greys of 2-bit or 4-bit pixels, which Pillow scales to 0..255; None for other images."""
    tiles = getattr(image, "tile", [])  # before decoding: decoder, place, offset, arguments
    raw_mode = tiles[0][3] if tiles else None
    if isinstance(raw_mode, tuple):
        raw_mode = raw_mode[0] if raw_mode else None
    return {"L;2": 4, "L;4": 16}.get(str(raw_mode))


def check_same_size(image: Array, label_map: Array, image_name: str = "image", label_name: str = "label map") -> None:
    """Check that a label map has the size of its image.

    Raises:
        ValueError: the sizes differ; the message names both files and sizes.
    """
    if image.shape[:2] != label_map.shape[:2]:
        raise ValueError(
            f"{image_name} is {image.shape[0]}x{image.shape[1]} (height x width) but {label_name} is "
            f"{label_map.shape[0]}x{label_map.shape[1]}: they must be equal; prepare the labels again, and if the "
            "image carries an EXIF rotation, remove it or rotate the label too"
        )


def open_image(file: str | Path | bytes, source: str, limits: ImageLimits = _USUAL) -> Image.Image:
    """Open an image file without decoding it.

    Args:
        file: path, or content.
        source: name in error messages, such as "image a.jpg".
        limits: limits to check.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, no image, or beyond a limit.
    """
    file = _checked(file, source, limits)
    check_jpeg(file, source)  # before Pillow opens it, which keeps all segments in memory
    try:
        image = Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=limits.formats
        )  # only the header
    except UnidentifiedImageError as error:
        if _is_svg(file):
            raise ValueError(f"{source} is an SVG, a drawing without pixels; export it as PNG") from error
        known = "any image format that Pillow knows" if limits.formats is None else ", ".join(limits.formats)
        raise ValueError(f"{source} cannot be read (it is not {known}); {limits.damage_remedy}") from error
    except Image.DecompressionBombError as error:
        bound = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(
            f"{source} is too large (over {bound:.0f} million pixels); shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except DAMAGE as error:
        raise ValueError(f"{source} cannot be read ({_reason(error)}); {limits.damage_remedy}") from error
    if image.format in NO_PICTURES:
        raise ValueError(f"{source} is of the format {image.format}, which is not read as a picture; export it as PNG")
    check_size(image.height, image.width, limits, source)
    return image


def decode(image: Image.Image, source: str, limits: ImageLimits = _USUAL) -> Image.Image:
    """Decode an opened image completely; the arguments are those of `open_image`.

    Raises:
        ValueError: the file is damaged, or its decoded size differs from the header and exceeds a limit.
    """
    try:
        _load(image)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{source} cannot be read ({_reason(error)}); {limits.damage_remedy}") from error
    check_size(image.height, image.width, limits, source)  # an icon's header may be wrong
    return image


def orientation(image: Image.Image) -> int:
    """Return a decoded image's EXIF orientation, 1..8; 1 if it has none or its EXIF data cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
        return int(value) if value in range(1, 9) else 1
    except DAMAGE:  # the pixels are valid without it
        return 1


def turn_upright(values: Array, tag: int) -> Array:
    """Turn stored pixels or labels (H, W, ...) upright by an EXIF orientation, 1..8."""
    return np.ascontiguousarray(_UPRIGHT[tag](values))


def check_size(height: int, width: int, limits: ImageLimits, source: str = "the image") -> None:
    """Check that an image is neither too large nor too narrow to be processed.

    Raises:
        ValueError: height times width exceeds `limits.max_pixels`, or the ratio of the sides exceeds `MAX_SIDE_RATIO`.
    """
    shown = f"{source} is {width}x{height} (width x height)"
    if limits.max_pixels is not None and height * width > limits.max_pixels:
        raise ValueError(
            f"{shown}, {height * width / 1e6:.4g} million pixels, but at most {limits.max_pixels / 1e6:g} million are "
            f"accepted; {limits.size_remedy}"
        )
    if max(height, width) > MAX_SIDE_RATIO * min(height, width) > 0:
        raise ValueError(
            f"{shown}: one side is {max(height, width) / min(height, width):.0f} times the other, at most "
            f"{MAX_SIDE_RATIO} times is accepted; cut it into pieces"
        )


def _checked(file: str | Path | bytes, source: str, limits: ImageLimits) -> Path | bytes:
    """Check that a path is a non-empty regular file: reading a FIFO or a device could block or never end."""
    checked = file if isinstance(file, bytes) else _existing(Path(file), source, limits)
    size = len(checked) if isinstance(checked, bytes) else checked.stat().st_size
    if not size:
        raise ValueError(f"{source} is an empty file (0 bytes); {limits.damage_remedy}")
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise ValueError(
            f"{source} has {size / 1e6:.4g} MB, but at most {limits.max_bytes / 1e6:g} MB are accepted; "
            f"{limits.size_remedy}"
        )
    return checked


def _existing(path: Path, source: str, limits: ImageLimits) -> Path:
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise FileNotFoundError(f"{source} is a folder; name a file in it")
        if os.path.exists(path):
            raise ValueError(f"{source} is not a regular file but a pipe, a socket or a device; name an image file")
        raise FileNotFoundError(f"{source} does not exist; {limits.damage_remedy}")
    return path


def _load(image: Image.Image) -> None:
    """Decode an image once."""
    name = getattr(image, "filename", "")
    if image.format == "TIFF":
        image.filename = ""  # type: ignore[attr-defined]  # mapped into memory, Pillow reads turned ones row by column
    try:
        image.load()
    finally:
        if image.format == "TIFF":
            image.filename = name  # type: ignore[attr-defined]


def _reason(error: BaseException) -> str:
    """Return an error's message, or its type if it has none."""
    return str(error) or type(error).__name__


def _is_svg(file: Path | bytes) -> bool:
    if isinstance(file, bytes):
        return b"<svg" in file[:4096].lower()
    with file.open("rb") as opened:
        return b"<svg" in opened.read(4096).lower()
