"""Reads trainval_merged.json (PASCAL in Detail): the splits of both PASCAL Context sets, and masks of 59 classes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from san.io.errors import listed
from san.preparation.sources import DownloadPart, PreparationOptions, files_by_stem, find_part, need_file
from san.vocabulary.label_sets import load_label_set

JSON_NAME = "trainval_merged.json"
IMAGES = DownloadPart(
    "VOC 2010 images", ("VOC2010", "VOCdevkit/VOC2010", "."), "JPEGImages", ("VOCtrainval_03-May-2010.tar",),
    "VOC2010", r"(?:.*/)?VOC2010/(JPEGImages/[^/]+\.jpg)",
    "VOCtrainval_03-May-2010.tar from the PASCAL VOC 2010 page",
)  # fmt: skip

Mask = tuple[int, dict[str, Any]]
"""Category id and COCO RLE ("size", "counts")."""


@dataclass
class DetailImage:
    """One image of the file.

    Attributes:
        stem: file name without extension.
        phase: "train", "val" or "test".
        masks: masks in the file's order, which is the painting order; empty if not requested.
    """

    stem: str
    phase: str
    masks: list[Mask] = field(default_factory=list)


def find_detail(options: PreparationOptions) -> Path:
    """Return the path of trainval_merged.json.

    Raises:
        FileNotFoundError: the file is not found.
    """
    places = ("", "VOC2010/", "VOCdevkit/VOC2010/", "pcontext/", "trainval/")
    names = tuple(f"{place}{JSON_NAME}" for place in places)
    return need_file(JSON_NAME, names, options, f"{JSON_NAME} of PASCAL in Detail, which contains the splits")


@dataclass
class ImageFiles:
    """Return the images of a split with an existing file, and a problem line about the others."""

    found: list[tuple[DetailImage, Path]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def image_folder(options: PreparationOptions) -> Path:
    """Return the folder of VOC 2010's images, after unpacking their archive if one is found.

    Raises:
        FileNotFoundError: VOC 2010 is missing.
        ValueError: its archive is damaged or refused.
    """
    return find_part(IMAGES, options) / "JPEGImages"


def image_files(images: list[DetailImage], split: str, folder: Path) -> ImageFiles:
    """Return the images of one split with their files in the folder.

    Raises:
        FileNotFoundError: the folder contains no image.
    """
    there = files_by_stem(folder, ".jpg")
    wanted = [image for image in images if image.phase == split]
    missing = [image.stem for image in wanted if image.stem not in there]
    result = ImageFiles([(image, there[image.stem]) for image in wanted if image.stem in there])
    if missing:
        result.problems.append(
            f"{len(missing)} images of the {split} split are not in {folder}: {listed(missing)}; use the images of VOC "
            "2010, not 2012, and unpack all of them"
        )
    return result


def read_detail(path: Path, *, with_masks: bool) -> list[DetailImage]:
    """Read the images and, if requested, their masks; everything else is dropped while reading.

    Raises:
        ValueError: the file is damaged, lacks a needed entry, or numbers the categories differently.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_keep_masks if with_masks else _keep_no_masks)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); download it again") from error
    needed = {"images", "annos_segmentation", "categories"} if with_masks else {"images"}
    missing = needed - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; it is not PASCAL in Detail's {JSON_NAME}")
    images: dict[int, DetailImage] = {}
    for record in content["images"]:
        number, image = _image(record, path)
        images[number] = image
    if with_masks:
        _check_categories(content["categories"], path)
        _add_masks(images, content["annos_segmentation"], path)
    return list(images.values())


def _keep_masks(record: dict[str, Any]) -> Any:
    """Reduce an annotation to its mask. Called for each JSON object, innermost first."""
    if "segmentation" in record and "image_id" in record:
        return record["image_id"], record.get("category_id"), record["segmentation"]
    needed = ("counts", "file_name", "images", "name")
    return record if any(key in record for key in needed) else None


def _keep_no_masks(record: dict[str, Any]) -> Any:
    return record if "file_name" in record or "images" in record else None


def _image(record: Any, path: Path) -> tuple[int, DetailImage]:
    try:
        name, number, phase = str(record["file_name"]), int(record["image_id"]), str(record["phase"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has an image without {error}; it is not PASCAL in Detail's {JSON_NAME}") from error
    match = re.fullmatch(r"(\d{4})_(\d{6})\.jpg", name)
    if not match or int(match[1] + match[2]) != number:
        raise ValueError(
            f"{path} has an image {name!r} with id {number}, but VOC 2010's images have names such as 2008_000002.jpg "
            f"and ids such as 2008000002; it is not PASCAL in Detail's {JSON_NAME}"
        )
    return number, DetailImage(name.removesuffix(".jpg"), phase)


def _check_categories(categories: list[Any], path: Path) -> None:
    """Check that the 59 ids belong to the 59 names: other ids would silently give wrong labels."""
    labels = load_label_set("pascal_context_59")
    names = {int(c["category_id"]): _plain(c["name"]) for c in categories if c and "category_id" in c}
    expected = {number: _plain(name) for number, name in zip(labels.raw_values, labels.classes, strict=True)}
    same = sum(names.get(number) == name for number, name in expected.items())
    if names and same < 0.75 * len(expected):  # the spelling of some differs ("table", "bedcloth")
        example = next(number for number, name in expected.items() if names.get(number) != name)
        raise ValueError(
            f"{path} names category {example} {names.get(example)!r} but it must be {expected[example]!r}: its ids "
            f"are not those of the 459-class list; use PASCAL in Detail's {JSON_NAME}"
        )


def _plain(name: str) -> str:
    return "".join(name.lower().split())


def _add_masks(images: dict[int, DetailImage], annotations: list[Any], path: Path) -> None:
    if not annotations:
        raise ValueError(f"{path} contains no mask (annos_segmentation is empty); use the complete {JSON_NAME}")
    highest = load_label_set("pascal_context_459").num_classes
    for annotation in annotations:
        try:
            number, category, segmentation = annotation
            image, legal = images[number], 1 <= category <= highest
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} has a mask without image or category ({error}); download it again") from error
        if not legal or not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
            raise ValueError(
                f"{path} has a mask of image {image.stem} with category {category} that is not an RLE of a category "
                f"1..{highest}; use PASCAL in Detail's {JSON_NAME}"
            )
        image.masks.append((category, segmentation))
