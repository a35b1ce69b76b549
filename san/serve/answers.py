"""Writes a segmentation as the client wants it: pictures and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from san.io.errors import excerpt
from san.web.uploads import Refusal

if TYPE_CHECKING:
    from san.inference.segmentation import Segmentation

PNG, JSON = "image/png", "application/json"
FORMATS = {
    "json": (JSON, "size, and for each class name, area, share and confidence"),
    "labels": (PNG, "the label map: class indices in 8 bits, 255 for none; above 255 classes 16 bits, 65535 for none"),
    "overlay": (PNG, "the picture blended with its class colours"),
    "rle": (JSON, "run lengths as of pycocotools, one entry per class"),
    "coco": (JSON, "a COCO data set of this picture: images, annotations, categories"),
    "polygons": (JSON, "outlines and holes of the regions, corners x, y"),
}
"""Formats of answers: media type, and content."""
_BY_ACCEPT = {JSON: "json", PNG: "labels"}  # the first is that of */*


@dataclass(frozen=True)
class RegionFields:
    """Options of "coco" and "polygons", see `san.inference.exports.RegionExports`."""

    instances: bool = False
    min_area: int = 0
    score_threshold: float = 0.0
    tolerance: float = 0.0
    coco_polygons: bool = False


def chosen_format(name: str, accept: str) -> str:
    """Return the format of an answer.

    Args:
        name: the parameter; "" if it is not given.
        accept: the Accept header, which decides then; "" if it is not given.

    Raises:
        Refusal: 422 or 406, there is no such format.
    """
    if name:
        if name not in FORMATS:
            raise Refusal(422, f"format is {excerpt(name)} but must be one of {', '.join(FORMATS)}")
        return name
    wanted = []
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media_type, *parameters = (each.strip().lower() for each in part.split(";"))
        weights = [each[2:] for each in parameters if each.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        for known, chosen in _BY_ACCEPT.items():
            if weight > 0 and media_type in (known, "*/*", f"{known.split('/')[0]}/*"):
                wanted.append((weight, chosen))
    if not wanted:
        raise Refusal(
            406,
            f"Accept is {excerpt(accept)} but answers are {' or '.join(_BY_ACCEPT)}; change it, or choose with the "
            f"parameter format: {', '.join(FORMATS)}",
        )
    return max(wanted, key=lambda each: each[0])[1]


def written(
    result: Segmentation, form: str, options: RegionFields, *, file_name: str = "", notes: Sequence[str] = ()
) -> bytes:
    """Return a result in one of `FORMATS`.

    Args:
        result: the segmentation.
        form: the format.
        options: for "coco" and "polygons".
        file_name: of the picture, noted in "json", "rle" and "coco".
        notes: remarks on the words, in "json".
    """
    regions: dict[str, Any] = {
        "instances": options.instances,
        "min_area": options.min_area,
        "score_threshold": options.score_threshold,
        "tolerance": options.tolerance,
    }
    writers: dict[str, Callable[[], bytes]] = {
        "json": lambda: _json({**result.to_dict(file_name), "notes": list(notes)}),
        "labels": lambda: _png(result.label_image()),
        "overlay": lambda: _png(result.overlay()),
        "rle": lambda: _json(result.to_coco_rle(file_name)),
        "coco": lambda: _json(result.to_coco(file_name, polygons=options.coco_polygons, **regions)),
        "polygons": lambda: _json(_plain(result.to_polygons(**regions))),
    }
    return writers[form]()


def _plain(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return entries with lists instead of arrays."""
    return [
        {**entry, "polygons": [[ring.tolist() for ring in each] for each in entry["polygons"]]} for entry in entries
    ]


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
