"""PASCAL Context with 59 classes: RLE masks of trainval_merged.json painted one over the other, VOC 2010's images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from san.data.benchmarks import BENCHMARKS
from san.data.preparation.encoding import Array, class_table, fit_to_image, write_labels
from san.data.preparation.pascal_detail import Mask, find_detail, image_files, image_folder, read_detail
from san.data.preparation.plan import MakeLabel, Preparation, SplitPlan, plan_pairs
from san.data.preparation.sources import Options
from san.errors import require_extra

REGISTERED = {"train": "pcontext_sem_seg_train", "val": "pcontext_sem_seg_val"}


def plan(options: Options) -> list[SplitPlan]:
    """Jobs for PC-59.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: trainval_merged.json or the archive is damaged or not the one named so.
        MissingExtraError: pycocotools is not installed.
    """
    require_extra("train", "preparing pcontext", "pycocotools")
    detail = find_detail(options)
    images = read_detail(detail, with_masks=True)
    folder, plans = image_folder(options), []
    for split in options.splits:
        result_of = image_files(images, split, folder)
        pairs: dict[str, tuple[Path, MakeLabel]] = {
            image.stem: (file, partial(write_masks, tuple(image.masks), file, detail))
            for image, file in result_of.found
        }
        plans.append(plan_pairs(BENCHMARKS[REGISTERED[split]], options, pairs, label_bytes=lambda stem: 5000))
        plans[-1].problems += result_of.problems
    return plans


def write_masks(masks: tuple[Mask, ...], image: Path, detail: Path, path: Path) -> None:
    """Paint an image's masks and write the class indices; pixels without one of the 59 classes are ignored.

    Raises:
        FileNotFoundError: the image does not exist.
        ValueError: a mask is damaged, or not of the image's size.
    """
    source = detail / image.stem  # a name for messages: there is no file for each image
    if not masks:
        raise ValueError(f"{detail} holds no mask of image {image.stem}; download it again")
    values = np.zeros(tuple(masks[0][1]["size"]), np.uint16)
    for category, segmentation in masks:
        values[_decode(segmentation, values.shape, source)] = category
    write_labels(path, fit_to_image(class_table("pascal_context_59")[values], image, source))


def _decode(segmentation: dict[str, Any], shape: tuple[int, ...], source: Path) -> Array:
    """One mask, (H, W) bool; both forms of RLE occur, a string and a list of run lengths."""
    from pycocotools import mask as coco_rle

    size, counts = list(segmentation["size"]), segmentation["counts"]
    try:
        if tuple(size) != shape:
            raise ValueError(f"its size is {size}, other masks of the image have {list(shape)}")
        if isinstance(counts, list):
            if sum(counts) != shape[0] * shape[1]:
                raise ValueError(f"its runs make {sum(counts)} pixels of {shape[0] * shape[1]}")
            segmentation = coco_rle.frPyObjects(segmentation, *shape)
        mask = coco_rle.decode(segmentation)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a mask of {source} is damaged ({error}); download {source.parent.name} again") from error
    return np.asarray(mask, dtype=bool)


PCONTEXT = Preparation("PASCAL Context, 59 classes", REGISTERED, plan)
