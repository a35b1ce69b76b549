"""Resumable evaluations: each process periodically saves its counts.

``OUTPUT_DIR/inference/<data set>/partial`` contains the counts of every process, and the metrics of a finished data
set. ``--resume`` uses them if nothing that affects the result has changed. A complete evaluation deletes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import san
from san.clip.weights_file import read_tensors
from san.d2.api import CfgNode, DatasetEvaluator, comm
from san.d2.checkpoints.checkpointer import damage_of, write_checkpoint
from san.d2.config.keys import panoptic_options
from san.d2.data.datasets import class_texts, metadata_of
from san.d2.data.loaders import Record
from san.d2.evaluate.evaluator import has_segments
from san.d2.meta_arch import classes_of_dataset
from san.io.errors import one_line
from san.io.files import write_whole
from san.io.plain_file import read_plain_file

logger = logging.getLogger("san.d2.evaluation")

FOLDER = "partial"
RESULT = "finished.json"


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensors and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class ResumeConfig:
    """How the counts of an evaluation are saved and loaded.

    Attributes:
        weights: `weights_digest` of the model.
        resume: whether to use the counts of an earlier evaluation.
        period: seconds between two saves; 0 saves after every image.
    """

    weights: str
    resume: bool
    period: float

    def saved_counts(
        self, cfg: CfgNode, model: nn.Module, name: str, records: Sequence[Record], folder: Path
    ) -> SavedCounts:
        """Return the saved counts of this process for a data set.

        Args:
            cfg: the configuration.
            model: the evaluated model.
            name: the data set.
            records: its evaluated records.
            folder: folder of its report.
        """
        names = "\n".join(str(record["file_name"]) for record in records)
        files = hashlib.sha256(names.encode(errors="surrogateescape"))  # names may not be UTF-8
        described = {
            "version": san.__version__,
            "weights": self.weights,
            "model": {key: value for key, value in cfg.MODEL.items() if key not in ("WEIGHTS", "LOSS")},
            "vocabulary": repr(getattr(model, "vocabulary", None)),
            "names": repr(class_texts(name)),
            "dataset": name,
            "images": [len(records), files.hexdigest()],
            "processes": [comm.get_rank(), comm.get_world_size()],
            "sizes": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
            "precision": cfg.FLOAT32_PRECISION,
            "outputs": [cfg.TEST.NUM_PANELS, cfg.TEST.SAVE_LABEL_MAPS, cfg.TEST.SAVE_RLE, cfg.TEST.ORACLE],
        }
        if has_segments(name):
            described["panoptic"] = [repr(panoptic_options(cfg)), repr(metadata_of(name).get("things"))]
        if cfg.TEST.VOCABULARY_FILE:
            described["vocabulary"] = repr(classes_of_dataset(name))
        if hasattr(model, "description"):  # of a `SegmenterModel`, which does not use INPUT
            described["sizes"] = model.description
        key = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
        return SavedCounts(folder / FOLDER, key, self.resume, self.period)


@dataclass(frozen=True)
class SavedCounts:
    """The counts that one process saves during the evaluation of one data set.

    Attributes:
        folder: folder of the files.
        key: hash of everything that affects the result; counts with another key are not used.
        resume: whether saved counts are used.
        period: seconds between two saves.
    """

    folder: Path
    key: str
    resume: bool
    period: float

    @property
    def path(self) -> Path:
        """The file of this process."""
        return self.folder / f"process_{comm.get_rank()}.pth"

    def save(self, done: int, state: dict[str, Any]) -> None:
        """Save the state after `done` images of this process; logs a warning if the file cannot be written.

        Args:
            done: number of images.
            state: tensors and plain data.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_checkpoint({"key": self.key, "done": done, "state": state}, self.path)
        except OSError as error:
            logger.warning("%s cannot be written (%s); the evaluation continues", self.path, error.strerror or error)

    def load(self, num_images: int) -> tuple[int, dict[str, Any]] | None:
        """Load the saved counts of the same evaluation; None if there are none.

        A damaged or invalid file is logged and not used.

        Args:
            num_images: number of images that this process evaluates.

        Returns:
            the number of completed images, and the state; its values are not validated.
        """
        if not self.resume or not self.path.exists():
            return None
        found, problem = None, damage_of(self.path)
        try:
            found = None if problem else read_tensors(self.path)
        except ValueError as error:
            problem = str(error)
        if isinstance(found, dict) and found.get("key") != self.key:
            logger.info("%s belongs to other weights, data or settings and is not used", self.path)
            return None
        if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
            self.report(problem or "it contains no counts of an evaluation")
            return None
        done = found.get("done")
        if type(done) is not int or not 0 <= done <= num_images:
            self.report(f"{done!r:.80} of {num_images} images are done")
            return None
        return done, found["state"]

    def restore(self, evaluator: DatasetEvaluator, num_images: int) -> int:
        """Restore the counts of an interrupted evaluation; returns the number of completed images.

        Args:
            evaluator: has a ``name``, and a ``load_state_dict`` that raises ValueError for an invalid state.
            num_images: number of images that this process evaluates.
        """
        found = self.load(num_images)
        if found is None:
            return 0
        done, state = found
        try:
            evaluator.load_state_dict(state)
        except ValueError as error:
            self.report(str(error))
            return 0
        logger.info("%s: resuming after %d images of this process", evaluator.name, done)
        return done

    def report(self, problem: str) -> None:
        """Log that the saved counts cannot be used."""
        logger.warning(
            "%s cannot be used (%s): this process's part is evaluated again", self.path, one_line(problem, limit=300)
        )

    def save_result(self, values: dict[str, float]) -> None:
        """Save the metrics of a finished data set; for the main process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / RESULT, json.dumps({"key": self.key, "values": values}), durable=True)
        except OSError as error:
            logger.warning("%s cannot be written (%s)", self.folder / RESULT, error.strerror or error)

    def result(self) -> dict[str, float] | None:
        """Load the metrics of `save_result` of the same evaluation, or None; every process must call it."""
        found = None
        if self.resume and comm.is_main_process() and (self.folder / RESULT).exists():
            found = self._read_result(self.folder / RESULT)
        agreed: dict[str, float] | None = comm.all_gather(found)[0]
        return agreed

    def _read_result(self, path: Path) -> dict[str, float] | None:
        """Read a file of `save_result`; None if it belongs to another evaluation, or is invalid, which is logged."""
        try:
            content = read_plain_file(path, "saved result")
        except (ValueError, OSError) as error:
            content = one_line(error)
        if isinstance(content, dict) and content.get("key") != self.key:
            return None
        values = content.get("values") if isinstance(content, dict) else None
        if not isinstance(values, dict) or {type(each) for each in values.values()} != {float} or "mIoU" not in values:
            reason = content if isinstance(content, str) else "it contains no metrics"
            logger.warning("%s cannot be used (%s): the data set is evaluated again", path, reason)
            return None
        return values


def forget(folders: Sequence[Path]) -> None:
    """Delete the saved counts of a complete evaluation; every process must call it.

    Args:
        folders: folders of the data sets' reports.
    """
    comm.synchronize()
    if comm.get_local_rank() == 0:  # once on every machine
        for folder in folders:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
    comm.synchronize()
