"""Evaluates a model on registered data sets: the loop over images, data sets and processes.

Each of n workers evaluates every n-th image. Their counts are summed, so the result does not depend on n.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from san.d2.api import CfgNode, comm
from san.d2.config.keys import panoptic_options
from san.d2.data.batches import Batches
from san.d2.data.datasets import load_records, metadata_of
from san.d2.data.loaders import Record, build_eval_loader
from san.d2.data.mapper import EvalMapper, dataset_info
from san.d2.evaluate.averaging import SegmenterModel
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator, has_segments
from san.d2.evaluate.out_of_memory import OutOfMemoryFallback
from san.d2.evaluate.resume import ResumeConfig, SavedCounts, forget, weights_digest
from san.d2.processes import stopping
from san.data.subset import evenly_spread
from san.devices import image_streams, in_streams
from san.evaluation import format_summary
from san.evaluation.report import summary_keys
from san.torch_defaults import torch_defaults

logger = logging.getLogger("san.d2.evaluation")

SECONDS_BETWEEN_LINES = 10.0
"""Interval of progress lines if no progress bar can be drawn."""


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
    averaged = isinstance(model, SegmenterModel)
    if averaged and has_segments(name):
        logger.warning(
            "%s: only the label map is evaluated, without PQ and AP: segments are made of the queries of one model at "
            "one size, but several are averaged",
            name,
        )
    evaluator = SemSegEvaluator(name, output_config(cfg, folder, subset, optional=training, averaged=averaged))
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


def output_config(
    cfg: CfgNode, folder: Path, subset: str, *, optional: bool = False, averaged: bool = False
) -> OutputConfig:
    """Return the `OutputConfig` of an evaluation of a run; `averaged` of several views, which have no segments."""
    kept = (cfg.TEST.NUM_PANELS, cfg.TEST.SAVE_LABEL_MAPS, cfg.TEST.SAVE_RLE)
    panoptic = None if averaged else panoptic_options(cfg)
    return OutputConfig(folder, *kept, subset, optional, cfg.TEST.ORACLE, panoptic)


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
