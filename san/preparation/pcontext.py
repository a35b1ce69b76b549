"""PASCAL Context with 59 classes: RLE masks of trainval_merged.json, painted in order, and images of VOC 2010."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from san.data.benchmarks import BENCHMARKS
from san.io.errors import require_extra
from san.preparation.encoding import Array, class_table, fit_to_image, write_labels
from san.preparation.pascal_detail import Mask, find_detail, image_files, image_folder, read_detail
from san.preparation.plan import MakeLabel, Preparation, SplitPlan, plan_pairs
from san.preparation.sources import PreparationOptions

REGISTERED = {"train": "pcontext_sem_seg_train", "val": "pcontext_sem_seg_val"}


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for PC-59.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: trainval_merged.json or the archive is damaged or not the published one.
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
        benchmark, problems = BENCHMARKS[REGISTERED[split]], result_of.problems
        plans.append(plan_pairs(benchmark, options, pairs, label_bytes=lambda stem: 5000, problems=problems))
    return plans


def write_masks(masks: tuple[Mask, ...], image: Path, detail: Path, path: Path) -> None:
    """Paint an image's masks and write the class indices; pixels without one of the 59 classes get the ignore label.

    Raises:
        FileNotFoundError: the image does not exist.
        ValueError: a mask is damaged, or has another size than the image.
    """
    source = detail / image.stem  # for messages only: no such file exists
    if not masks:
        raise ValueError(f"{detail} contains no mask of image {image.stem}; download it again")
    values = np.zeros(tuple(masks[0][1]["size"]), np.uint16)
    for category, segmentation in masks:
        values[_decode(segmentation, values.shape, source)] = category
    write_labels(path, fit_to_image(class_table("pascal_context_59")[values], image, source))


def _decode(segmentation: dict[str, Any], shape: tuple[int, ...], source: Path) -> Array:
    """Decode one mask to (H, W) bool; the RLE is a string or a list of run lengths."""
    from pycocotools import mask as coco_rle

    size, counts = list(segmentation["size"]), segmentation["counts"]
    try:
        if tuple(size) != shape:
            raise ValueError(f"its size is {size} but other masks of the image have {list(shape)}")
        if isinstance(counts, list):
            if sum(counts) != shape[0] * shape[1]:
                raise ValueError(f"its runs cover {sum(counts)} pixels but must cover {shape[0] * shape[1]}")
            segmentation = coco_rle.frPyObjects(segmentation, *shape)
        mask = coco_rle.decode(segmentation)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a mask of {source} is damaged ({error}); download {source.parent.name} again") from error
    return np.asarray(mask, dtype=bool)


PCONTEXT = Preparation("PASCAL Context, 59 classes", REGISTERED, plan)
