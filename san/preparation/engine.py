"""Prepares a data set from its download, or checks a prepared one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from san.data.checking import CheckReport, check_benchmark
from san.io.errors import listed
from san.preparation.ade20k import ADE20K
from san.preparation.ade20k_full import ADE20K_FULL
from san.preparation.ade20k_panoptic import ADE20K_PANOPTIC
from san.preparation.coco_panoptic import COCO_PANOPTIC
from san.preparation.coco_stuff import COCO_STUFF
from san.preparation.files import STATE_FOLDER, check_disk_space, only_run, remove_partial_files
from san.preparation.jobs import FileJob, run_jobs
from san.preparation.pcontext import PCONTEXT
from san.preparation.pcontext_full import PCONTEXT_FULL
from san.preparation.plan import Preparation, SplitPlan
from san.preparation.sources import PreparationOptions
from san.preparation.voc import VOC

logger = logging.getLogger(__name__)

PREPARATIONS: dict[str, Preparation] = {
    "coco_stuff": COCO_STUFF,
    "voc": VOC,
    "pcontext": PCONTEXT,
    "pcontext_full": PCONTEXT_FULL,
    "ade20k": ADE20K,
    "ade20k_full": ADE20K_FULL,
    "coco_panoptic": COCO_PANOPTIC,
    "ade20k_panoptic": ADE20K_PANOPTIC,
}
"""The six sets and the panoptic ones, keyed by the name of their script, `datasets/prepare_<name>.py`."""


@dataclass
class SplitSummary:
    """Result of a preparation for one registered split.

    Attributes:
        registered: the split's name.
        expected: the published number of images.
        labels: number of label files now.
        written: images and labels that this run wrote.
        present: files that existed before.
        problems: errors found; empty if the split is complete.
        notes: remarks that are not errors.
    """

    registered: str
    expected: int
    labels: int = 0
    written: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the split has no problem."""
        return not self.problems


@dataclass(frozen=True)
class Summary:
    """Results of all splits of a run."""

    title: str
    root: Path
    splits: tuple[SplitSummary, ...]

    @property
    def good(self) -> bool:
        """Whether no split has a problem."""
        return all(split.good for split in self.splits)


def preparation(name: str) -> Preparation:
    """Return the preparation of a set.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PREPARATIONS:
        raise ValueError(f"unknown set {name!r}; the sets are {', '.join(PREPARATIONS)}")
    return PREPARATIONS[name]


def prepare(name: str, options: PreparationOptions) -> Summary:
    """Prepare a set. Existing files are kept, missing ones are written.

    Args:
        name: key of `PREPARATIONS`.
        options: source, destination and processing options.

    Returns:
        counts and problems; `Summary.good` is whether the set is complete.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: the download is not the one this set needs, the disk is too small, or another run is active.
        OSError: a file cannot be written.
    """
    chosen = preparation(name)
    options.root.mkdir(parents=True, exist_ok=True)
    with only_run(options.root):
        folders = [folder for row in chosen.benchmarks(options.splits) for folder in row.folders(options.root)]
        _check_folders(folders)
        remove_partial_files([*dict.fromkeys(folder.parent for folder in folders), options.root / STATE_FOLDER])
        plans = chosen.plan(options)
        missing = {plan.benchmark.name: _missing((*plan.images, *plan.labels)) for plan in plans}
        check_disk_space(options.root, sum(job.num_bytes for jobs in missing.values() for job in jobs))
        return Summary(
            chosen.title, options.root, tuple(_run(plan, missing[plan.benchmark.name], options) for plan in plans)
        )


def check(name: str, options: PreparationOptions) -> list[CheckReport]:
    """Read every file that the set's registration reads, and change nothing.

    Args:
        name: key of `PREPARATIONS`.
        options: root, workers and splits; `raw` and `link` are ignored.

    Returns:
        a report for each split.
    """
    return [
        check_benchmark(row, options.root, workers=options.workers, partial=options.partial, progress=options.progress)
        for row in preparation(name).benchmarks(options.splits)
    ]


def _run(plan: SplitPlan, missing: list[FileJob], options: PreparationOptions) -> SplitSummary:
    benchmark = plan.benchmark
    summary = SplitSummary(benchmark.name, benchmark.num_images, notes=plan.notes)
    written, failures = run_jobs(missing, workers=options.workers, progress=options.progress, title=benchmark.name)
    summary.written, summary.present = written, len(plan.images) + len(plan.labels) - len(missing)
    if plan.index is not None and _is_stale(plan.index.path, plan.labels):
        failures += run_jobs([plan.index], workers=1, progress=False, title=plan.index.path.name)[1]
    label_dir = benchmark.folders(options.root)[1]
    there = existing_files(label_dir, f".{benchmark.label_ext}")
    summary.labels = len(there)
    summary.problems += failures + _surplus(there, (job.path.name for job in plan.labels), label_dir)
    _compare_count(summary, plan.problems, options)
    return summary


def _is_stale(index: Path, labels: Iterable[FileJob]) -> bool:
    """Whether the file that lists the labels is missing, empty, or older than one of them."""
    if not index.is_file() or not index.stat().st_size:
        return True
    written = index.stat().st_mtime_ns
    return any(job.path.is_file() and job.path.stat().st_mtime_ns > written for job in labels)


def _compare_count(summary: SplitSummary, problems: list[str], options: PreparationOptions) -> None:
    """Report a count that differs from the published one: as a problem, or as a note with `options.partial`."""
    if summary.labels != summary.expected:
        problems = [*problems, f"{summary.labels:,} labels, but the published set has {summary.expected:,}"]
    if options.partial:
        summary.notes += problems
    else:
        summary.problems += problems


def _check_folders(folders: Iterable[Path]) -> None:
    """Raise if a folder to write to, or one of its parents, is a file."""
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            raise ValueError(f"{existing} is a file but must be a folder; remove or rename it")


def _missing(jobs: Iterable[FileJob]) -> list[FileJob]:
    there: dict[Path, set[str]] = {}
    missing = []
    for job in jobs:
        folder = job.path.parent
        if folder not in there:
            there[folder] = existing_files(folder, job.path.suffix)
        if job.path.name not in there[folder]:
            missing.append(job)
    return missing


def existing_files(folder: Path, suffix: str) -> set[str]:
    """Return the names of the non-empty files in a folder; an empty file counts as missing and is rewritten."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {e.name for e in entries if e.name.endswith(suffix) and e.is_file() and e.stat().st_size}


def _surplus(there: set[str], wanted: Iterable[str], folder: Path) -> list[str]:
    surplus = sorted(there - set(wanted))
    if not surplus:
        return []
    return [f"{len(surplus)} files in {folder} do not belong to the split: {listed(surplus)}; remove them"]
