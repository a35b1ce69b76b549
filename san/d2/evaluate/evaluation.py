"""Evaluates a model on registered data sets: an evaluator based on `san.evaluation`, and its loop.

Each of n workers evaluates every n-th image. Their counts are summed, so the result does not depend on n.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from san.d2.api import CfgNode, DatasetEvaluator, comm
from san.d2.data.batches import Batches, BatchSample
from san.d2.data.datasets import check_distinct_classes, load_records, metadata_of
from san.d2.data.loaders import Record, build_eval_loader
from san.d2.data.mapper import EvalMapper, dataset_info
from san.d2.evaluate.averaging import SegmenterModel
from san.d2.evaluate.out_of_memory import OutOfMemoryFallback
from san.d2.evaluate.resume import ResumeConfig, SavedCounts, forget, weights_digest
from san.d2.evaluate.state import pack_state, unpack_oracle, unpack_state
from san.d2.processes import stopping
from san.data.pairing import label_file
from san.data.subset import evenly_spread
from san.devices import image_streams, in_streams
from san.evaluation import ConfusionMatrix, RLEWriter, format_summary, metrics, write_label_map, write_report
from san.evaluation.oracle import OracleCounts, proposals_of
from san.evaluation.oracle_report import format_oracle, write_oracle_report
from san.evaluation.per_image import LABEL_FOLDER, RLE_FILE, common_folder, distinct_stems
from san.evaluation.predictions import default_image_id
from san.evaluation.report import SUMMARY_KEYS, summary_keys
from san.io.image_files import read_image
from san.torch_defaults import torch_defaults
from san.visualize import Sample as PanelRow
from san.visualize import drawing, panels

logger = logging.getLogger("san.d2.evaluation")

SECONDS_BETWEEN_LINES = 10.0
"""Interval of progress lines if no progress bar can be drawn."""


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
    """

    folder: Path
    num_panels: int = 4
    label_maps: bool = False
    rle: bool = False
    subset: str = ""
    optional: bool = False
    oracle: bool = False


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

    def process(self, inputs: list[BatchSample], outputs: list[dict[str, Any]]) -> None:
        """Count a batch: samples with ``sem_seg``, predictions with ``sem_seg_labels``, both at the file's size."""
        for sample, output in zip(inputs, outputs, strict=True):
            prediction = output["sem_seg_labels"].to(torch.int32).cpu().numpy()  # halves the transfer
            truth = np.asarray(sample["sem_seg"])
            self.matrix.update(prediction, truth, file_name=sample["file_name"])
            if self.oracle is not None:
                self.oracle.update(proposals_of(output), truth, file_name=sample["file_name"])
            if len(self.rows) < self.output.num_panels and comm.is_main_process():
                self.rows.append((str(sample["file_name"]), prediction, truth))
            if self.output.label_maps:
                with self._optional_file():
                    write_label_map(self._label_map_path(sample), prediction)
            if self.output.rle:
                self.rle.update(prediction, sample["file_name"], self._image_ids.get(sample["file_name"]))

    def state_dict(self) -> dict[str, Any]:
        """Return all counts as tensors and plain data."""
        return pack_state(self.matrix, self.rle.entries, self.rows, self.oracle)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of `state_dict`, replacing all counts.

        Raises:
        ValueError: it is not such a state; the counts are reset.
        """
        self.reset()
        counts, entries, rows = unpack_state(state, len(self.classes), self.ignore_label)
        if self.oracle is not None:
            self.oracle.merge(unpack_oracle(state))
        self.matrix.merge(counts)
        self.rle.merge(entries)
        self.rows = rows

    def _label_map_path(self, sample: BatchSample) -> Path:
        """Return the path of a prediction: that of its label file, relative to the data set's label folder."""
        image, label = sample["file_name"], sample["sem_seg_file_name"]
        stem = self._stems.get((image, label)) or distinct_stems([label], self.label_root)[0]
        return self.output.folder / LABEL_FOLDER / f"{stem}.png"

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
        shares = comm.gather((self.matrix.counts, self.rle.entries, self.oracle and self.oracle.counts))
        if not comm.is_main_process():
            return None
        for counts, entries, oracle in shares[1:]:
            self.matrix.merge(counts)
            self.rle.merge(entries)
            if self.oracle is not None:
                self.oracle.merge(oracle)
        folder, subset = self.output.folder, self.output.subset
        title = f"{self.name}, {subset}" if subset else self.name
        heading = f"IoU per class, {title}"
        with self._optional_file():
            write_report(folder, self.matrix, self.classes, groups=self.groups, title=heading, subset=subset)
        if self.oracle is not None:
            with self._optional_file():
                figures = write_oracle_report(folder, self.matrix, self.oracle, self.classes, title, self.groups)
                logger.info("%s: %s", self.name, format_oracle(figures))
        if self.output.rle:
            with self._optional_file():
                self.rle.write(folder / RLE_FILE)
        if self.rows:
            with self._optional_file(), drawing(folder / "panel.png"):
                rows = [PanelRow(read_image(file), prediction, truth) for file, prediction, truth in self.rows]
                panels(rows, self.classes, folder / "panel.png")
        if len(self._unwritten) > 1:
            logger.warning("%s: %d files of the evaluation could not be written", self.name, len(self._unwritten))
        return {"sem_seg": metrics(self.matrix, self.classes, self.groups)}

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


def metric_names(name: str) -> list[str]:
    """Return the names of the metrics of an evaluation on a registered data set."""
    metadata = metadata_of(name)
    groups = [f"mIoU-{group}" for group in metadata.get("class_groups", {})]
    classes = [f"{kind}-{each}" for kind in ("IoU", "ACC") for each in metadata.stuff_classes]
    return [*SUMMARY_KEYS, *groups, *classes]


def progress(batches: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    """Iterate over batches with a progress bar on a terminal, or log lines with an ETA every 10 s elsewhere.

    Args:
        batches: the batches.
        total: their number.
        title: title of the progress bar.

    Yields:
        the batches.
    """
    if not comm.is_main_process():
        yield from batches
        return
    with tqdm(batches, total=total, desc=title, unit="img", disable=None, dynamic_ncols=True, leave=False) as bar:
        start = last = time.perf_counter()
        for done, batch in enumerate(bar):
            yield batch
            now = time.perf_counter()
            if bar.disable and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                eta = datetime.timedelta(seconds=int((now - start) / (done + 1) * (total - done - 1)))
                rate = (now - start) / (done + 1)
                logger.info("%s: %d/%d images of this process, %.3f s each, eta %s", title, done + 1, total, rate, eta)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode, no gradients, no autocast of the caller."""
    was_training = model.training
    model.eval()
    try:
        with torch_defaults(), torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate_dataset(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    folder: Path,
    resuming: ResumeConfig | None = None,
    *,
    training: bool = False,
) -> dict[str, float] | None:
    """Evaluate a model on one data set, in float32.

    Args:
        cfg: the configuration.
        model: a ``SAN``, not wrapped.
        name: a registered data set.
        folder: folder of the report.
        resuming: how counts are saved to resume a killed evaluation; None saves nothing.
        training: the evaluation is part of a training run, which continues without a report if the disk is full.

    Returns:
        on the main process the metrics in percent, elsewhere None.

    Raises:
        san.d2.processes.stopping.StopRequested: a stop was requested; the counts are saved.
    """
    records, subset = eval_records(cfg, name)
    if subset:
        logger.warning("%s: evaluating only %s (DATASETS.TEST_SUBSET), not the full benchmark", name, subset)
    partial = None if resuming is None else resuming.saved_counts(cfg, model, name, records, folder)
    known = None if partial is None else partial.result()
    if known is not None:
        logger.info("%s: evaluated before the interruption; report in %s", name, folder)
        return known if comm.is_main_process() else None
    evaluator = SemSegEvaluator(name, output_config(cfg, folder, subset, optional=training))
    start = time.perf_counter()
    _count(cfg, model, records, evaluator, partial)
    result = evaluator.evaluate()
    if result is None:
        return None
    values = dict(result["sem_seg"])
    if partial is not None:
        partial.save_result(values)
    seconds = time.perf_counter() - start
    counted = subset or f"{len(records)} images"
    logger.info("%s: %s in %.1f s; report in %s\n%s", name, counted, seconds, folder, format_summary(values))
    return values


def eval_records(cfg: CfgNode, name: str) -> tuple[list[Record], str]:
    """Return the evaluated records of a data set, and a text that describes a subset; "" for the whole set."""
    everything = load_records(name)
    records = evenly_spread(everything, cfg.DATASETS.TEST_SUBSET)
    return records, f"{len(records)} of {len(everything)} images" if len(records) < len(everything) else ""


def output_config(cfg: CfgNode, folder: Path, subset: str, *, optional: bool = False) -> OutputConfig:
    """Return the `OutputConfig` of an evaluation of a run."""
    kept = (cfg.TEST.NUM_PANELS, cfg.TEST.SAVE_LABEL_MAPS, cfg.TEST.SAVE_RLE)
    return OutputConfig(folder, *kept, subset, optional, cfg.TEST.ORACLE)


def _count(
    cfg: CfgNode, model: nn.Module, records: Sequence[Record], evaluator: SemSegEvaluator, partial: SavedCounts | None
) -> None:
    """Count the remaining images of this process, and save the counts periodically."""
    share = range(comm.get_rank(), len(records), comm.get_world_size())
    done, saved = 0 if partial is None else partial.restore(evaluator, len(share)), time.monotonic()
    loader = eval_loader(cfg, evaluator.name, records, done, resized=not isinstance(model, SegmenterModel))
    predicted = in_streams(OutOfMemoryFallback(model).with_batch, loader, image_streams([model]))
    # a stop while waiting for an image: the other processes, which have other images, are notified below
    with evaluation_mode(model), contextlib.suppress(stopping.StopRequested), contextlib.closing(predicted):
        for batch, outputs in progress(predicted, len(loader), f"evaluating {evaluator.name}"):
            evaluator.process(batch, outputs)
            done += 1
            if stopping.requested():
                break
            if partial is not None and time.monotonic() - saved >= partial.period:
                partial.save(done, evaluator.state_dict())
                saved = time.monotonic()
    if partial is not None:
        partial.save(done, evaluator.state_dict())
    if stopping.requested_anywhere():
        logger.warning("Stop requested: the counts of the evaluation of %s so far are saved.", evaluator.name)
        raise stopping.StopRequested


def eval_loader(cfg: CfgNode, name: str, records: Sequence[Record], done: int = 0, *, resized: bool = True) -> Batches:
    """Return the images of this process after the first `done`; `resized` False keeps their files' sizes."""
    info = dataset_info(name, metadata_of(name))
    return build_eval_loader(
        records,
        EvalMapper(info, cfg.INPUT.MIN_SIZE_TEST if resized else None, cfg.INPUT.MAX_SIZE_TEST),
        rank=comm.get_rank(),
        world=comm.get_world_size(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT,
        done=done,
    )


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    resume: bool = False,
    training: bool = False,
    folder: str = "inference",
) -> OrderedDict[str, dict[str, float]]:
    """Evaluate a model on all data sets of DATASETS.TEST, each with its own vocabulary.

    Args:
        cfg: the configuration; reports are written to ``OUTPUT_DIR/inference/<data set>``.
        model: a ``SAN``, not wrapped, or a `SegmenterModel`.
        names: data sets to use instead of DATASETS.TEST.
        resume: resume an interrupted evaluation of the same weights, if there is one.
        training: the evaluation is part of a training run, which continues without a report if the disk is full.
        folder: name of the folder instead of ``inference``.

    Returns:
        on the main process the metrics in percent by data set, elsewhere an empty dict.

    Raises:
        san.d2.processes.stopping.StopRequested: a stop was requested; the counts are saved for `resume`.
    """
    results: OrderedDict[str, dict[str, float]] = OrderedDict()
    resuming = ResumeConfig(weights_digest(model), resume, cfg.TEST.PARTIAL_PERIOD)
    folders = {name: Path(cfg.OUTPUT_DIR) / folder / name for name in names or cfg.DATASETS.TEST}
    for name, place in folders.items():
        values = evaluate_dataset(cfg, model, name, place, resuming, training=training)
        if values is not None:
            results[name] = values
    forget([*folders.values()])
    if len(results) > 1:
        part = f" (subsets of {cfg.DATASETS.TEST_SUBSET} images)" if cfg.DATASETS.TEST_SUBSET else ""
        logger.info("mIoU%s: %s", part, ", ".join(f"{name} {each['mIoU']:.2f}" for name, each in results.items()))
    return results


def summary(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the metrics that are not per class, by data set, for curves."""
    return {name: {key: values[key] for key in summary_keys(values)} for name, values in results.items()}
