"""The evaluator of registered data sets, based on `san.evaluation`: counts batches, and writes the report.

mIoU of every data set; of panoptic ones also panoptic quality and average precision.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from san.d2.api import DatasetEvaluator, comm
from san.d2.data.batches import BatchSample
from san.d2.data.datasets import check_distinct_classes, load_records, metadata_of
from san.d2.evaluate.state import pack_state, unpack_oracle, unpack_panoptic, unpack_state
from san.data.pairing import label_file
from san.evaluation import ConfusionMatrix, RLEWriter, metrics, write_label_map, write_report
from san.evaluation.oracle import OracleCounts, proposals_of
from san.evaluation.oracle_report import format_oracle, write_oracle_report
from san.evaluation.panoptic import Segments, panoptic_rows
from san.evaluation.panoptic_evaluation import PANOPTIC_FILE, PANOPTIC_FOLDER, PanopticEvaluation
from san.evaluation.per_image import LABEL_FOLDER, RLE_FILE, common_folder, distinct_stems
from san.evaluation.predictions import default_image_id
from san.evaluation.report import SUMMARY_KEYS
from san.io.image_files import read_image
from san.panoptic_merge import PanopticOptions
from san.visualize import Sample as PanelRow
from san.visualize import drawing, panels

logger = logging.getLogger("san.d2.evaluation")

PANOPTIC = "panoptic_seg"
"""`evaluator_type` of data sets with segments; those with label maps have "sem_seg"."""


@dataclass(frozen=True)
class OutputConfig:
    """Options of the files that an evaluation writes.

    Attributes:
        folder: folder to write to.
        num_panels: rows of ``panel.png``; 0 writes none.
        label_maps: write each prediction to ``label_maps/``, with the sub-folders of the data set's label files; see
            `san.evaluation.per_image.distinct_stems`.
        rle: write all predictions to ``sem_seg_predictions.json``.
        subset: which part of the data set is evaluated, such as "20 of 5000 images"; "" = all of it.
        optional: if the disk is full, log a warning and continue without the file.
        oracle: separate mask errors from name errors; predictions must have ``proposals`` (TEST.ORACLE).
        panoptic: how queries become segments (TEST.PANOPTIC), for data sets with segments, of which predictions must
            have ``proposals``; None evaluates the label map alone.
    """

    folder: Path
    num_panels: int = 4
    label_maps: bool = False
    rle: bool = False
    subset: str = ""
    optional: bool = False
    oracle: bool = False
    panoptic: PanopticOptions | None = None


class SemSegEvaluator(DatasetEvaluator):
    """Compares predicted label maps with the ground truth and writes the report.

    Args:
        name: the data set, registered with class names.
        output: options of the files to write.

    Raises:
        ValueError: two classes have the same name.
    """

    def __init__(self, name: str, output: OutputConfig) -> None:
        check_distinct_classes(name)
        metadata = metadata_of(name)
        self.name = name
        self.output = output
        self.classes: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.ignore_label
        self.label_root: str | None = metadata.get("sem_seg_root")
        self.groups: dict[str, tuple[str, ...]] = metadata.get("class_groups", {})
        ids = metadata.get("stuff_dataset_id_to_contiguous_id")
        self.category_ids = sorted(ids, key=lambda category: ids[category]) if ids else None
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        self.matrix = ConfusionMatrix(len(self.classes), self.ignore_label)
        self.rle = RLEWriter(self.category_ids)
        self.rows: list[tuple[str, np.ndarray, np.ndarray]] = []  # file, prediction, truth of a row of the panel
        self._unwritten: list[str] = []
        self.oracle = OracleCounts(len(self.classes), self.ignore_label) if self.output.oracle else None
        self.panoptic = None
        if self.output.panoptic is not None and has_segments(self.name):
            self.panoptic = panoptic_evaluation(self.name, self.output.panoptic)

    def process(self, inputs: list[BatchSample], outputs: list[dict[str, Any]]) -> None:
        """Count a batch: samples with ``sem_seg``, predictions with ``sem_seg_labels``, both at the file's size."""
        for sample, output in zip(inputs, outputs, strict=True):
            prediction = output["sem_seg_labels"].to(torch.int32).cpu().numpy()  # halves the transfer
            truth = np.asarray(sample["sem_seg"])
            self.matrix.update(prediction, truth, file_name=sample["file_name"])
            if self.oracle is not None:
                self.oracle.update(proposals_of(output), truth, file_name=sample["file_name"])
            if self.panoptic is not None:
                self._count_segments(self.panoptic, sample, output)
            if len(self.rows) < self.output.num_panels and comm.is_main_process():
                self.rows.append((str(sample["file_name"]), prediction, truth))
            if self.output.label_maps:
                with self._optional_file():
                    write_label_map(self._label_map_path(sample), prediction)
            if self.output.rle:
                self.rle.update(prediction, sample["file_name"], self._image_ids.get(sample["file_name"]))

    def state_dict(self) -> dict[str, Any]:
        """Return all counts as tensors and plain data."""
        return pack_state(self.matrix, self.rle.entries, self.rows, self.oracle, self.panoptic)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of `state_dict`, replacing all counts.

        Raises:
        ValueError: it is not such a state; the counts are reset.
        """
        self.reset()
        counts, entries, rows = unpack_state(state, len(self.classes), self.ignore_label)
        try:
            if self.oracle is not None:
                self.oracle.merge(unpack_oracle(state))
            if self.panoptic is not None:
                self.panoptic.merge(unpack_panoptic(state))
        except ValueError:
            self.reset()
            raise
        self.matrix.merge(counts)
        self.rle.merge(entries)
        self.rows = rows

    def _count_segments(self, panoptic: PanopticEvaluation, sample: BatchSample, output: dict[str, Any]) -> None:
        """Count the segments of one image, and write them beside its label map."""
        truth, file = sample.get("segments"), sample["file_name"]
        if not isinstance(truth, Segments):
            raise ValueError(
                f"data set {self.name!r} has the evaluator_type {PANOPTIC!r}, but the sample of {file} has no "
                "segments; let its mapper return what san.d2.data.mapper.EvalMapper does"
            )
        found = panoptic.update(proposals_of(output), truth, file_name=file)
        if self.output.label_maps:
            root = self.output.folder / PANOPTIC_FOLDER
            image_id = self._image_ids.get(file) or default_image_id(file)
            with self._optional_file():
                place = self._label_map_path(sample, PANOPTIC_FOLDER)
                panoptic.write_image(found, place, root, file_name=Path(file).name, image_id=image_id)

    def _label_map_path(self, sample: BatchSample, folder: str = LABEL_FOLDER) -> Path:
        """Return the path of a prediction: that of its label file, relative to the data set's label folder."""
        image, label = sample["file_name"], label_file(sample)
        stem = self._stems.get((image, label)) or distinct_stems([label], self.label_root)[0]
        return self.output.folder / folder / f"{stem}.png"

    @cached_property
    def _stems(self) -> dict[tuple[str, str], str]:
        """Return the label maps' names by pair of files; they depend on the whole data set, as in their readers."""
        pairs = [(record["file_name"], label_file(record)) for record in load_records(self.name)]
        labels = [label for _, label in pairs]
        return dict(zip(pairs, distinct_stems(labels, self.label_root or common_folder(labels)), strict=True))

    @cached_property
    def _image_ids(self) -> dict[str, str]:
        """Return ids of the images with repeated file names: their paths without extension."""
        images = [record["file_name"] for record in load_records(self.name)]
        counts = Counter(map(default_image_id, images))
        stems = distinct_stems(images, common_folder(images))
        return {file: stem for file, stem in zip(images, stems, strict=True) if counts[default_image_id(file)] > 1}

    def evaluate(self) -> dict[str, Any] | None:
        """Sum the counts of all workers and write the files.

        Returns:
            on the main process ``{"sem_seg": metrics in percent}``, elsewhere None.
        """
        if self.panoptic is not None:
            for other in comm.gather(self.panoptic.state)[1:]:
                self.panoptic.merge(other)
        shares = comm.gather((self.matrix.counts, self.rle.entries, self.oracle and self.oracle.counts))
        if not comm.is_main_process():
            return None
        for counts, entries, oracle in shares[1:]:
            self.matrix.merge(counts)
            self.rle.merge(entries)
            if self.oracle is not None:
                self.oracle.merge(oracle)
        folder = self.output.folder
        subset = self.output.subset
        title = f"{self.name}, {subset}" if subset else self.name
        heading = f"IoU per class, {title}"
        segments = {} if self.panoptic is None else self.panoptic.figures()
        report: dict[str, Any] = {"groups": self.groups, "title": heading, "subset": subset, "segments": segments}
        with self._optional_file():
            write_report(folder, self.matrix, self.classes, **report)
        if self.oracle is not None:
            with self._optional_file():
                figures = write_oracle_report(folder, self.matrix, self.oracle, self.classes, title, self.groups)
                logger.info("%s: %s", self.name, format_oracle(figures))
        if self.panoptic is not None:
            logger.info("%s:\n%s", self.name, panoptic_rows(segments, [*self.panoptic.groups]))
            if self.output.label_maps:
                with self._optional_file():
                    self.panoptic.write(folder / PANOPTIC_FILE)
        if self.output.rle:
            with self._optional_file():
                self.rle.write(folder / RLE_FILE)
        if self.rows:
            with self._optional_file(), drawing(folder / "panel.png"):
                rows = [PanelRow(read_image(file), prediction, truth) for file, prediction, truth in self.rows]
                panels(rows, self.classes, folder / "panel.png")
        if len(self._unwritten) > 1:
            logger.warning("%s: %d files of the evaluation could not be written", self.name, len(self._unwritten))
        return {"sem_seg": metrics(self.matrix, self.classes, self.groups) | segments}

    @contextlib.contextmanager
    def _optional_file(self) -> Iterator[None]:
        """Context manager that skips a file if the disk is full and the output is optional."""
        try:
            yield
        except OSError as error:
            if not self.output.optional or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._unwritten.append(str(error))
            if len(self._unwritten) == 1:  # `evaluate` logs the total
                logger.warning("%s: a file of the evaluation could not be written (%s)", self.name, error)


def has_segments(name: str) -> bool:
    """Whether a registered data set has segments."""
    return bool(metadata_of(name).get("evaluator_type") == PANOPTIC)


def panoptic_evaluation(name: str, options: PanopticOptions | None = None) -> PanopticEvaluation:
    """Return empty counts of segments of a registered data set.

    Raises:
        ValueError: a thing is none of its classes.
    """
    metadata = metadata_of(name)
    ids = metadata.get("stuff_dataset_id_to_contiguous_id")
    category_ids = sorted(ids, key=lambda category: ids[category]) if ids else None
    things, groups = metadata.get("things") or (), metadata.get("class_groups", {})
    return PanopticEvaluation(metadata.stuff_classes, things, groups, options, category_ids=category_ids)


def metric_names(name: str, *, averaged: bool = False) -> list[str]:
    """Return the names of the metrics of an evaluation on a registered data set.

    Args:
        name: the data set.
        averaged: over several sizes, mirror images or models, which have no segments.
    """
    metadata = metadata_of(name)
    groups = [f"mIoU-{group}" for group in metadata.get("class_groups", {})]
    classes = [f"{kind}-{each}" for kind in ("IoU", "ACC") for each in metadata.stuff_classes]
    segments = [] if averaged or not has_segments(name) else [*panoptic_evaluation(name).figures()]
    return [*SUMMARY_KEYS, *groups, *classes, *segments]
