"""Class names and label encodings of the benchmarks and the shapes world, stored as JSON files in `labels/`.

Legend: C classes; the class index of a name is its position in `LabelSet.classes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from san.io.errors import brief_repr, excerpt, listed

LABEL_SETS = (
    "coco_stuff_171",
    "voc_20",
    "pascal_context_59",
    "pascal_context_459",
    "ade20k_150",
    "ade20k_847",
    "coco_panoptic_133",
    "shapes_36",
)

NAMES = ("default", "expanded")
"""Texts of a label set's classes: the published names, or synonyms of the project's own (docs/beyond.md#names)."""


@dataclass(frozen=True)
class LabelSet:
    """Names and pixel values of one benchmark's classes.

    Attributes:
        name: file stem in `labels/`.
        title: displayed name.
        classes: C names in class-index order, as passed to the text encoder; a name with commas is not split.
        ignore_label: value of pixels without a class in the converted label maps.
        label_dtype: "uint8" or "uint16", the pixel type of the converted label maps.
        raw_values: value of each class in the downloaded annotation; every other value becomes `ignore_label`.
        raw_values_are: place of those values in the download.
        things: names of the classes that are things, each instance of which is a segment, in the order of the
            download's instance numbers; the others are stuff. () if the benchmark does not distinguish them.
        official_names: name in the download -> name in `classes`, where the download's is no plain word.
        category_ids: COCO's category ids, used in prediction files instead of class indices; None for other sets.
        official_numbers: PASCAL Context's 1-based numbers of the 59 classes, in a different order; None for other sets.
        absent_in_val: classes without a pixel in the validation images.
        groups: group name -> class names; the mean IoU of each group is reported as well.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    ignore_label: int
    label_dtype: str
    raw_values: tuple[int, ...]
    raw_values_are: str
    things: tuple[str, ...] = ()
    official_names: Mapping[str, str] = field(default_factory=dict)
    category_ids: tuple[int, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    official_numbers: tuple[int, ...] | None = None
    absent_in_val: tuple[int, ...] = ()

    __repr__ = brief_repr

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)


@cache
def load_label_set(name: str) -> LabelSet:
    """Load one of `LABEL_SETS` by name.

    Raises:
        ValueError: the label set does not exist.
    """
    if name not in LABEL_SETS:
        near = get_close_matches(name[:100], LABEL_SETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown label set {excerpt(name)}; {hint}the label sets are {', '.join(LABEL_SETS)}")
    record = json.loads((files("san.vocabulary") / "labels" / f"{name}.json").read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
    return LabelSet(name=name, **fields)


@cache
def expanded_names(name: str) -> Mapping[str, tuple[str, ...]]:
    """Return the texts that replace a class's name, by class, of one of `LABEL_SETS`; other classes keep their name.

    Raises:
        ValueError: the label set does not exist.
    """
    load_label_set(name)
    record = json.loads((files("san.vocabulary") / "labels" / "expanded.json").read_text(encoding="utf-8"))
    return {each: tuple(texts) for each, texts in record[name].items()}


def check_label_values(
    values: Iterable[int], num_classes: int, ignore_label: int | None, *, source: str = "the label map"
) -> None:
    """Check that values are class indices or the ignore label.

    Args:
        values: distinct values.
        num_classes: C; 0..C-1 are legal.
        ignore_label: also legal; None if no value may be ignored, as in predictions.
        source: file name or other source of the values, for the message.

    Raises:
        ValueError: a value is neither; the message names the source, the values, and the legal values.
    """
    wrong = sorted(v for v in map(int, values) if not 0 <= v < num_classes and v != ignore_label)
    if wrong:
        legal = f"0..{num_classes - 1}" + ("" if ignore_label is None else f" and the ignore label {ignore_label}")
        raise ValueError(
            f"{source} holds the value {listed(wrong, 5)} but only {legal} are legal: convert the labels to class "
            "indices (see docs/datasets.md), or correct the dataset's class list or ignore label"
        )
