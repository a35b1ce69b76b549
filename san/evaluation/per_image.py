"""Predictions of an evaluation read back image by image, and the score of one image.  C classes, (H, W) image."""

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

from san.files import check_file_size

Array = npt.NDArray[Any]
Entry = dict[str, Any]

_MAX_BYTES = 2_000_000_000  # of a file of masks; those of 5,000 images have some 100 MB
RLE_FILE, LABEL_FOLDER = "sem_seg_predictions.json", "label_maps"
"""What an evaluation writes its predictions to."""

ORACLE_PAGE = "oracle.html"
"""Its error analysis, beside them."""

_MAX_SHIFT = 40  # no run length of a segmentation has more bits
_MAX_CATEGORY = 65535
_OTHER_SET = "give the predictions of this data set"
_AGAIN = "write the predictions again"


@dataclass(frozen=True)
class ClassScore:
    """One class in one image, in judged pixels.

    Attributes:
        index: of the class.
        correct, labelled, predicted: numbers of pixels.
        taken_for: class that most of its missed pixels are taken for; None where none is missed, −1 for no class.
    """

    index: int
    correct: int
    labelled: int
    predicted: int
    taken_for: int | None = None

    @property
    def iou(self) -> float | None:
        """Intersection over union, 0..1; None for a class that is not in the truth."""
        return self.correct / (self.labelled + self.predicted - self.correct) if self.labelled else None


@dataclass(frozen=True)
class ImageScore:
    """How well one image was segmented.

    Attributes:
        classes: those with a judged pixel in truth or prediction, worst IoU first, those not in the truth last.
        judged: number of pixels with a class in the truth.
    """

    classes: tuple[ClassScore, ...]
    judged: int

    @property
    def miou(self) -> float | None:
        """Mean IoU of the classes in the truth, 0..1; None where no pixel is judged."""
        ious = [each.iou for each in self.classes if each.iou is not None]
        return sum(ious) / len(ious) if ious else None

    @property
    def accuracy(self) -> float | None:
        """Share of the judged pixels that are right; None where there is none."""
        return sum(each.correct for each in self.classes) / self.judged if self.judged else None


def score_image(prediction: Array, truth: Array, num_classes: int) -> ImageScore:
    """Counts one image.

    Args:
        prediction: (H, W) integers; a value that is no class counts as wrong.
        truth: (H, W) integers; pixels whose value is no class are not judged.
        num_classes: C.

    Raises:
        ValueError: the sizes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction is {prediction.shape} but the label map {truth.shape}; {_OTHER_SET}")
    judged = (truth >= 0) & (truth < num_classes)
    labels, predicted = truth[judged].astype(np.int64), prediction[judged].astype(np.int64)
    predicted[(predicted < 0) | (predicted >= num_classes)] = num_classes  # no class
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
    """The predictions of an evaluation, found by image.

    Args:
        source: ``sem_seg_predictions.json``, a folder of label maps, or a folder that holds one of these.

    Attributes:
        path: the file or folder the predictions are read from.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder holds no prediction.
        ValueError: the file is not a list of predictions.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = _find(Path(source))
        self._by_name: dict[str, dict[str, list[Entry]]] | None = None
        if self.path.is_file():
            self._by_name = _read_entries(self.path)

    def of(self, image_file: str, image_root: str | None, stem: str) -> list[Entry] | Path:
        """What there is of one image: its run-length entries, or the file of its label map.

        Args:
            image_file: the image, as the data set's record names it.
            image_root: folder of the data set's images: the path below it is compared where the data set has moved.
            stem: of its label map, one of `distinct_stems`, after which an evaluation names the prediction.

        Raises:
            FileNotFoundError: there is none.
            ValueError: there are several.
        """
        if self._by_name is None:
            path = self.path / f"{stem}.png"
            if not path.is_file():
                raise FileNotFoundError(f"no prediction {path}")
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
    """What to call the results of a data set's files, so that none overwrites another's.

    Their paths below the root without the ending; where two of these would be one file, also on systems that ignore
    case, the later one gets ``_`` appended.

    Args:
        files: image or label files, all of the data set in its order.
        root: folder of them; see `common_folder` where there is none.
    """
    used: set[str] = set()
    stems = []
    for file in files:
        path = below(file, root)
        if ".." in path.parts:  # would lead out of the folder that is written to
            path = Path(path.name)
        stem = path.with_suffix("").as_posix()
        while (key := unicodedata.normalize("NFC", stem).casefold()) in used:
            stem += "_"
        used.add(key)
        stems.append(stem)
    return stems


def common_folder(files: Iterable[str]) -> str | None:
    """The innermost folder that holds all of some files, as they are named; None where there is none."""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files]) or None
    except ValueError:  # on several drives, or some absolute and some not
        return None


def below(path: str, root: str | None) -> Path:
    """A path relative to a root; its last part where it does not lie below it."""
    full = Path(path)
    return full.relative_to(root) if root is not None and full.is_relative_to(root) else Path(full.name)


def decode_entries(
    entries: Sequence[Entry], size: tuple[int, int], category_ids: Mapping[int, int] | None = None
) -> npt.NDArray[np.int32]:
    """A label map from its run-length entries, as `rle_entries` makes them.

    Args:
        entries: of one image.
        size: (H, W) that they must have.
        category_ids: class index by category id; None where the ids are class indices.

    Returns:
        (H, W) int32, −1 where no entry covers a pixel.

    Raises:
        ValueError: another size, an unknown category, or a damaged code.
    """
    labels = np.full(size[0] * size[1], -1, np.int32)
    for entry in entries:
        try:
            category, code = int(entry["category_id"]), entry["segmentation"]
            found, counts = tuple(code["size"]), code["counts"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a prediction is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
        if found != tuple(size):
            raise ValueError(f"the prediction is {found} but the label map {size}; {_OTHER_SET}")
        if not 0 <= category <= _MAX_CATEGORY or (category_ids is not None and category not in category_ids):
            raise ValueError(f"category_id {category} is none of the data set's; {_OTHER_SET}")
        runs = _run_lengths(counts)
        if any(run < 0 for run in runs) or sum(runs) > labels.size:
            raise ValueError(f"a prediction's run-length code is damaged; {_AGAIN}")
        ends = np.cumsum(runs)
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=False):
            labels[start:end] = category if category_ids is None else category_ids[category]
    return np.ascontiguousarray(labels.reshape(size, order="F"))


def _run_lengths(counts: object) -> list[int]:
    """The runs, in turn outside and inside, of COCO's compressed code (6 bits a letter) or of a plain list."""
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
        if not bits & 0x20:  # the last letter of this number, whose sign is its highest bit
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
                f"folder {source} holds neither {RLE_FILE} nor label maps; evaluate with TEST.SAVE_RLE True or "
                "TEST.SAVE_LABEL_MAPS True and give OUTPUT_DIR/inference/<data set>"
            )
        return source
    if not source.is_file():
        raise FileNotFoundError(f"predictions {source} do not exist; give {RLE_FILE} or a folder of label maps")
    return source


def _read_entries(path: Path) -> dict[str, dict[str, list[Entry]]]:
    """Entries by the image's last name, then by its whole name."""
    check_file_size(path, _MAX_BYTES)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); give the {RLE_FILE} of an evaluation") from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("file_name"), str) for entry in entries
    ):
        raise ValueError(f"{path} is no list of predictions with a file_name; give the {RLE_FILE} of an evaluation")
    by_name: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        by_name[Path(entry["file_name"]).name][entry["file_name"]].append(entry)
    return {name: dict(files) for name, files in by_name.items()}
