"""Scores and draws one image for `san visualize predictions`, in worker processes.

It does not import torch or Detectron2, so that workers start within a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.label_mapping import LabelMapping
from san.data.label_maps import read_truth
from san.data.panoptic import Segment, class_map, read_segment_ids
from san.evaluation.per_image import Entry, ImageScore, decode_entries, score_image
from san.io.errors import one_line
from san.io.files import write_whole
from san.io.image_files import check_same_size, read_image, read_label_map
from san.io.plain_file import read_plain_file
from san.record import read_record
from san.visualize.panel import Sample, panel, save_picture, thumbnails
from san.visualize.plots import drawing

Array = npt.NDArray[Any]

FORMAT = 2
"""Version of the written files; those of other versions are recomputed."""

_STAT_KEYS = ("st_size", "st_mtime_ns")


@dataclass(frozen=True)
class Task:
    """One image to score and to draw.

    Attributes:
        name: of the image, as shown: its path below the data set's image folder.
        stem: of the files written for it.
        image, label: its files.
        segments: `segments_info` of the record of a panoptic set, whose label is a PNG of segment ids; else None.
        prediction: its run-length entries, or the file of its label map; a text with the reason if there is none.
    """

    name: str
    stem: str
    image: str
    label: str
    prediction: list[Entry] | Path | str
    segments: Sequence[Segment] | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a task.

    Attributes:
        task: the task.
        score: None if it failed.
        thumb_size: width and height of the thumbnail, pixels; None without pictures.
        error: why it failed.
    """

    task: Task
    score: ImageScore | None = None
    thumb_size: tuple[int, int] | None = None
    error: str = ""


@dataclass(frozen=True)
class SavedScore:
    """Content of the file of a task's score.

    Attributes:
        key: identifies the source files.
        score: of the image.
        thumb_size: see `Outcome`.
    """

    key: str
    score: ImageScore
    thumb_size: tuple[int, int] | None


@dataclass(frozen=True)
class ImageWorker:
    """Scores images and draws their panels; existing valid results are reused.

    Attributes:
        out: folder to write into.
        names: the data set's C class names.
        ignore_label: value of pixels without a class.
        label_mapping: from pixel values to class indices; None if they are class indices.
        categories: class index by category id of the predictions; None if the ids are class indices.
        pictures: also draw.
    """

    out: Path
    names: tuple[str, ...]
    ignore_label: int
    label_mapping: LabelMapping | None
    categories: Mapping[int, int] | None
    pictures: bool = True

    def panel_path(self, task: Task) -> Path:
        """Path of the large picture."""
        return self.out / "panels" / f"{task.stem}.jpg"

    def thumb_path(self, task: Task) -> Path:
        """Path of the thumbnail."""
        return self.out / "thumbs" / f"{task.stem}.jpg"

    def score_path(self, task: Task) -> Path:
        """Path of the score, which is written last."""
        return self.out / "scores" / f"{task.stem}.json"

    def __call__(self, task: Task) -> Outcome:
        """Process one image; an error of its files is recorded in the outcome."""
        try:
            if isinstance(task.prediction, str):
                raise FileNotFoundError(task.prediction)
            key = self._key(task)
            return self._saved(task, key) or self._made(task, key)
        except (ValueError, OSError) as error:
            return Outcome(task, error=one_line(error))

    def _saved(self, task: Task, key: str) -> Outcome | None:
        """Return the result of an earlier run, if it has the same source files."""
        try:
            saved = read_record(SavedScore, read_plain_file(self.score_path(task), "score"))
        except (OSError, ValueError):
            return None  # missing or invalid: recompute it
        drawn = saved.thumb_size is not None and self.panel_path(task).is_file() and self.thumb_path(task).is_file()
        if saved.key != key or (self.pictures and not drawn):
            return None
        return Outcome(task, saved.score, saved.thumb_size if drawn else None)

    def _made(self, task: Task, key: str) -> Outcome:
        image, truth = read_image(task.image), self._truth(task)
        check_same_size(image, truth, f"image {task.image}", f"label map {task.label}")
        if isinstance(task.prediction, Path):
            prediction = read_label_map(task.prediction)
        else:
            assert not isinstance(task.prediction, str)
            prediction = decode_entries(task.prediction, (truth.shape[0], truth.shape[1]), self.categories)
        score = score_image(prediction, truth, len(self.names))
        size = None
        if self.pictures:
            with drawing(self.panel_path(task)):
                thumb = thumbnails(Sample(image, prediction, truth), self.names)
                save_picture(panel(image, truth, prediction, self.names), self.panel_path(task))
                save_picture(thumb, self.thumb_path(task))
                size = thumb.size
        write_whole(self.score_path(task), json.dumps(asdict(SavedScore(key, score, size))))
        return Outcome(task, score, size)

    def _truth(self, task: Task) -> Array:
        """Read the label map, mapped and checked as in an evaluation."""
        if task.segments is not None:
            return class_map(read_segment_ids(task.label), task.segments, self.ignore_label, task.label)
        return read_truth(task.label, len(self.names), self.ignore_label, self.label_mapping)

    def _key(self, task: Task) -> str:
        """Return a key of everything that the result depends on."""
        files = [task.image, task.label, *([str(task.prediction)] if isinstance(task.prediction, Path) else [])]
        stats = [[getattr(Path(file).stat(), key) for key in _STAT_KEYS] for file in files]
        entries = None if isinstance(task.prediction, Path) else task.prediction
        truth = [self.names, self.ignore_label, repr(self.label_mapping)]
        categories = sorted((self.categories or {}).items())
        parts: Any = [FORMAT, truth, categories, files, stats, entries]
        if task.segments is not None:
            parts.append([dict(each) for each in task.segments])
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def rounded(value: float | None) -> float | None:
    """Convert a share to percent."""
    return None if value is None else float(np.round(100 * value, 6))
