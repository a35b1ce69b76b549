"""Panoptic segments of a segmentation: from the queries of its evidence, or from components of its label map.

(H, W) image, R segments, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from san.inference.evidence import Evidence
from san.io.errors import excerpt, require_extra
from san.labelling.regions import Region, RegionMap, RegionOptions, find_regions
from san.panoptic_merge import PanopticOptions, merge_queries
from san.vocabulary.vocabulary import Vocabulary

SegmentOrigin = Literal["components", "queries", "connected"]
"""What the segments of things are: connected components of the label map, masks of the network's queries, or connected
components of these masks."""

SEMANTIC = PanopticOptions(object_threshold=0.2, connected=True)
"""For models that were trained on semantic labels; docs/panoptic.md#semantic says how they were chosen."""


@dataclass(frozen=True, eq=False)
class ImageSegment(Region):
    """One segment of a panoptic segmentation: a thing, or all pixels of a class of stuff.

    Attributes:
        name: of its class.
        isthing: whether its class is a thing.
        query: number of its mask proposal; None for a component of the label map.
    """

    name: str
    isthing: bool
    query: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the mask, for JSON; the box is left, top, width, height."""
        return {
            "name": self.name,
            "index": self.label,
            "isthing": self.isthing,
            "score": self.score,
            "area": self.area,
            "box": list(self.box),
            "query": self.query,
        }


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """All segments of an image.

    Attributes:
        regions: their pixels, classes and scores; a score is the class probability of the query, or the mean score of
            the pixels of a component.
        queries: (R,) int64, the query of each; None for components.
        things: class indices.
    """

    regions: RegionMap
    queries: npt.NDArray[np.int64] | None
    things: tuple[int, ...]

    def segments(self, vocabulary: Vocabulary) -> tuple[ImageSegment, ...]:
        """Return the segments in order of their ids."""
        return tuple(
            ImageSegment(
                each.label,
                each.score,
                each.top,
                each.left,
                each.crop,
                each.size,
                vocabulary.names[each.label],
                each.label in self.things,
                None if self.queries is None else int(self.queries[index]),
            )
            for index, each in enumerate(self.regions.regions())
        )


def merging_options(
    *, connected: bool = False, object_threshold: float | None = None, overlap_threshold: float | None = None
) -> PanopticOptions:
    """Return thresholds of merging; those that are None are the usual ones, with `connected` those of `SEMANTIC`."""
    usual = SEMANTIC if connected else PanopticOptions()
    return PanopticOptions(
        usual.object_threshold if object_threshold is None else object_threshold,
        usual.overlap_threshold if overlap_threshold is None else overlap_threshold,
        connected,
    )


def query_segments(
    evidence: Evidence, vocabulary: Vocabulary, merging: PanopticOptions, options: RegionOptions
) -> SegmentMap:
    """Merge the queries of one view to segments.

    Args:
        evidence: of one view.
        vocabulary: its classes; segments of context classes are left out.
        merging: thresholds of `merge_queries`.
        options: things, and which segments are dropped.

    Raises:
        ValueError: there are several views.
        MissingExtraError: SciPy or Shapely cannot be imported.
    """
    if evidence.others:
        raise ValueError(
            f"segments of queries are of one view, but {len(evidence.views)} were averaged (sizes, mirror images or "
            "models), whose queries do not belong together; predict with one size and model, without flip, or take "
            "segments of components"
        )
    require_extra("label", "panoptic segments", "scipy", "shapely")
    things = options.things or ()
    found = merge_queries(evidence.views[0], things, merging)
    free = found.labels < len(vocabulary.free)
    table = np.concatenate([[0], np.where(free, np.cumsum(free), 0)]).astype(np.int32)
    ids = table[found.ids]
    regions = RegionMap(ids, found.labels[free], found.scores[free], np.zeros(ids.shape, bool)).filtered(options)
    left = np.unique(ids[regions.ids > 0]) - 1
    return SegmentMap(regions, found.queries[free][left], things)


def component_segments(
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32] | None,
    vocabulary: Vocabulary,
    options: RegionOptions,
) -> SegmentMap:
    """Return the connected components of things, and the classes of stuff, of a label map (H, W)."""
    return SegmentMap(find_regions(labels, scores, len(vocabulary.free), options), None, options.things or ())


def check_source(source: str, *, has_evidence: bool) -> None:
    """Raise unless segments can be made from a `SegmentOrigin`.

    Raises:
        ValueError: it is unknown, or needs queries that are not known.
    """
    known = get_args(SegmentOrigin)
    if source not in known:
        raise ValueError(f"the source of segments is {excerpt(source)}; give one of {', '.join(known)}")
    if source != "components" and not has_evidence:
        raise ValueError(
            "this segmentation has a label map only, without queries; take one that a Predictor made, or segments of "
            "components"
        )


def check_segment_sizes(segments: Iterable[Region], size: tuple[int, int]) -> None:
    """Raise unless segments are of images of a size (H, W).

    Raises:
        ValueError: one is not.
    """
    for each in segments:
        if each.size != size:
            raise ValueError(
                f"a segment is of an image of {each.size[0]}x{each.size[1]} (height x width), but this one has "
                f"{size[0]}x{size[1]}; give the segments of this image"
            )


def id_map(segments: Sequence[Region], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return (H, W) ids 1, 2, ... of segments in their order; 0 for pixels of none.

    Raises:
        ValueError: see `check_segment_sizes`.
    """
    check_segment_sizes(segments, size)
    ids = np.zeros(size, np.int32)
    for number, each in enumerate(segments, start=1):
        left, top, width, height = each.box
        ids[top : top + height, left : left + width][each.crop] = number
    return ids
