"""Writes predictions: label-map PNGs, and run-length JSON in the format of Detectron2's `sem_seg_predictions.json`.

Each JSON entry also has an `image_id`, so that pycocotools' `COCO.loadRes` accepts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.io.files import write_text

_MAX_UINT8, _MAX_UINT16 = 255, 65535
_MAX_DIGITS = 18  # so that an image id fits 64 bits


def write_label_map(path: str | Path, labels: npt.NDArray[Any]) -> None:
    """Write class indices as a greyscale PNG of 8 bits if they fit, else 16; missing folders are created.

    Args:
        path: file to write, ending in `.png`.
        labels: (H, W) integers, 0..65535.

    Raises:
        ValueError: a value does not fit 16 bits.
    """
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > _MAX_UINT16:
        raise ValueError(f"label map for {path} has values {low}..{high} but a PNG can store 0..{_MAX_UINT16}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8 if high <= _MAX_UINT8 else np.uint16)).save(path)


def default_image_id(file_name: str) -> int | str:
    """Return the COCO id of an image: its file name without folder and extension, as a number if possible.

    In COCO 2017, 000000000139.jpg is image 139. Without a file name the id is 0.
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
    """Return an entry per predicted class: image_id, file_name, category_id, segmentation (compressed COCO RLE).

    Args:
        labels: (H, W) integers, class indices.
        file_name: path of the input image.
        category_ids: dataset id of each class (as in COCO-Stuff); by default the class indices.
        image_id: id of the image in a COCO data set; see `default_image_id`.
    """
    if image_id is None:
        image_id = default_image_id(file_name)
    pixels = labels.ravel(order="F")  # COCO's runs go down the columns
    starts = np.flatnonzero(np.concatenate([[pixels.size > 0], pixels[1:] != pixels[:-1]]))
    ends = np.append(starts[1:], pixels.size)
    run_labels = pixels[starts]
    entries = []
    for label in np.unique(run_labels).tolist():
        own = run_labels == label
        segmentation = {"size": [*labels.shape], "counts": _compressed(starts[own], ends[own], pixels.size)}
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


def _compressed(starts: npt.NDArray[Any], ends: npt.NDArray[Any], size: int) -> str:
    """Return COCO's compressed run lengths of a mask, identical to those of pycocotools.

    The lengths alternate between outside and inside, starting outside. From the fourth on, each is written as the
    difference from the one two before it: 5 bits per letter, the lowest first; the sixth bit is set if more follow.

    Args:
        starts: (N,) ascending, the first pixel of each run inside.
        ends: (N,) the pixel after the last one of each run.
        size: number of pixels.
    """
    edges = np.stack([starts, ends], axis=1).ravel()  # (2N,)
    runs = np.diff(edges, prepend=0, append=size)  # (2N + 1,)
    runs = runs[: runs.size - (runs[-1] == 0)]
    values = np.concatenate([runs[:3], runs[3:] - runs[1:-2]])
    letters = []
    unfinished = np.ones(len(values), bool)
    while unfinished.any():
        bits, values = values & 0x1F, values >> 5
        more = unfinished & (values != np.where(bits & 0x10, -1, 0))  # the highest bit of the last letter is the sign
        letters.append(np.where(unfinished, (bits | more * 0x20) + ord("0"), 0))
        unfinished = more
    code = np.stack(letters, axis=1).astype(np.uint8)  # one row per length, 0 where it has ended
    return code[code > 0].tobytes().decode("ascii")


class RLEWriter:
    """Collects the entries of an evaluation and writes them as one JSON list.

    Attributes:
        entries: the entries collected so far; merge those of other workers before `write`.
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
        """Write all entries; missing folders are created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.entries))
