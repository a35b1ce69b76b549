"""Reads the predictions of an evaluation per image, and scores one image.  C classes, (H, W) image."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.io.files import check_file_size

Array = npt.NDArray[Any]
Entry = dict[str, Any]

_MAX_BYTES = 2_000_000_000  # size limit of a file of masks; 5,000 images take about 100 MB
RLE_FILE, LABEL_FOLDER = "sem_seg_predictions.json", "label_maps"
"""File name of an evaluation's predictions."""

ORACLE_PAGE = "oracle.html"
"""Its error analysis, beside them."""

_MAX_SHIFT = 40  # no run length of a segmentation has more bits
_MAX_CATEGORY = 65535
_OTHER_SET = "use the predictions of this data set"
_AGAIN = "write the predictions again"


@dataclass(frozen=True)
class ClassScore:
    """Score of one class in one image, over the labelled pixels.

    Attributes:
        index: class index.
        correct, labelled, predicted: numbers of pixels.
        taken_for: class predicted for most of its missed pixels; −1 for no class, None if no pixel is missed.
    """

    index: int
    correct: int
    labelled: int
    predicted: int
    taken_for: int | None = None

    @property
    def iou(self) -> float | None:
        """Intersection over union, 0..1; None for a class that is not in the ground truth."""
        return self.correct / (self.labelled + self.predicted - self.correct) if self.labelled else None


@dataclass(frozen=True)
class ImageScore:
    """Score of one image.

    Attributes:
        classes: classes with a labelled pixel in truth or prediction, worst IoU first; classes not in the truth last.
        judged: number of labelled pixels, those with a class in the truth.
    """

    classes: tuple[ClassScore, ...]
    judged: int

    @property
    def miou(self) -> float | None:
        """Mean IoU of the classes in the truth, 0..1; None if no pixel is labelled."""
        ious = [each.iou for each in self.classes if each.iou is not None]
        return sum(ious) / len(ious) if ious else None

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled pixels that are correct, 0..1; None if no pixel is labelled."""
        return sum(each.correct for each in self.classes) / self.judged if self.judged else None


def score_image(prediction: Array, truth: Array, num_classes: int) -> ImageScore:
    """Score one image.

    Args:
        prediction: (H, W) integers; a value that is not a class counts as wrong.
        truth: (H, W) integers; pixels with a value that is not a class are ignored.
        num_classes: C.

    Raises:
        ValueError: the sizes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction is {prediction.shape} but the label map is {truth.shape}; {_OTHER_SET}")
    judged = (truth >= 0) & (truth < num_classes)
    labels, predicted = truth[judged].astype(np.int64), prediction[judged].astype(np.int64)
    predicted[(predicted < 0) | (predicted >= num_classes)] = num_classes  # not a class
    num_labelled = np.bincount(labels, minlength=num_classes)
    num_predicted = np.bincount(predicted, minlength=num_classes)[:num_classes]
    num_correct = np.bincount(labels[labels == predicted], minlength=num_classes)
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * (num_classes + 1) + predicted[wrong], return_counts=True)
    mistakes: dict[int, tuple[int, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        label, other = divmod(pair, num_classes + 1)
        mistakes[label] = max(mistakes.get(label, (0, 0)), (count, other))
    classes = []
    for index in np.flatnonzero(num_labelled + num_predicted).tolist():
        other = mistakes[index][1] if index in mistakes else None
        taken_for = -1 if other == num_classes else other
        correct, labelled, found = (int(values[index]) for values in (num_correct, num_labelled, num_predicted))
        classes.append(ClassScore(index, correct, labelled, found, taken_for))
    classes.sort(key=lambda each: (each.iou is None, each.iou, each.index))
    return ImageScore(tuple(classes), int(judged.sum()))


class Predictions:
    """The predictions of an evaluation, looked up by image.

    Args:
        source: ``sem_seg_predictions.json``, a folder of label maps, or a folder that contains either.

    Attributes:
        path: the file or folder the predictions are read from.

    Raises:
        FileNotFoundError: the file or folder does not exist, or the folder contains no prediction.
        ValueError: the file is not a list of predictions.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = _find(Path(source))
        self._by_name: dict[str, dict[str, list[Entry]]] | None = None
        if self.path.is_file():
            self._by_name = _read_entries(self.path)

    def of(self, image_file: str, image_root: str | None, stem: str) -> list[Entry] | Path:
        """Return the prediction of one image: its run-length entries, or the file of its label map.

        Args:
            image_file: the image's path in the data set's record.
            image_root: folder of the data set's images; if the data set was moved, the paths below it are compared.
            stem: stem of the predicted label map, one of `distinct_stems`.

        Raises:
            FileNotFoundError: the image has no prediction.
            ValueError: several predictions match.
        """
        if self._by_name is None:
            path = self.path / f"{stem}.png"
            if not path.is_file():
                raise FileNotFoundError(f"prediction {path} does not exist")
            return path
        candidates = self._by_name.get(Path(image_file).name, {})
        if image_file in candidates:
            return candidates[image_file]
        tail = below(image_file, image_root).parts
        found = [name for name in candidates if Path(name).parts[-len(tail) :] == tail]
        if not found:
            raise FileNotFoundError(f"no prediction for {image_file} in {self.path}")
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} predictions in {self.path} could be of {image_file}: {', '.join(found[:3])}"
            )
        return candidates[found[0]]


def distinct_stems(files: Sequence[str], root: str | None) -> list[str]:
    """Return distinct stems for the results of a data set's files, so that none overwrites another.

    A stem is the path below the root without extension. If two stems are equal, ignoring case (as some file systems
    do), ``_`` is appended to the later one.

    Args:
        files: all image or label files of the data set, in its order.
        root: their folder; see `common_folder` if the data set has none.
    """
    used: set[str] = set()
    stems = []
    for file in files:
        path = below(file, root)
        if ".." in path.parts:  # would lead out of the output folder
            path = Path(path.name)
        stem = path.with_suffix("").as_posix()
        while (key := unicodedata.normalize("NFC", stem).casefold()) in used:
            stem += "_"
        used.add(key)
        stems.append(stem)
    return stems


def common_folder(files: Iterable[str]) -> str | None:
    """Return the innermost folder that contains all files, judged by their paths; None if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files]) or None
    except ValueError:  # several drives, or absolute and relative paths
        return None


def below(path: str, root: str | None) -> Path:
    """Return a path relative to a root, or its last part if it is not below the root."""
    full = Path(path)
    return full.relative_to(root) if root is not None and full.is_relative_to(root) else Path(full.name)


def decode_entries(
    entries: Sequence[Entry], size: tuple[int, int], category_ids: Mapping[int, int] | None = None
) -> npt.NDArray[np.int32]:
    """Decode a label map from the run-length entries of `rle_entries`.

    Args:
        entries: entries of one image.
        size: required (H, W).
        category_ids: category id -> class index; None if the ids are class indices.

    Returns:
        (H, W) int32, −1 where no entry covers a pixel.

    Raises:
        ValueError: the size differs, a category is unknown, or a run-length code is damaged.
    """
    labels = np.full(size[0] * size[1], -1, np.int32)
    for entry in entries:
        try:
            category, code = int(entry["category_id"]), entry["segmentation"]
            found, counts = tuple(code["size"]), code["counts"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a prediction is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
        if found != tuple(size):
            raise ValueError(f"the prediction is {found} but the label map is {size}; {_OTHER_SET}")
        if not 0 <= category <= _MAX_CATEGORY or (category_ids is not None and category not in category_ids):
            raise ValueError(f"category_id {category} is not in the data set; {_OTHER_SET}")
        runs = _run_lengths(counts)
        if any(run < 0 for run in runs) or sum(runs) > labels.size:
            raise ValueError(f"a prediction's run-length code is damaged; {_AGAIN}")
        ends = np.cumsum(runs)
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=False):
            labels[start:end] = category if category_ids is None else category_ids[category]
    return np.ascontiguousarray(labels.reshape(size, order="F"))


def _run_lengths(counts: object) -> list[int]:
    """Return run lengths, alternately outside and inside, of COCO's compressed code (6 bits per letter) or a list."""
    if isinstance(counts, list) and all(isinstance(each, int) for each in counts):
        return counts
    if not isinstance(counts, str) or not all(48 <= ord(letter) < 112 for letter in counts):
        raise ValueError(f"a prediction's run-length code is damaged; {_AGAIN}")
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:  # last letter of this number; bit 4 is the sign
            value -= (1 << shift) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
        elif shift > _MAX_SHIFT:
            break
    if shift:
        raise ValueError(f"a prediction's run-length code is damaged; {_AGAIN}")
    return runs


def _find(source: Path) -> Path:
    if source.is_dir():
        for inner in (source / RLE_FILE, source / LABEL_FOLDER):
            if inner.is_file() or inner.is_dir():
                return inner
        if next(source.rglob("*.png"), None) is None:
            raise FileNotFoundError(
                f"folder {source} contains neither {RLE_FILE} nor label maps; evaluate with TEST.SAVE_RLE True or "
                "TEST.SAVE_LABEL_MAPS True and pass OUTPUT_DIR/inference/<data set>"
            )
        return source
    if not source.is_file():
        raise FileNotFoundError(f"predictions {source} do not exist; pass {RLE_FILE} or a folder of label maps")
    return source


def _read_entries(path: Path) -> dict[str, dict[str, list[Entry]]]:
    """Read the entries by the image's file name, then by its full path."""
    check_file_size(path, _MAX_BYTES)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); pass the {RLE_FILE} of an evaluation") from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("file_name"), str) for entry in entries
    ):
        raise ValueError(f"{path} is not a list of predictions with a file_name; pass the {RLE_FILE} of an evaluation")
    by_name: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        by_name[Path(entry["file_name"]).name][entry["file_name"]].append(entry)
    return {name: dict(files) for name, files in by_name.items()}
