"""Maps a data set's record to a sample for the model, for training and evaluation.

A sample contains ``image`` (3, H, W) uint8 RGB, ``sem_seg`` (H, W) int32, ``file_name``, ``sem_seg_file_name``,
``height`` and ``width`` of the file, ``dataset_name`` and ``ignore_label``; in training also ``classes`` (M,) int64,
the class of each mask, and ``num_masks``, their number.

A mask is a class of the label map. In a training sample of a panoptic set, ``sem_seg`` numbers the masks, of which
several may be of one class, and ``mask_values`` (M,) int64 has the number of each. In evaluation, ``sem_seg`` is the
class map of such a set, and ``segments`` has its `Segments`; ``sem_seg_file_name`` is its PNG of segment ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from san.d2.data.batches import BatchSample
from san.d2.data.loaders import Record
from san.data.label_mapping import LabelMapping
from san.data.label_maps import read_truth
from san.data.pairing import is_panoptic, label_file
from san.data.panoptic import class_map, read_class_map, read_segment_ids, target_map
from san.data.transforms import TrainAugmentation, resize_image, resize_short_side
from san.evaluation.panoptic import Segments
from san.io.image_files import check_same_size, read_image


@dataclass(frozen=True)
class DatasetInfo:
    """The properties of a data set that a mapper needs.

    Attributes:
        name: registered name.
        num_classes: C.
        ignore_label: value of pixels without a class.
        label_mapping: pixel values of the files -> class indices; None if they are class indices.
        things: class indices of a panoptic set's things, each instance of which is a mask in training.
    """

    name: str
    num_classes: int
    ignore_label: int
    label_mapping: LabelMapping | None = None
    things: frozenset[int] = frozenset()


def read_labels(record: Record, info: DatasetInfo) -> np.ndarray:
    """Read the label map of a record, map its values if the data set has a mapping, and check them.

    Args:
        record: has ``sem_seg_file_name``, or the entries of a panoptic set.
        info: the data set.

    Returns:
        (H, W) int32, class indices and the ignore label.

    Raises:
        FileNotFoundError, ValueError: the file is missing, unreadable or has illegal values.
    """
    if is_panoptic(record):
        return read_class_map(record, info.ignore_label)
    return read_truth(record["sem_seg_file_name"], info.num_classes, info.ignore_label, info.label_mapping)


def read_targets(record: Record, info: DatasetInfo) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the masks of a record for training as one map.

    Returns:
        (H, W) int32, and the class of each of its values; None if they are class indices, in a semantic set.

    Raises:
        FileNotFoundError, ValueError: see `read_labels`.
    """
    if not is_panoptic(record):
        return read_labels(record, info), None
    file = record["pan_seg_file_name"]
    return target_map(read_segment_ids(file), record["segments_info"], info.things, info.ignore_label, file)


def read_segments(record: Record) -> Segments:
    """Read the segments of a record of a panoptic set.

    Raises:
        FileNotFoundError, ValueError: the PNG is missing or cannot be read.
    """
    infos = record["segments_info"]
    crowd = frozenset(each["id"] for each in infos if each["iscrowd"])
    ids = read_segment_ids(record["pan_seg_file_name"])
    return Segments(ids, {each["id"]: each["category"] for each in infos}, crowd)


def _sample(
    record: Record, info: DatasetInfo, image: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> BatchSample:
    """Build a sample from an image (H, W, 3), a label map (H', W') and the size of the file."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "sem_seg": torch.from_numpy(np.ascontiguousarray(labels)),
        "file_name": record["file_name"],
        "sem_seg_file_name": label_file(record),
        "height": size[0],
        "width": size[1],
        "dataset_name": info.name,
        "ignore_label": info.ignore_label,
    }


class TrainMapper:
    """Reads, checks and augments a training sample; image and label map have the crop's size.

    Args:
        info: the data set.
        augmentation: random augmentation; its only source of randomness is the generator passed with the record.
    """

    def __init__(self, info: DatasetInfo, augmentation: TrainAugmentation) -> None:
        self.info = info
        self.augmentation = augmentation

    def __call__(self, record: Record, rng: np.random.Generator) -> BatchSample:
        """Return the sample of a record.

        Raises:
            FileNotFoundError, ValueError: a file is missing, unreadable, of another size or has illegal values.
        """
        image, (labels, class_of) = read_image(record["file_name"]), read_targets(record, self.info)
        _check_sizes(record, image, labels)
        height, width = labels.shape
        image, labels = self.augmentation(image, labels, rng)
        present = torch.from_numpy(_present(labels, self.info).astype(np.int64))
        sample = _sample(record, self.info, image, labels, (height, width)) | {"num_masks": len(present)}
        if class_of is None:
            return sample | {"classes": present}
        return sample | {"classes": torch.from_numpy(class_of)[present], "mask_values": present}


class MapperPerSet:
    """Maps each training sample with the mapper of its data set.

    Args:
        mappers: mapper of each data set, by registered name (a record's ``dataset_name``).
    """

    def __init__(self, mappers: Mapping[str, TrainMapper]) -> None:
        self.mappers = mappers

    def __call__(self, record: Record, rng: np.random.Generator) -> BatchSample:
        """Return the sample of a record; raises like `TrainMapper`."""
        return self.mappers[record["dataset_name"]](record, rng)


def _present(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Return the values (M,) of a checked label map but the ignore label, sorted; without sorting its pixels."""
    lowest = min(info.ignore_label, 0)  # may be negative, which bincount cannot count
    seen = np.bincount((labels - lowest if lowest else labels).ravel(), minlength=info.ignore_label - lowest + 1)
    seen[info.ignore_label - lowest] = 0
    return np.flatnonzero(seen) + lowest


class EvalMapper:
    """Reads an image and resizes it; the label map keeps the file's size, at which results are evaluated.

    Args:
        info: the data set.
        short_side: short side of the resized image, in pixels; None keeps the image as it is.
        max_size: maximum of its long side, in pixels.
    """

    def __init__(self, info: DatasetInfo, short_side: int | None = 640, max_size: int = 2560) -> None:
        self.info = info
        self.short_side = short_side
        self.max_size = max_size

    def __call__(self, record: Record) -> BatchSample:
        """Return the sample of a record; raises like `TrainMapper`."""
        image, more = read_image(record["file_name"]), dict[str, Any]()
        if is_panoptic(record):
            segments = more["segments"] = read_segments(record)
            source = record["pan_seg_file_name"]
            labels = class_map(segments.ids, record["segments_info"], self.info.ignore_label, source)
        else:
            labels = read_labels(record, self.info)
        _check_sizes(record, image, labels)
        height, width = labels.shape
        if self.short_side is not None:
            image = resize_image(image, resize_short_side(height, width, self.short_side, self.max_size))
        return _sample(record, self.info, image, labels, (height, width)) | more


def _check_sizes(record: Record, image: np.ndarray, labels: np.ndarray) -> None:
    """Raise if an image (H, W, 3) and its labels (H, W) differ in size."""
    kind = "segment ids" if is_panoptic(record) else "label map"
    check_same_size(image, labels, f"image {record['file_name']}", f"{kind} {label_file(record)}")


def dataset_info(name: str, metadata: Any) -> DatasetInfo:
    """Return the `DatasetInfo` of a registered data set's metadata."""
    classes = metadata.stuff_classes
    things = frozenset(classes.index(each) for each in metadata.get("things", ()))
    return DatasetInfo(name, len(classes), metadata.ignore_label, metadata.get("label_mapping"), things)
