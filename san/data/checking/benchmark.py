"""Checking a split of a benchmark in its folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from san.data.benchmarks import PUBLISHED_BENCHMARKS, Benchmark
from san.data.checking.folders import Folder, check_annotations, check_folders
from san.data.checking.pair import CheckTarget, Finding
from san.data.checking.processes import check_pairs
from san.data.checking.report import CheckReport, failed_report, summarise
from san.data.label_mapping import LabelMapping


def make_target(
    name: str,
    classes: Sequence[str],
    ignore_label: int,
    label_mapping: LabelMapping | None = None,
    *,
    partial: bool = False,
) -> CheckTarget:
    """Build the expected properties of a data set; more is known about the splits of benchmarks than about others.

    Args:
        name: as registered.
        classes: C names.
        ignore_label: value of pixels without a class.
        label_mapping: values of the label files -> class indices; None if the files contain class indices.
        partial: the folders contain a part of the published set.
    """
    benchmark = PUBLISHED_BENCHMARKS.get(name)
    absent = None
    panoptic = benchmark is not None and benchmark.annotations is not None  # not known which classes have no segment
    if benchmark is not None and not panoptic and (not benchmark.labels.absent_in_val or "_train" not in name):
        absent = frozenset(benchmark.labels.absent_in_val)  # what PC-459's train split lacks is not published
    return CheckTarget(
        name=name,
        classes=tuple(classes),
        ignore_label=ignore_label,
        num_pairs=benchmark.num_images if benchmark else None,
        absent=absent,
        partial=partial,
        label_mapping=label_mapping,
        shared_images=benchmark is None or benchmark.shared_images,
    )


def check_benchmark(
    benchmark: Benchmark, root: Path, *, workers: int = 1, partial: bool = False, progress: bool = False
) -> CheckReport:
    """Check everything that a split's registration reads, and change nothing.

    Args:
        benchmark: the split.
        root: datasets root.
        workers: processes; 1 reads in this one.
        partial: the folders contain a part of the published set.
        progress: show a bar on a terminal.
    """
    labels = benchmark.labels
    target = make_target(benchmark.name, labels.classes, labels.ignore_label, partial=partial)
    image_dir, label_dir = benchmark.folders(root)
    findings: list[Finding] = []
    if image_dir.is_dir() and label_dir.is_dir():
        folders = Folder(image_dir, (benchmark.image_ext,)), Folder(label_dir, (benchmark.label_ext,))
        findings = check_folders(*folders, shared_images=target.shared_images)
    try:
        pairing = benchmark.pairing(root, remedy="prepare the set")
    except (ValueError, OSError) as error:
        return failed_report(target, error, findings)
    if benchmark.annotations is not None:
        findings += check_annotations(pairing, label_dir, benchmark.label_ext)
    results = check_pairs(pairing.pairs, target, workers=workers)
    bar = tqdm(results, target.name, len(pairing.pairs), unit="pair", disable=None if progress else True)
    return summarise(target, pairing.pairs, bar, findings)
