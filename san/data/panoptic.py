"""Reads and writes COCO's panoptic format: a JSON file, and a PNG of segment ids per image.

The id of a segment is R + 256 G + 65536 B of its pixels; 0 is no segment. A record of a panoptic set has
``pan_seg_file_name``, the PNG, and ``segments_info``, a list of ``{"id", "category", "iscrowd"}`` with class indices.

Legend: (H, W) image, S segments, V values of a target map.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.data.pairing import REMEDY, Pair, Pairing, pair_files
from san.io.errors import brief_repr, excerpt, listed
from san.io.image_files import decode, open_image

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Segment = Mapping[str, Any]
"""A segment of an image: `id`, `category` (class index), `iscrowd` (0 or 1)."""

MAX_ID = 256**3 - 1
"""Largest id of a segment: 24 bits."""


@dataclass(frozen=True, eq=False)
class PanopticFile:
    """The JSON file of a set in COCO's panoptic format.

    Attributes:
        names: category id -> class name.
        things: ids of the categories that are things.
        annotations: path of an image's PNG without its ending -> its annotation, as in the file.
    """

    names: Mapping[int, str]
    things: frozenset[int]
    annotations: Mapping[str, Mapping[str, Any]]

    __repr__ = brief_repr


_REMEDY = "give the JSON file of a set in COCO's panoptic format"


def read_panoptic_file(file: Path, *, remedy: str = _REMEDY) -> PanopticFile:
    """Read the JSON file of a set, without its PNGs.

    Args:
        file: the JSON file.
        remedy: remedy for a missing file, for the message.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not of this format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        things = frozenset(int(each["id"]) for each in content["categories"] if each["isthing"])
        annotations = {
            str(PurePosixPath(each["file_name"]).with_suffix("")): {
                "file_name": str(each["file_name"]),
                "segments_info": [*each["segments_info"]],
            }
            for each in content["annotations"]
        }
        if len(names) < len(content["categories"]) or len(annotations) < len(content["annotations"]):
            raise ValueError("two categories have one id, or two annotations one file name")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist; {remedy}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is not of COCO's panoptic format ({type(error).__name__}: {error})") from None
    return PanopticFile(names, things, annotations)


def read_segment_ids(path: str | Path) -> Ids:
    """Read the PNG of an image's segment ids.

    Returns:
        (H, W) int64; 0 is no segment.

    Raises:
        FileNotFoundError: the PNG does not exist.
        ValueError: it cannot be read, or is no RGB image.
    """
    try:
        with open_image(path, "it") as image:
            if image.mode != "RGB" or image.format != "PNG":
                raise ValueError(f"it has the mode {image.mode} and the format {image.format}")
            pixels = np.asarray(decode(image, "it")).astype(np.int64)
    except FileNotFoundError:
        raise FileNotFoundError(f"the segment ids {path} do not exist") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as segment ids ({error}); give RGB PNGs of COCO's format") from None
    ids: Ids = pixels[..., 0] + (pixels[..., 1] << 8) + (pixels[..., 2] << 16)
    return ids


def id_image(ids: Array) -> Image.Image:
    """Return segment ids (H, W), 0..`MAX_ID`, as a picture: id = R + 256 G + 65536 B."""
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8))


def encode_segment_ids(ids: Array) -> bytes:
    """Return the PNG of (H, W) segment ids, 0..`MAX_ID`, as the content of a file."""
    buffer = BytesIO()
    id_image(ids).save(buffer, "PNG")
    return buffer.getvalue()


def describe_segments(ids: Array, categories: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return `segments_info` of the JSON file for an image: area and box (x, y, width, height) of each segment.

    Args:
        ids: (H, W) segment ids; 0 is no segment.
        categories: category id of each segment id that occurs.
    """
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        mask = ids == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1]
        area = int(np.count_nonzero(mask))
        segments.append({"id": number, "category_id": categories[number], "area": area, "bbox": box, "iscrowd": 0})
    return segments


def describe_categories(
    category_ids: Iterable[int], names: Sequence[str], things: Collection[str]
) -> list[dict[str, Any]]:
    """Return `categories` of the JSON file: an id per class, and which names are things."""
    return [
        {"id": number, "name": name, "isthing": int(name in things)}
        for number, name in zip(category_ids, names, strict=True)
    ]


def format_panoptic_file(
    annotations: Sequence[tuple[str, tuple[int, int], Sequence[Mapping[str, Any]]]],
    names: Sequence[str],
    things: Sequence[str],
) -> str:
    """Return the text of a JSON file whose category ids are class indices.

    Args:
        annotations: stem, (height, width) and `describe_segments` of each image; image files are ``<stem>.jpg``.
        names: C class names.
        things: those of them that are things.
    """
    images = [
        {"id": number, "file_name": f"{stem}.jpg", "height": height, "width": width}
        for number, (stem, (height, width), _) in enumerate(annotations, start=1)
    ]
    found = [
        {"image_id": number, "file_name": f"{stem}.png", "segments_info": [*segments]}
        for number, (stem, _, segments) in enumerate(annotations, start=1)
    ]
    categories = describe_categories(range(len(names)), names, things)
    return json.dumps({"images": images, "annotations": found, "categories": categories}, ensure_ascii=False) + "\n"


def pair_panoptic(
    image_dir: str | Path,
    label_dir: str | Path,
    file: str | Path,
    category_ids: Sequence[int],
    image_ext: str = "jpg",
    label_ext: str = "png",
    *,
    remedy: str = REMEDY,
) -> Pairing:
    """Pair the images, PNGs and annotations of a panoptic set by their relative path without the ending.

    Args:
        image_dir: folder of images.
        label_dir: folder of PNGs of segment ids.
        file: the JSON file.
        category_ids: category id of each of the C classes.
        image_ext: ending of the images, see `pair_files`.
        label_ext: ending of the PNGs.
        remedy: remedy for what is missing, for the message.

    Returns:
        pairs of ``file_name``, ``pan_seg_file_name`` and ``segments_info``; an image without a PNG or an annotation is
        one without a label, and an annotation without PNG and image is a label without an image.

    Raises:
        FileNotFoundError: a folder or the file is missing, or nothing matches.
        ValueError: the file is not of this format, has other categories, or a segment is malformed.
    """
    label_dir, file = Path(label_dir), Path(file)
    files = pair_files(image_dir, label_dir, image_ext, label_ext, remedy=remedy)
    segments = _segments_of(file, tuple(category_ids), remedy)
    pairs: list[Pair] = []
    unlisted, partners = [], set()
    for pair in files.pairs:
        label = pair["sem_seg_file_name"]
        stem = Path(label).relative_to(label_dir).as_posix().removesuffix(f".{label_ext}")
        found = segments.get(stem)
        if found is None:
            unlisted.append(pair["file_name"])
        else:
            partners.add(stem)
            pairs.append({"file_name": pair["file_name"], "pan_seg_file_name": label, "segments_info": found})
    if not pairs:
        raise FileNotFoundError(f"no image in {image_dir} is in {file}; {remedy}")
    unpaired = {*files.images_without_label, *unlisted}
    partners |= {Path(each).relative_to(image_dir).as_posix().removesuffix(f".{image_ext}") for each in unpaired}
    missing = {str(label_dir / f"{stem}.{label_ext}") for stem in segments.keys() - partners}
    return Pairing(
        pairs=tuple(pairs),
        images_without_label=tuple(sorted(unpaired)),
        labels_without_image=tuple(sorted({*files.labels_without_image, *missing})),
        duplicates=files.duplicates,
        skipped=files.skipped,
    )


def _segments_of(file: Path, category_ids: tuple[int, ...], remedy: str) -> Mapping[str, list[Segment]]:
    """Return the segments of each image by the path of its PNG without the ending; a file is parsed once."""
    try:
        state = file.stat()
    except OSError:
        raise FileNotFoundError(f"{file} does not exist; {remedy}") from None
    return _parsed(file, category_ids, remedy, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _parsed(file: Path, category_ids: tuple[int, ...], remedy: str, *_: int) -> Mapping[str, list[Segment]]:
    """Parse a file in a given state, and check its categories and segments."""
    content = read_panoptic_file(file, remedy=remedy)
    if content.names.keys() != {*category_ids}:
        wrong = sorted(content.names.keys() ^ {*category_ids})
        raise ValueError(
            f"{file} has the category ids {listed(sorted(content.names), 3)}, and not those of the {len(category_ids)} "
            f"classes, {listed(category_ids, 3)}: {listed(wrong, 3)} are in one of them only; use the published file"
        )
    indices = {number: index for index, number in enumerate(category_ids)}
    parse = partial(_segments, indices=indices, file=file)
    return {stem: parse(each["segments_info"], png=each["file_name"]) for stem, each in content.annotations.items()}


def _segments(infos: Sequence[Any], indices: Mapping[int, int], file: Path, png: str) -> list[Segment]:
    """Return the segments of an image with class indices; raise if one is malformed."""
    found: dict[int, Segment] = {}
    for each in infos:
        try:
            number, category, crowd = each["id"], indices[each["category_id"]], each.get("iscrowd", 0)
            wrong = type(number) is not int or not 0 < number <= MAX_ID or crowd not in (0, 1) or number in found
        except (KeyError, TypeError, AttributeError):
            wrong = True
        if wrong:
            keys = ("id", "category_id", "iscrowd")
            seen = {key: each[key] for key in keys if key in each} if isinstance(each, Mapping) else each
            raise ValueError(
                f"{file} has the segment {excerpt(seen)} in {png}, which needs an id of its own in 1..{MAX_ID}, a "
                "category_id of the file's categories, and iscrowd 0 or 1; correct it"
            )
        found[number] = {"id": number, "category": category, "iscrowd": int(crowd)}
    return [*found.values()]


def unlisted_ids(ids: Ids, segments: Sequence[Segment]) -> tuple[Ids, npt.NDArray[np.intp]]:
    """Return the ids of a PNG that its annotation does not list, ascending, and the pixels of each."""
    known, places = _places(ids, segments)
    return np.unique(ids[known[places] != ids], return_counts=True)


def class_map(ids: Ids, segments: Sequence[Segment], ignore_label: int, source: str) -> npt.NDArray[np.int32]:
    """Return the class at each pixel; pixels of no segment are ignored, crowds have their class.

    Args:
        ids: (H, W) segment ids.
        segments: of the image's record.
        ignore_label: value of pixels without a class.
        source: the PNG, for the message.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: an id is not listed.
    """
    return _mapped(ids, segments, [each["category"] for each in segments], ignore_label, source)


def read_class_map(record: Mapping[str, Any], ignore_label: int) -> npt.NDArray[np.int32]:
    """Read the class at each pixel of a record of a panoptic set, see `class_map`."""
    file = record["pan_seg_file_name"]
    return class_map(read_segment_ids(file), record["segments_info"], ignore_label, file)


def target_map(
    ids: Ids, segments: Sequence[Segment], things: frozenset[int], ignore_label: int, source: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the masks to train on as one map: each instance of a thing is a mask, and each class of stuff.

    Args:
        ids: (H, W) segment ids.
        segments: of the image's record; crowds are ignored.
        things: class indices of things.
        ignore_label: value of pixels without a mask.
        source: the PNG, for the message.

    Returns:
        The map (H, W) int32, and the class of each of its values (V,), −1 where a value is not used.

    Raises:
        ValueError: an id is not listed.
    """
    numbers: dict[tuple[int, int], int] = {}  # (class, instance; 0 for stuff) -> value
    values = []
    for each in segments:
        category = each["category"]
        if each["iscrowd"]:
            values.append(ignore_label)
            continue
        value = numbers.setdefault((category, each["id"] if category in things else 0), len(numbers))
        values.append(value + (0 <= ignore_label <= value))  # skips the ignore label
    classes = np.full(len(numbers) + 1, -1, np.int64)
    for (category, _), value in numbers.items():
        classes[value + (0 <= ignore_label <= value)] = category
    return _mapped(ids, segments, values, ignore_label, source), classes


def _mapped(
    ids: Ids, segments: Sequence[Segment], values: Sequence[int], ignore_label: int, source: str
) -> npt.NDArray[np.int32]:
    """Return the value of the segment at each pixel, (H, W) int32."""
    known, places = _places(ids, segments)
    wrong = known[places] != ids
    if wrong.any():
        raise ValueError(
            f"the segment ids {source} hold {listed(np.unique(ids[wrong]).tolist(), 3)}, which the annotation of the "
            "image does not list; use PNGs and JSON file of one release"
        )
    table = dict(zip([each["id"] for each in segments], values, strict=True))
    lookup = np.array([table.get(int(number), ignore_label) for number in known], np.int32)
    found: npt.NDArray[np.int32] = lookup[places]
    return found


def _places(ids: Ids, segments: Sequence[Segment]) -> tuple[Ids, npt.NDArray[np.intp]]:
    """Return 0 and the listed ids, sorted (S + 1,), and the place of each pixel among them (H, W)."""
    known = np.array(sorted({0, *(each["id"] for each in segments)}), np.int64)
    return known, np.minimum(np.searchsorted(known, ids), len(known) - 1)
