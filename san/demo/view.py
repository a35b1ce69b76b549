"""Makes the JSON that the page draws: picture, label map, classes, and files to download.

The page itself draws the colours, so opacity and the class under the cursor need no request. Results are never written
to disk.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.demo.examples import Example
from san.demo.limits import Limits
from san.visualize import palette

if TYPE_CHECKING:
    from san.demo.service import Session
    from san.inference.segmentation import Segmentation

_SHOWN_SIDE = 1600  # long side of the displayed picture; the label map has full size
_LOSSLESS_PIXELS = 400_000
_THUMBNAIL_SIDE = 160
_serials = itertools.count(1)


def result_view(session: Session, result: Segmentation, seconds: float, *, notes: Sequence[str] = ()) -> str:
    """Return a result without its picture, which the page has already.

    Args:
        session: of the picture.
        result: the segmentation.
        seconds: time of the segmentation.
        notes: remarks shown above the picture.
    """
    return _json(_result(session, result, seconds, notes))


def picture_view(session: Session, result: Segmentation, seconds: float, *, notes: Sequence[str] = ()) -> str:
    """Return a result with its picture."""
    return _json({**_result(session, result, seconds, notes), "picture": _shown(result.image)})


def result_address(name: str) -> str:
    """Return the address of a stored view, for the page."""
    return _json({"result": name})


def message_view(message: str) -> str:
    """Return a message for the visitor; the rest of the page stays."""
    return _json({"message": message})


def encoded_view(session: Session, message: str) -> str:
    """Return a picture without a result, and the message about its words."""
    height, width = session.encoded.pixels.shape[:2]
    shown = {"id": session.image_id, "title": session.title, "height": height, "width": width}
    return _json({"image": shown, "picture": _shown(session.encoded.pixels), "message": message})


def picker_view(examples: Sequence[Example], hint: str, limits: Limits) -> str:
    """Return thumbnails of the examples, and the limits of uploads."""
    items = []
    for example in examples:
        small = Image.fromarray(example.pixels)
        small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        items.append({"title": example.title, "src": _data_url(_encoded(small, "JPEG", quality=85), "image/jpeg")})
    bounds = {"max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels}
    return _json({"examples": items, "hint": hint, **bounds})


def _result(session: Session, result: Segmentation, seconds: float, notes: Sequence[str]) -> dict[str, Any]:
    height, width = result.labels.shape
    num_classes = len(result.names)
    first_context = num_classes - result.vocabulary.num_context
    areas, scores = result.areas(), result.confidences()
    label_image = result.label_image()
    stored = np.asarray(label_image)
    classes = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*color),
            "area": areas.get(name, 0.0),
            "score": scores.get(name),
            "context": index >= first_context,
        }
        for index, (name, color) in enumerate(zip(result.names, palette(result.names).tolist(), strict=True))
    ]
    return {
        "image": {"id": session.image_id, "title": session.title, "height": height, "width": width},
        "classes": classes,
        "none": result.none_area(),
        "labels": _text(zlib.compress(stored.astype(stored.dtype.newbyteorder("<")).tobytes(), 6)),
        "bytes": stored.dtype.itemsize,
        "encode_seconds": session.seconds,
        "words_seconds": seconds,
        "notes": list(notes),
        "files": {
            "stem": _stem(session.title),
            "labels": _text(_encoded(label_image, "PNG")),
            "json": json.dumps(result.to_dict(), indent=1, ensure_ascii=False),
        },
    }


def _shown(pixels: npt.NDArray[np.uint8]) -> str:
    """Return a picture for the page: lossless if it is small, and never larger than a screen."""
    image = Image.fromarray(pixels)
    if pixels.shape[0] * pixels.shape[1] <= _LOSSLESS_PIXELS:
        return _data_url(_encoded(image, "PNG"), "image/png")
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    return _data_url(_encoded(image, "JPEG", quality=90), "image/jpeg")


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{_text(content)}"


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _stem(title: str) -> str:
    """Return a file name for a title: letters, digits and dashes."""
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", title)
    return re.sub(r"[^\w-]+", "_", stem).strip("_")[:60] or "picture"


def _json(fields: dict[str, Any]) -> str:
    """Return numbered JSON, so that the page detects a repeated message."""
    return json.dumps({"serial": next(_serials), **fields}, ensure_ascii=False)
