"""Summarises the check of a data set: counts, findings and the per-class histogram.  C classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.checking.pair import CheckTarget, Finding, ImagePair, PairResult
from san.data.label_maps import doubt_about_masks
from san.data.pairing import label_file

HEADLINES = {
    "no_data": "the data set cannot be read",
    "wrong_count": "the number of pairs is not the published one",
    "unreadable_image": "images that cannot be read",
    "unreadable_label": "label maps that cannot be read",
    "size_mismatch": "label maps of another size than their image",
    "illegal_values": "label maps with values outside the label set",
    "segment_ids": "segment ids of a PNG and its annotation that differ",
    "label_type": "label maps of a wrong file type",
    "doubtful_masks": "masks of two values instead of class indices",
    "duplicate_stem": "names that occur more than once",
    "repeated_file": "files that are in the data set more than once",
    "label_without_image": "label maps without an image",
    "image_without_label": "images without a label map",
    "skipped_file": "files and folders that are skipped",
    "absent_class": "classes that never occur",
    "absent_as_published": "classes that never occur, as in the published set",
    "unexpected_class": "classes that occur but have no pixel in the published set",
    "rotated_image": "images with an EXIF rotation",
    "unmapped_values": "label maps with values that label_mapping does not list, ignored",
    "nothing_labelled": "label maps without a labelled pixel",
}
"""Headline of each kind of finding, in display order."""


@dataclass(frozen=True)
class CheckReport:
    """The findings and the histogram of a data set.

    Attributes:
        target: the expected properties.
        num_listed: number of pairs of the data set.
        num_checked: number of pairs that were read.
        findings: findings about the set, then about the files in the order of the records.
        class_pixels: (C,) pixels of each class.
        class_images: (C,) label maps that contain each class.
        ignored_pixels: pixels with the ignore label.
        outside_pixels: pixels with a value that is neither a class nor the ignore label.
        smallest, largest: (height, width) of the images with the fewest and the most pixels; None if none was read.
    """

    target: CheckTarget
    num_listed: int
    num_checked: int
    findings: tuple[Finding, ...]
    class_pixels: npt.NDArray[np.int64]
    class_images: npt.NDArray[np.int64]
    ignored_pixels: int = 0
    outside_pixels: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.wrong for finding in self.findings)

    def kinds(self) -> list[tuple[str, bool, list[Finding]]]:
        """Return the findings as (kind, whether wrong, findings): errors first, in the order of `HEADLINES`."""
        order = list(HEADLINES)
        groups: dict[tuple[bool, int], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((not finding.wrong, order.index(finding.kind)), []).append(finding)
        return [(order[index], not fine, groups[fine, index]) for fine, index in sorted(groups)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return {
            "data_set": self.target.name,
            "ok": self.ok,
            "pairs": self.num_listed,
            "published_pairs": self.target.num_pairs,
            "checked": self.num_checked,
            "smallest_image": self.smallest,
            "largest_image": self.largest,
            "ignore_label": self.target.ignore_label,
            "ignored_pixels": self.ignored_pixels,
            "outside_pixels": self.outside_pixels,
            "classes": [
                {"index": index, "name": name, "pixels": pixels, "images": images}
                for index, (name, pixels, images) in enumerate(
                    zip(self.target.classes, self.class_pixels.tolist(), self.class_images.tolist(), strict=True)
                )
            ],
            "findings": [
                {"kind": kind, "wrong": wrong, "file": finding.file, "message": finding.message}
                for kind, wrong, findings in self.kinds()
                for finding in findings
            ],
        }


def summarise(
    target: CheckTarget,
    records: Sequence[ImagePair],
    results: Iterable[PairResult],
    findings: Iterable[Finding] = (),
) -> CheckReport:
    """Build the report of the results.

    Args:
        target: the expected properties.
        records: all pairs of the data set.
        results: results of `check_pairs`, in any order, at most one per record.
        findings: about the data set's folders, from `san.data.checking.folders`.
    """
    num_classes = len(target.classes)
    pixels, images = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    ignored = outside = num_checked = 0
    sizes: list[tuple[int, int]] = []
    found: list[tuple[int, Finding]] = []
    for result in results:
        num_checked += 1
        found += [(result.index, finding) for finding in result.findings]
        if result.size:
            sizes = _extremes([*sizes, result.size])
        legal = (result.values >= 0) & (result.values < num_classes)
        is_ignored = result.values == target.ignore_label
        pixels[result.values[legal]] += result.counts[legal]
        images[result.values[legal]] += 1
        ignored += int(result.counts[is_ignored].sum())
        outside += int(result.counts[~legal & ~is_ignored].sum())
    all_findings = [
        *_count_findings(target, len(records)),
        *_repeat_findings(records),
        *findings,
        *_absence_findings(target, pixels, whole=num_checked == len(records)),
        *_mask_findings(target, pixels, ignored),
        *(finding for _, finding in sorted(found, key=lambda pair: pair[0])),
    ]
    ends = (sizes[0], sizes[-1]) if sizes else (None, None)
    return CheckReport(target, len(records), num_checked, tuple(all_findings), pixels, images, ignored, outside, *ends)


def failed_report(target: CheckTarget, error: Exception, findings: Iterable[Finding] = ()) -> CheckReport:
    """Build the report if the pairs of a data set cannot be listed, with the findings about its folders."""
    nothing = np.zeros(len(target.classes), np.int64)
    return CheckReport(target, 0, 0, (Finding("no_data", str(error)), *findings), nothing, nothing)


def _count_findings(target: CheckTarget, num_listed: int) -> list[Finding]:
    if target.num_pairs is None or num_listed == target.num_pairs:
        return []
    message = f"{num_listed:,} pairs, but the published set has {target.num_pairs:,}"
    return [Finding("wrong_count", message, wrong=num_listed > target.num_pairs or not target.partial)]


def _repeat_findings(records: Sequence[ImagePair]) -> list[Finding]:
    findings = []
    images = Counter(str(record["file_name"]) for record in records)
    for kind, files in (("image", images), ("label map", Counter(map(label_file, records)))):
        for file, count in files.items():
            if count > 1:
                findings.append(Finding("repeated_file", f"{kind} of {count} pairs", file))
    return findings


def _absence_findings(target: CheckTarget, pixels: npt.NDArray[np.int64], *, whole: bool) -> list[Finding]:
    """Report classes that never occur, and those that occur unexpectedly.

    They are errors only if the absent classes of the published set are known and the whole set was read.
    """
    findings = []
    expected = target.absent or frozenset()
    for index, name in enumerate(target.classes):
        if pixels[index] and index in expected:
            message = f"{index} {name} ({pixels[index]:,} px): is the order of the classes right?"
            findings.append(Finding("unexpected_class", message, wrong=not target.partial))
        elif not pixels[index] and index in expected:
            findings.append(Finding("absent_as_published", f"{index} {name}", wrong=False))
        elif not pixels[index]:
            wrong = target.absent is not None and whole and not target.partial
            findings.append(Finding("absent_class", f"{index} {name}", wrong=wrong))
    return findings


def _mask_findings(target: CheckTarget, pixels: npt.NDArray[np.int64], ignored: int) -> list[Finding]:
    """Report masks of two values instead of class indices, which may be intended."""
    values = [*np.flatnonzero(pixels).tolist(), *([target.ignore_label] if ignored else [])]
    doubt = doubt_about_masks(values, target.ignore_label, target.label_mapping)
    return [Finding("doubtful_masks", doubt, wrong=False)] if doubt else []


def _extremes(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the sizes with the fewest and the most pixels."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]
