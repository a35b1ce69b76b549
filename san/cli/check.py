"""Read every pair of registered data sets and report errors: counts, sizes, values, names; and the class histogram.

Writes OUT/<name>/report.json (every finding), classes.csv and classes.png (the per-class pixel histogram) and
samples.png (image, coloured labels, legend).

Examples:
  san check voc_sem_seg_val ade20k_sem_seg_val --data-root datasets --workers 4
  san check coco_2017_train_stuff_sem_seg --limit 1000
  san check coco_2017_val_panoptic
  san check --dataset my_set.yaml --out output/check

Exit codes: 0 all is well, 1 something is wrong, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from san.cli.options import add_dataset_options, path_option
from san.data.checking import (
    CheckReport,
    CheckTarget,
    Finding,
    Folder,
    PairResult,
    check_annotations,
    check_folders,
    check_pairs,
    failed_report,
    format_classes,
    format_report,
    make_target,
    summarise,
    write_check_report,
    write_classes,
)
from san.data.pairing import is_panoptic
from san.data.panoptic import read_class_map
from san.data.subset import evenly_spread
from san.io.image_files import read_image, read_label_map
from san.visualize import contact_sheet, drawing, plot_pixel_histogram

if TYPE_CHECKING:
    from san.d2.data.loaders import Record

_RULE = "─" * 100
_HIDDEN = {"size_mismatch", "segment_ids"}  # findings about pairs that are not drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data sets; those of --dataset by default")
    add_dataset_options(parser)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="reading processes (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="read only N pairs, spread evenly (default: all)"
    )
    parser.add_argument(
        "--samples", type=int, default=6, metavar="N", help="rows of samples.png (default: %(default)s)"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="the folders hold a part of the published set: fewer pairs and classes that never occur are not wrong",
    )
    parser.add_argument(
        "--out", type=path_option, default=Path("output/check"), help="folder to write to (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    try:
        names = _names(args)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reports = []
    for name in names:
        print(f"{_RULE}\n{name}", flush=True)
        reports.append(_check(name, args))
    if len(reports) > 1:
        print(f"{_RULE}\n{_overview(reports)}")
    return 0 if all(report.ok for report in reports) else 1


def _names(args: argparse.Namespace) -> list[str]:
    """Register and return the data sets to check; refuse a wrong command line."""
    from san.d2.data.datasets import check_names, metadata_of, register_custom_files, register_datasets

    for option, least in (("workers", 1), ("limit", 0), ("samples", 0)):
        value = getattr(args, option)
        if value < least:
            raise ValueError(f"--{option} is {value}; give {least} or more")
    register_datasets(args.data_root or None)
    registered = register_custom_files(args.dataset)
    names = list(dict.fromkeys(args.names or registered))
    if not names:
        raise ValueError("no data set is named; give names such as voc_sem_seg_val, or --dataset FILE for your own")
    check_names(names, "the command line")
    for name in names:
        metadata_of(name)  # raises for data sets without class names
    return names


def _check(name: str, args: argparse.Namespace) -> CheckReport:
    """Check one data set, print and write the findings."""
    from san.d2.data.datasets import prepare_shapes

    target = _target(name, partial=args.partial)
    folder = args.out / name
    start = time.perf_counter()
    try:
        prepare_shapes([name], args.data_root)
        pairs, annotation_findings = _pairs(name)
    except (ValueError, OSError) as error:
        report = failed_report(target, error, _folder_findings(target))
        write_check_report(report, folder / "report.json")
        print(format_report(report))
        return report
    positions = evenly_spread(range(len(pairs)), args.limit)
    results = check_pairs(pairs, target, positions=positions, workers=min(args.workers, len(positions)))
    shown = _ShownPairs()
    seldom = 0.1 if sys.stderr.isatty() else 10.0  # seconds; in a log file every update is a line
    bar = tqdm(results, name, len(positions), unit="pair", leave=False, dynamic_ncols=True, mininterval=seldom)
    report = summarise(target, pairs, shown.watch(bar), [*_folder_findings(target), *annotation_findings])
    seconds = time.perf_counter() - start
    write_check_report(report, folder / "report.json")
    write_classes(report, folder / "classes.csv")
    pixels = dict(zip(target.classes, report.class_pixels.tolist(), strict=True))
    with drawing(folder / "classes.png"):
        plot_pixel_histogram(pixels, folder / "classes.png", title=f"Pixels per class, {name}")
    with drawing(folder / "samples.png"):
        _write_samples(pairs, shown.choose(args.samples), target, folder / "samples.png")
    print(f"{format_classes(report)}\n\n{format_report(report, seconds=seconds)}, see {folder}", flush=True)
    return report


def _pairs(name: str) -> tuple[list[Record], list[Finding]]:
    """Return the pairs of a data set, even if names are ambiguous, and findings about a panoptic set's JSON file."""
    from san.d2.data.datasets import load_records, metadata_of, pairing_of

    metadata = metadata_of(name)
    if metadata.get("files") is None:  # registered by other code
        return load_records(name), []
    pairing = pairing_of(name)
    panoptic = metadata.evaluator_type == "panoptic_seg"
    findings = check_annotations(pairing, Path(metadata.sem_seg_root), metadata.label_ext) if panoptic else []
    return [dict(pair) for pair in pairing.pairs], findings


def _target(name: str, *, partial: bool) -> CheckTarget:
    """Return what a registered data set is checked against."""
    from san.d2.data.datasets import metadata_of

    metadata = metadata_of(name)
    mapping = metadata.get("label_mapping")
    return make_target(name, metadata.stuff_classes, metadata.ignore_label, mapping, partial=partial)


def _folder_findings(target: CheckTarget) -> list[Finding]:
    """Return findings about file names; none if the data set is a list of files, or a folder is missing."""
    from san.d2.data.datasets import metadata_of

    metadata = metadata_of(target.name)
    sides = []
    for root, ext in (("image_root", "image_ext"), ("sem_seg_root", "label_ext")):
        folder, endings = metadata.get(root), metadata.get(ext)
        if not folder or not endings or not Path(folder).is_dir():
            return []
        sides.append(Folder(Path(folder), (endings,) if isinstance(endings, str) else tuple(endings)))
    return check_folders(*sides, shared_images=target.shared_images)


class _ShownPairs:
    """Iterates over results, and records which pairs can be shown."""

    def __init__(self) -> None:
        self.upright: list[int] = []
        self.rotated: list[int] = []

    def watch(self, results: Iterable[PairResult]) -> Iterator[PairResult]:
        """Yield the results."""
        for result in results:
            if result.size and result.values.size and not _HIDDEN & {each.kind for each in result.findings}:
                same_way_up = self.rotated if result.rotated else self.upright
                same_way_up.append(result.index)
            yield result

    def choose(self, number: int) -> list[int]:
        """Return positions spread over the data set; up to half are rotated images, whose labels are worth a look."""
        upright, rotated = sorted(self.upright), sorted(self.rotated)
        num_rotated = min(len(rotated), max(number // 2, number - len(upright)))
        chosen = evenly_spread(rotated, num_rotated) if num_rotated else []
        if number > num_rotated:
            chosen += evenly_spread(upright, number - num_rotated)
        return sorted(chosen)


def _write_samples(records: list[Record], positions: list[int], target: CheckTarget, path: Path) -> None:
    """Draw the contact sheet of some pairs, which were read without errors."""
    samples = []
    for position in positions:
        record = records[position]
        if is_panoptic(record):
            labels = read_class_map(record, target.ignore_label)
        else:
            labels = read_label_map(record["sem_seg_file_name"])
        if target.label_mapping is not None:
            labels = target.label_mapping.apply(labels)
        samples.append((Path(record["file_name"]).name, read_image(record["file_name"]), labels))
    if samples:
        contact_sheet(samples, target.classes, path)


def _overview(reports: list[CheckReport]) -> str:
    """Return one line per data set."""
    width = max(len(report.target.name) for report in reports)
    lines = []
    for report in reports:
        wrong = sum(finding.wrong for finding in report.findings)
        verdict = "ok" if report.ok else f"NOT OK, {wrong:,} {'thing' if wrong == 1 else 'things'} wrong"
        lines.append(f"{report.target.name:<{width}}  {report.num_listed:>9,} pairs  {verdict}")
    return "\n".join(lines)
