"""Reads one image and its label map, and reports their problems.  (H, W) label map, sizes (height, width)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.label_mapping import LabelMapping
from san.data.label_maps import needs_16_bits
from san.data.pairing import is_panoptic, label_file
from san.data.panoptic import class_map, read_segment_ids, unlisted_ids
from san.io.errors import listed, one_line
from san.io.image_files import open_image, orientation, read_image, read_label_map

Array = npt.NDArray[Any]
ImagePair = Mapping[str, Any]

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_WIDEST_COUNT = 1 << 16
_NUM_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One observation about a data set.

    Attributes:
        kind: a key of `san.data.checking.report.HEADLINES`.
        message: one line, without the file's name.
        file: the file; None for the data set as a whole.
        wrong: True for an error, False for a note.
    """

    kind: str
    message: str
    file: str | None = None
    wrong: bool = True


@dataclass(frozen=True)
class CheckTarget:
    """The expected properties of a data set.

    Attributes:
        name: registered name.
        classes: C names; a label map's value is an index into them.
        ignore_label: value of pixels without a class.
        num_pairs: number of pairs of the published set; None if unknown.
        absent: classes without a pixel in the published set; None if unknown.
        partial: the set is a part of the published one: fewer pairs and absent classes are not errors.
        label_mapping: values of the label files -> class indices; None if the files contain class indices.
        shared_images: images without a label map are not errors.
    """

    name: str
    classes: tuple[str, ...]
    ignore_label: int = 255
    num_pairs: int | None = None
    absent: frozenset[int] | None = None
    partial: bool = False
    label_mapping: LabelMapping | None = None
    shared_images: bool = True


@dataclass(frozen=True)
class PairResult:
    """Content of one image and its label map.

    Attributes:
        index: position in the records.
        findings: errors and notes.
        size: (height, width) of the upright image; None if it cannot be read.
        rotated: whether the image has an EXIF rotation.
        values: distinct values of the label map, ascending; empty if it cannot be read.
        counts: pixels of each value.
    """

    index: int
    findings: tuple[Finding, ...] = ()
    size: tuple[int, int] | None = None
    rotated: bool = False
    values: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def check_pair(index: int, record: ImagePair, target: CheckTarget) -> PairResult:
    """Read one pair and report its problems; never raises because of a file's content.

    Args:
        index: position in the records.
        record: of a semantic or a panoptic set.
        target: the expected properties.
    """
    image_file, labels_file = str(record["file_name"]), label_file(record)
    findings: list[Finding] = []
    size, turn = None, 1
    try:
        height, width, _ = read_image(image_file).shape
        size, turn = (height, width), _orientation(image_file)
    except Exception as error:  # a decoder may raise anything on a broken file
        findings.append(Finding("unreadable_image", _one_line(error, image_file), image_file))
    if turn != 1:
        message = f"EXIF orientation {turn}: upright it is {_by(size or ())}; see that its label map is upright"
        findings.append(Finding("rotated_image", message, image_file, wrong=False))
    try:
        if is_panoptic(record):
            labels, wrong = _read_segments(record, target)
            findings += wrong
        else:
            findings += _type_findings(labels_file, target)
            labels = read_label_map(labels_file)
    except Exception as error:
        if not any(finding.kind == "label_type" for finding in findings):
            findings.append(Finding("unreadable_label", _one_line(error, labels_file), labels_file))
        return PairResult(index, tuple(findings), size, turn != 1)
    if size is not None and labels.shape != size:
        findings.append(Finding("size_mismatch", _mismatch(size, labels.shape, turn, image_file), labels_file))
    if target.label_mapping is not None:
        try:
            findings += _unmapped_findings(labels, labels_file, target.label_mapping)
            labels = target.label_mapping.apply(labels, source=labels_file)
        except ValueError as error:
            findings.append(Finding("illegal_values", _one_line(error, labels_file), labels_file))
            return PairResult(index, tuple(findings), size, turn != 1)
    values, counts = count_values(labels)
    findings += _value_findings(values, counts, labels_file, target)
    return PairResult(index, tuple(findings), size, turn != 1, values, counts)


def _read_segments(record: ImagePair, target: CheckTarget) -> tuple[Array, list[Finding]]:
    """Read the class map of a panoptic set's image (H, W), and compare the ids of its PNG with its annotation."""
    file, segments = label_file(record), record["segments_info"]
    ids = read_segment_ids(file)
    findings = []
    unlisted, counts = unlisted_ids(ids, segments)
    if len(unlisted):
        shown = [f"{number} ({count:,} px)" for number, count in zip(unlisted, counts, strict=True)]
        findings.append(Finding("segment_ids", f"ids that the annotation lacks: {listed(shown, _NUM_SHOWN)}", file))
        ids = np.where(np.isin(ids, unlisted), 0, ids)
    empty = sorted({each["id"] for each in segments} - {*np.unique(ids).tolist()})
    if empty:
        message = f"ids of the annotation that have no pixel: {listed(empty, _NUM_SHOWN)}"
        findings.append(Finding("segment_ids", message, file))
    return class_map(ids, segments, target.ignore_label, file), findings


def count_values(labels: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct values of an integer array, ascending, and their counts."""
    flat = labels.ravel()
    if not flat.size or flat.min() < 0 or flat.max() >= _WIDEST_COUNT:
        values, counts = np.unique(flat, return_counts=True)
        return values.astype(np.int64), counts.astype(np.int64)
    every = np.bincount(flat)  # ten times as fast as sorting
    present = np.flatnonzero(every)
    return present.astype(np.int64), every[present].astype(np.int64)


def _one_line(error: Exception, file: str) -> str:
    """Return the error's text on one line, without the file name, which is shown separately."""
    text = one_line(error)
    for prefix in (f"image {file} ", f"label map {file} "):
        text = text.removeprefix(prefix)
    return text


def _orientation(path: str) -> int:
    """Return the EXIF orientation of an image, 1 for upright."""
    with open_image(path, f"image {path}") as image:
        return orientation(image)


def _mismatch(size: tuple[int, int], label_size: tuple[int, ...], turn: int, image_file: str) -> str:
    message = f"label map is {_by(label_size)} but its image {image_file} is {_by(size)} (height x width)"
    if turn in _TURNED and label_size == size[::-1]:
        message += f"; it fits the image before the EXIF rotation (orientation {turn}): turn the label map too"
    return message


def _by(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)


def _type_findings(label_file: str, target: CheckTarget) -> list[Finding]:
    """Check the file type of a label map."""
    with open_image(label_file, f"label map {label_file}") as image:
        mode, kind = image.mode, image.format
    findings = []
    if kind in ("JPEG", "MPO"):
        findings.append(Finding("label_type", "is a JPEG, which changes values; save label maps as PNG", label_file))
    if needs_16_bits(len(target.classes), target.label_mapping) and not mode.startswith("I"):
        message = f"has 8 bits (mode {mode}), too few for {len(target.classes)} classes; convert it again"
        findings.append(Finding("label_type", message, label_file))
    return findings


def _unmapped_findings(raw: Array, label_file: str, mapping: LabelMapping) -> list[Finding]:
    """Report values that are ignored because the mapping does not list them."""
    values = mapping.unmapped_values(raw) if mapping.unmapped == "ignore" else []
    if not values:
        return []
    return [Finding("unmapped_values", listed(values, _NUM_SHOWN), label_file, wrong=False)]


def _value_findings(values: Array, counts: Array, label_file: str, target: CheckTarget) -> list[Finding]:
    """Report values outside the label set, and label maps without a labelled pixel."""
    legal = (values >= 0) & (values < len(target.classes))
    wrong = ~legal & (values != target.ignore_label)
    if wrong.any():
        shown = [f"{value} ({count:,} px)" for value, count in zip(values[wrong], counts[wrong], strict=True)]
        allowed = f"allowed are 0..{len(target.classes) - 1} and the ignore label {target.ignore_label}"
        return [Finding("illegal_values", f"{listed(shown, _NUM_SHOWN)}; {allowed}", label_file)]
    if not legal.any():
        return [Finding("nothing_labelled", "no pixel has a class", label_file, wrong=False)]
    return []
