"""The regions of a label map: one per class, or one per connected component, of all classes or of things alone.

(H, W) image, (h, w) the region's bounding box, R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.io.errors import brief_repr, excerpt, listed, require_extra
from san.vocabulary.classes import split_text, text_key
from san.vocabulary.label_sets import LABEL_SETS, load_label_set


@dataclass(frozen=True)
class RegionOptions:
    """Which parts of a label map become regions.

    Attributes:
        instances: every connected component is a region of its own; otherwise all pixels of a class are one region.
            Pixels are connected by their sides, not by their corners.
        min_area: connected components of fewer pixels are dropped.
        score_threshold: regions whose mean score is lower are dropped.
        things: with `instances`, class indices; the other classes, stuff, are one region each. None: all are things.

    Raises:
        ValueError: a value is negative, or there are `things` without `instances`.
    """

    instances: bool = False
    min_area: int = 0
    score_threshold: float = 0.0
    things: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, unit in (
            ("min_area", self.min_area, "a number of pixels"),
            ("score_threshold", self.score_threshold, "a score"),
        ):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; give {unit}, 0 or more")
        if self.things is not None and not self.instances:
            raise ValueError("things are given, but instances is False; set it to True")


@dataclass(frozen=True, eq=False)
class Region:
    """One class in one image, or one connected component of it.

    Attributes:
        label: class index.
        score: mean score of its pixels; None for a label map without scores.
        top, left: first row and column of its bounding box.
        crop: (h, w) bool, the region within its bounding box.
        size: (H, W) of the image.
    """

    label: int
    score: float | None
    top: int
    left: int
    crop: npt.NDArray[np.bool_]
    size: tuple[int, int]

    __repr__ = brief_repr

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.crop))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box: left, top, width, height in pixels."""
        height, width = self.crop.shape
        return self.left, self.top, width, height

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return (H, W) bool, a new array."""
        full = np.zeros(self.size, bool)
        left, top, width, height = self.box
        full[top : top + height, left : left + width] = self.crop
        return full


@dataclass(frozen=True, eq=False)
class RegionMap:
    """All regions of an image.

    Attributes:
        ids: (H, W) int32, 1..R where there is a region; 0 for pixels of no class, 0 also for dropped ones.
        labels: (R,) class index of each region.
        scores: (R,) float32, mean score of each region's pixels; NaN for a label map without scores.
        dropped: (H, W) bool, pixels of a class whose region or component was dropped.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    dropped: npt.NDArray[np.bool_]

    __repr__ = brief_repr

    def regions(self) -> Iterator[Region]:
        """Yield the regions in order."""
        from scipy import ndimage

        size = (self.ids.shape[0], self.ids.shape[1])
        for index, place in enumerate(ndimage.find_objects(self.ids)):
            score = float(self.scores[index])
            yield Region(
                label=int(self.labels[index]),
                score=None if np.isnan(score) else score,
                top=place[0].start,
                left=place[1].start,
                crop=self.ids[place] == index + 1,
                size=size,
            )

    def class_map(self, *, first: int, none: int, dropped: int) -> npt.NDArray[np.int64]:
        """Return (H, W), the class of each pixel.

        Args:
            first: value of class 0; class 1 is one more.
            none: value of pixels without a class.
            dropped: value of pixels whose region was dropped.
        """
        table = np.concatenate([[none], self.labels + first])
        return np.where(self.dropped, dropped, table[self.ids])

    def filtered(self, options: RegionOptions) -> RegionMap:
        """Return the regions without those that are too small or have a too low score, which count as dropped."""
        areas = np.bincount(self.ids.ravel(), minlength=len(self.labels) + 1)[1:]
        good = (areas >= options.min_area) & (np.isnan(self.scores) | (self.scores >= options.score_threshold))
        ids, labels = _kept(self.ids, self.labels, good)
        return RegionMap(ids, labels, self.scores[good], self.dropped | ((self.ids > 0) & (ids == 0)))

    def save(self, path: Path) -> None:
        """Write everything to an .npz file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file, ids=self.ids, labels=self.labels, scores=self.scores, dropped=np.packbits(self.dropped)
            )

    @staticmethod
    def load(path: Path) -> RegionMap:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, labels, scores = file["ids"], file["labels"], file["scores"]
                dropped = np.unpackbits(file["dropped"], count=ids.size).astype(bool).reshape(ids.shape)
        except (ValueError, KeyError, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and give --resume again") from error
        return RegionMap(ids, labels, scores, dropped)


def find_regions(
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any] | None,
    num_classes: int,
    options: RegionOptions,
) -> RegionMap:
    """Find the regions of a label map.

    Args:
        labels: (H, W) class indices; pixels outside 0..C-1 belong to no region.
        scores: (H, W), the score of each pixel's class; or None.
        num_classes: C.
        options: which regions.

    Raises:
        MissingExtraError: SciPy cannot be imported.
    """
    require_extra("label", "finding regions", "scipy", "shapely")
    known = (labels >= 0) & (labels < num_classes)
    ids, kinds = _components(labels, known) if options.instances or options.min_area else _classes(labels, known)
    areas = np.bincount(ids.ravel(), minlength=len(kinds) + 1)[1:]
    ids, kinds = _kept(ids, kinds, areas >= options.min_area)
    if not options.instances:
        ids, kinds = _classes(np.concatenate([[-1], kinds])[ids], ids > 0)
    elif options.things is not None:
        ids, kinds = _joined_stuff(ids, kinds, options.things)
    means = _means(ids, scores, len(kinds))
    good = np.isnan(means) | (means >= options.score_threshold)
    ids, kinds = _kept(ids, kinds, good)
    return RegionMap(ids, kinds, means[good], known & (ids == 0))


def class_indices(things: Iterable[str], names: Sequence[str]) -> tuple[int, ...]:
    """Return the class indices of things.

    Args:
        things: some of the names, written as CLIP reads them (see `text_key`).
        names: all classes, in index order.

    Raises:
        ValueError: a thing is not one of the names.
    """
    found = {text_key(name): index for index, name in enumerate(names)}
    indices = []
    for thing in [things] if isinstance(things, str) else things:
        if text_key(thing) not in found:
            raise ValueError(f"the thing {excerpt(thing)} is none of the classes {listed(map(excerpt, names), 10)}")
        indices.append(found[text_key(thing)])
    return tuple(sorted(set(indices)))


def thing_indices(things: str | Iterable[str] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the class indices of things as a user gives them.

    Args:
        things: names; a text that separates them by commas; or a label set's name, for its things among the names.
            None: those of the label set that the names are; all names if there is none, or without things.
        names: all classes, in index order.

    Raises:
        ValueError: a thing is none of the names, the text has none, or the label set has no thing among them.
    """
    if isinstance(things, str) and things.strip() in LABEL_SETS:
        known = load_label_set(things.strip()).things
        if not known:
            raise ValueError(f"the label set {things.strip()} does not distinguish things; give their names")
        keys = {text_key(name) for name in names}
        found = class_indices([each for each in known if text_key(each) in keys], names)
        if not found:
            raise ValueError(
                f"no thing of the label set {things.strip()} is among the classes {listed(map(excerpt, names), 5)}; "
                "give names of classes"
            )
        return found
    if isinstance(things, str) and not split_text(things):
        raise ValueError(f"the things {things!r} have no name; give names of classes, separated by commas")
    if things is not None:
        return class_indices(split_text(things) if isinstance(things, str) else things, names)
    for label_set in LABEL_SETS:
        found_set = load_label_set(label_set)
        if found_set.things and found_set.classes == tuple(names):
            return class_indices(found_set.things, names)
    return tuple(range(len(names)))


def _classes(
    labels: npt.NDArray[Any], known: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """One region per class with a pixel, in class order: ids (H, W), class of each (R,)."""
    kinds = np.unique(labels[known]).astype(np.int64)
    ids = np.where(known, np.searchsorted(kinds, labels) + 1, 0).astype(np.int32)
    return ids, kinds


def _components(
    labels: npt.NDArray[Any], known: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """One region per connected component, class by class: ids (H, W), class of each (R,)."""
    from scipy import ndimage

    ids = np.zeros(labels.shape, np.int32)
    kinds: list[int] = []
    for label in np.unique(labels[known]).tolist():
        found, count = ndimage.label(labels == label)
        inside = found > 0
        ids[inside] = found[inside] + len(kinds)
        kinds += [label] * count
    return ids, np.array(kinds, np.int64)


def _joined_stuff(
    ids: npt.NDArray[np.int32], kinds: npt.NDArray[np.int64], things: tuple[int, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Join the components of each class that is no thing; those of a class follow each other."""
    starts = np.isin(kinds, things) | (np.diff(kinds, prepend=-1) != 0)
    table = np.concatenate([[0], np.cumsum(starts)]).astype(np.int32)
    return table[ids], kinds[starts]


def _kept(
    ids: npt.NDArray[np.int32], kinds: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Drop regions, and number the others from 1."""
    table = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)
    return table[ids], kinds[keep]


def _means(ids: npt.NDArray[np.int32], scores: npt.NDArray[Any] | None, count: int) -> npt.NDArray[np.float32]:
    """(R,) mean score of each region, NaN without scores."""
    if scores is None:
        return np.full(count, np.nan, np.float32)
    sums = np.bincount(ids.ravel(), weights=scores.ravel().astype(np.float64), minlength=count + 1)
    means: npt.NDArray[np.float32] = (sums / np.bincount(ids.ravel(), minlength=count + 1).clip(1))[1:]
    return means.astype(np.float32)
