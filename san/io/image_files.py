"""The one place where image and label files are opened: limits, EXIF orientation, RGB pixels, label values.

Images are (H, W, 3) uint8 RGB, label maps (H, W) int32, both turned upright by the EXIF orientation of their own file.

Whoever made a file chose what decoding it costs. Before anything is decoded the header's size is compared with a limit
of pixels and of the side ratio (resizing works along each side, so a line of a few bytes can cost gigabytes), and the
scans of a JPEG are counted (each costs a pass over the whole image).
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
"""Height times width of the largest image read unless somebody says otherwise: 0.5 GB as RGB, as Pillow's own limit."""

MAX_SIDE_RATIO = 2000
"""Long side over short side of an image: resized to a long side of 2560, the short one is still a pixel.

With `MAX_PIXELS` it bounds the long side too, by 600,000.
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
"""What Pillow's readers raise on bytes that are not what they should be; tests/fuzz looks for others."""

NO_PICTURES = ("BLP", "BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
"""Formats of Pillow's that need another program (EPS: Ghostscript, WMF: the system), hold no pixels, or hold a picture
of another format (BLP), whose size and scans are not those that the header says."""

UNREAD_ENDINGS = (
    *(".arw", ".avif", ".blp", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif"),
    *(".jp2", ".jxl", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".svg", ".svgz", ".wmf"),
)
"""Of files that are pictures too; some of them the installed Pillow may open."""

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
    """What an image file may be, and what to do about one that is refused.

    The limits on the side ratio and on the scans of a JPEG are the same for all files.

    Attributes:
        max_pixels: height times width; None takes any that Pillow opens.
        max_bytes: of the file; None takes any.
        formats: names of Pillow's formats; None takes all but `NO_PICTURES`.
        damage_remedy: for the error about a file that is missing, empty or damaged.
        size_remedy: for the error about one that is too large.
    """

    max_pixels: int | None = MAX_PIXELS
    max_bytes: int | None = None
    formats: tuple[str, ...] | None = None
    damage_remedy: str = "copy or prepare it again"
    size_remedy: str = "shrink it, or raise max_pixels if the memory suffices"


_USUAL = ImageLimits()


def image_endings() -> frozenset[str]:
    """Endings, with the dot and in lower case, of the formats that the installed Pillow opens, its plug-ins' too."""
    Image.init()
    return frozenset(
        ending
        for ending, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in NO_PICTURES  # MPO is opened as the JPEG that it is
    )


def read_image(file: str | Path | bytes, limits: ImageLimits = _USUAL, *, source: str = "") -> Array:
    """An image file of any mode as RGB, turned upright by its EXIF orientation; see `to_rgb`.

    Of an animation the first frame is taken.

    Args:
        file: its path, or its content.
        limits: a file beyond them is refused before it is decoded.
        source: what to call it in an error; "image" and its path by default.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, damaged, no image, of a mode without an RGB meaning, or beyond a limit.
    """
    source = source or ("the image" if isinstance(file, bytes) else f"image {file}")
    return to_rgb(decode(open_image(file, source, limits), source, limits), source)


def to_rgb(image: Image.Image, source: str = "the image") -> Array:
    """A Pillow image of any mode as RGB, turned upright by its EXIF orientation.

    Grey, palette, black and white, CMYK and the like are converted, transparency is dropped, 16-bit grey is brought to
    8 bits (65535 -> 255).

    Args:
        image: any mode but floating point, whose range nobody knows.
        source: what to call it in an error.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: it is damaged, or of a mode without an RGB meaning.
    """
    if image.mode == "F":
        raise ValueError(
            f"{source} holds floating-point values (mode F), whose range is unknown; save it as 8-bit RGB, or give an "
            "array or tensor in a stated range"
        )
    try:
        _load(image)  # the orientation may stand behind the pixels; of a TIFF Pillow applies it here
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
    """Grey values (H, W) of 16 bits as (H, W, 3) uint8; not `wide` ones are of 8 bits if none exceeds them."""
    grey = grey.astype(np.int64).clip(0, 65535)
    eight = grey // 257 if wide or grey.max() > 255 else grey
    return np.repeat(eight.astype(np.uint8)[..., None], 3, axis=2)


def read_label_map(path: str | Path, *, wide: bool = False) -> Array:
    """A label map's pixel values as stored: 8 or 16 bits, and the indices, not the colours, of a palette image.

    Like an image it is turned upright by the EXIF orientation of its own file, which few label files carry.

    Args:
        path: the file.
        wide: refuse 8 bits, which hold no more than 256 values.

    Returns:
        (H, W) int32.

    Raises:
        FileNotFoundError: no such file.
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
    """How many greys a pixel of 2 or 4 bits has, which Pillow spreads over 0..255; None for other images."""
    tiles = getattr(image, "tile", [])  # of what is not decoded yet: decoder, place, offset, arguments
    raw_mode = tiles[0][3] if tiles else None
    if isinstance(raw_mode, tuple):
        raw_mode = raw_mode[0] if raw_mode else None
    return {"L;2": 4, "L;4": 16}.get(str(raw_mode))


def check_same_size(image: Array, label_map: Array, image_name: str = "image", label_name: str = "label map") -> None:
    """Refuse a label map that does not lie on its image pixel by pixel.

    Raises:
        ValueError: names both files and sizes.
    """
    if image.shape[:2] != label_map.shape[:2]:
        raise ValueError(
            f"{image_name} is {image.shape[0]}x{image.shape[1]} (height x width) but {label_name} is "
            f"{label_map.shape[0]}x{label_map.shape[1]}: they must be equal; prepare the labels again, and if the "
            "image carries an EXIF rotation, remove it or rotate the label too"
        )


def open_image(file: str | Path | bytes, source: str, limits: ImageLimits = _USUAL) -> Image.Image:
    """An image file, opened but not yet decoded.

    Args:
        file: its path, or its content.
        source: what to call it in an error, such as "image a.jpg".
        limits: a file beyond them is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, no image, or beyond a limit.
    """
    file = _checked(file, source, limits)
    check_jpeg(file, source)  # before Pillow, which keeps all segments
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
    """Decodes an opened image to its end; the arguments are those of `open_image`.

    Raises:
        ValueError: it is damaged, or its header gave another size, which is beyond a limit.
    """
    try:
        _load(image)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{source} cannot be read ({_reason(error)}); {limits.damage_remedy}") from error
    check_size(image.height, image.width, limits, source)  # an icon's header may lie
    return image


def orientation(image: Image.Image) -> int:
    """A decoded image's EXIF orientation, 1..8; 1 where it has none, or where its EXIF data cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
        return int(value) if value in range(1, 9) else 1
    except DAMAGE:  # the pixels are there all the same
        return 1


def turn_upright(values: Array, tag: int) -> Array:
    """Pixels or labels (H, W, ...) as they were stored, turned by an EXIF orientation, 1..8."""
    return np.ascontiguousarray(_UPRIGHT[tag](values))


def check_size(height: int, width: int, limits: ImageLimits, source: str = "the image") -> None:
    """Refuse an image that is too large or too narrow to be worked on.

    Raises:
        ValueError: height times width exceeds `limits.max_pixels`, or one side the other by more than `MAX_SIDE_RATIO`.
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
    """A path or content with something to read: a FIFO or a device would wait, or never end."""
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
    """Decodes an image, once."""
    name = getattr(image, "filename", "")
    if image.format == "TIFF":
        image.filename = ""  # type: ignore[attr-defined]  # mapped into memory, Pillow reads turned ones row by column
    try:
        image.load()
    finally:
        if image.format == "TIFF":
            image.filename = name  # type: ignore[attr-defined]


def _reason(error: BaseException) -> str:
    """An error's message, or its kind where it has none."""
    return str(error) or type(error).__name__


def _is_svg(file: Path | bytes) -> bool:
    if isinstance(file, bytes):
        return b"<svg" in file[:4096].lower()
    with file.open("rb") as opened:
        return b"<svg" in opened.read(4096).lower()
