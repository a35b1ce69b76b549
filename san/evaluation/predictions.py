"""Predictions as files: label-map PNGs, and run-length JSON in the form of Detectron2's `sem_seg_predictions.json`.

Each entry of the JSON also has an `image_id`, so that pycocotools' `COCO.loadRes` takes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.files import write_text

_MAX_UINT8, _MAX_UINT16 = 255, 65535
_MAX_DIGITS = 18  # of an image id, to fit 64 bits


def write_label_map(path: str | Path, labels: npt.NDArray[Any]) -> None:
    """Write class indices as a grey PNG, 8 bits where they fit, else 16; folders are made.

    Args:
        path: file to write, ending in `.png`.
        labels: (H, W) integers, 0..65535.

    Raises:
        ValueError: a value does not fit 16 bits.
    """
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > _MAX_UINT16:
        raise ValueError(f"label map for {path} holds values {low}..{high} but a PNG holds 0..{_MAX_UINT16}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8 if high <= _MAX_UINT8 else np.uint16)).save(path)


def default_image_id(file_name: str) -> int | str:
    """COCO's id of an image: the file's name without folder and ending, a number where it is one.

    So it is in COCO 2017, where 000000000139.jpg is image 139. Without a file name it is 0.
    """
    stem = Path(file_name).stem
    is_number = stem.isascii() and stem.isdecimal() and len(stem) <= _MAX_DIGITS
    return int(stem) if is_number else stem or 0


def rle_entries(
    labels: npt.NDArray[Any],
    file_name: str,
    category_ids: Sequence[int] | None = None,
    image_id: int | str | None = None,
) -> list[dict[str, Any]]:
    """One entry per predicted class: image_id, file_name, category_id, segmentation (COCO's compressed run lengths).

    Args:
        labels: (H, W) integers, class indices.
        file_name: the input image.
        category_ids: dataset id of each class (COCO-Stuff's); class indices by default.
        image_id: of the image in a COCO data set; see `default_image_id`.
    """
    from pycocotools import mask as coco_mask

    if image_id is None:
        image_id = default_image_id(file_name)
    entries = []
    for label in np.unique(labels).tolist():
        code = coco_mask.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        segmentation = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
        category_id = label if category_ids is None else category_ids[label]
        entries.append(
            {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": category_id,
                "segmentation": segmentation,
            }
        )
    return entries


class RLEWriter:
    """Collects the entries of an evaluation and writes them as one JSON list.

    Attributes:
        entries: what was collected so far; add other workers' before `write`.
    """

    def __init__(self, category_ids: Sequence[int] | None = None) -> None:
        self.category_ids = category_ids
        self.entries: list[dict[str, Any]] = []

    def update(self, labels: npt.NDArray[Any], file_name: str, image_id: int | str | None = None) -> None:
        """Add one image's prediction; see `rle_entries`."""
        self.entries += rle_entries(labels, file_name, self.category_ids, image_id)

    def merge(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add another worker's `entries`."""
        self.entries += entries

    def write(self, path: str | Path) -> None:
        """Write all entries; folders are made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.entries))
