"""Merges the queries of an image to panoptic segments, and lists its instances, as MaskFormer and Mask2Former do.

Sources: arXiv 2107.06278, section 3.4, and arXiv 2112.01527. Legend: Q queries, K kept queries, C classes, R segments,
(H, W) output. A query's mask is where its mask probability is above 0.5. Masks are computed band by band (all kept
queries), or a few at a time (single masks), so that memory is bounded for any output size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from san.io.errors import brief_repr, require_extra
from san.postprocess import View, mask_bands, query_probs
from san.record import Options, option
from san.torch_defaults import torch_defaults

MAX_INSTANCES = 100
"""Pairs of query and class that become instances of an image, as in COCO's evaluation."""

_BAND_VALUES = 2**22  # mask probabilities in memory at a time
_MAX_WIDTH = 8192  # of a band of `mask_bands`

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PanopticOptions(Options):
    """How queries become segments."""

    PLACE: ClassVar[str] = "panoptic."
    object_threshold: float = option(
        0.8, "a query is used if its best class is not 'no object' and has at least this probability", least=0, most=1
    )
    overlap_threshold: float = option(
        0.8, "a query keeps its segment if it wins at least this share of its mask's pixels", least=0, most=1
    )
    connected: bool = option(
        False,
        "each connected component of a thing's mask is a segment; for checkpoints trained on semantic labels, whose "
        "queries show all things of a class",
    )


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """The segments of an image.

    Attributes:
        ids: (H, W) int32, 1..R; 0 for no segment.
        labels: (R,) int64, class index of each segment.
        scores: (R,) float32, class probability of its query.
        queries: (R,) int64, its query; of stuff that several queries show, the one with the highest probability.
    """

    ids: Ids
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    queries: npt.NDArray[np.int64]

    __repr__ = brief_repr


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing that a query shows; instances may overlap.

    Attributes:
        label: class index.
        score: class probability times mean mask probability, 0..1.
        mask: (H, W) bool, not empty.
    """

    label: int
    score: float
    mask: npt.NDArray[np.bool_]

    __repr__ = brief_repr


@torch_defaults()
@torch.no_grad()
def merge_queries(
    view: View, things: Collection[int], options: PanopticOptions | None = None, *, shrink: int = 1
) -> PanopticMap:
    """Merge queries to segments that do not overlap.

    Every pixel goes to the query with the highest product of class probability and mask probability. A query's segment
    is what it wins of its own mask, if that is enough (`PanopticOptions.overlap_threshold`). Segments of one class of
    stuff are joined.

    Args:
        view: of an image; its weight is not used.
        things: class indices; the others are stuff.
        options: thresholds.
        shrink: factor by which the band height is reduced to save memory.

    Raises:
        ValueError: the shapes of the view do not match.
        MissingExtraError: SciPy, for connected components, cannot be imported.
    """
    options = options or PanopticOptions()
    score, label = query_probs([view]).max(dim=1)  # (Q,) each
    kept = (label < view.class_logits.shape[1] - 1) & (score >= options.object_threshold)
    queries = kept.nonzero().squeeze(1)  # (K,)
    winners, sizes = _winners(view, queries, score[queries], shrink)
    labels, scores = label[queries].cpu().numpy(), score[queries].cpu().numpy()
    wins = np.bincount(winners.ravel() + 1, minlength=len(sizes) + 1)[1:]
    enough = (wins > 0) & (wins / sizes.clip(1) >= options.overlap_threshold)
    apart = np.isin(labels, [*things]) if options.connected else np.zeros(len(labels), bool)
    ids, of_segment = _segments_of_queries(winners, labels, scores, enough & ~apart, things)
    if apart.any():
        masks = _mask_probs(view, queries[torch.from_numpy(apart).to(queries.device)], shrink)
        for index, probs in zip(np.flatnonzero(apart).tolist(), masks, strict=True):
            count = _add_components(ids, probs > 0.5, winners == index, len(of_segment), options.overlap_threshold)
            of_segment += [index] * count
    place = np.array(of_segment, np.int64)
    return PanopticMap(ids, labels[place], scores[place], queries.cpu().numpy()[place])


def find_instances(
    view: View, things: Collection[int], *, connected: bool = False, limit: int = MAX_INSTANCES, shrink: int = 1
) -> Iterator[Instance]:
    """Yield the instances of things, which may overlap: the most probable pairs of a query and a class.

    Args:
        view: of an image.
        things: class indices.
        connected: every connected component of a mask is an instance.
        limit: number of pairs.
        shrink: see `merge_queries`.

    Raises:
        ValueError, MissingExtraError: see `merge_queries`.
    """
    classes = sorted(things)
    if not classes:
        return
    probs = _thing_probs(view, classes)  # (Q, T)
    best = probs.flatten().sort(descending=True, stable=True).indices[:limit]
    pairs: dict[int, list[int]] = {}
    for query, place in zip((best // len(classes)).tolist(), (best % len(classes)).tolist(), strict=True):
        pairs.setdefault(query, []).append(place)
    queries = torch.tensor(sorted(pairs), dtype=torch.int64, device=view.class_logits.device)
    for query, mask_probs in zip(sorted(pairs), _mask_probs(view, queries, shrink), strict=True):
        for mask in _parts_of(mask_probs > 0.5, connected):
            mask_score = float(mask_probs[mask].mean(dtype=np.float64))
            for place in pairs[query]:
                yield Instance(classes[place], float(probs[query, place]) * mask_score, mask)


def _rows(num_values: int, width: int, shrink: int) -> int:
    """Return the height of a band of some values per pixel."""
    return max(1, _BAND_VALUES // shrink // (max(1, num_values) * min(width, _MAX_WIDTH)))


def _own(view: View, queries: Tensor) -> View:
    """Return a view of some queries alone."""
    return replace(view, mask_logits=view.mask_logits[queries], class_logits=view.class_logits[queries])


def _winners(
    view: View, queries: Tensor, scores: Tensor, shrink: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return which kept query wins each pixel, (H, W), -1 outside its mask; and the pixels of each mask, (K,)."""
    height, width = view.geometry.output_size
    winners = torch.full((height, width), -1, dtype=torch.int32, device=scores.device)
    sizes = torch.zeros(len(queries), dtype=torch.int64, device=scores.device)
    if len(queries):
        for rows, columns, probs in mask_bands([_own(view, queries)], _rows(3 * len(queries), width, shrink)):
            inside = probs > 0.5  # (K, rows, columns)
            sizes += inside.flatten(1).sum(dim=1)
            best = (probs * scores[:, None, None]).argmax(dim=0)  # (rows, columns)
            winners[rows, columns] = best.masked_fill(~inside.gather(0, best[None])[0], -1).int()
    return winners.cpu().numpy(), sizes.cpu().numpy()


def _segments_of_queries(
    winners: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    used: npt.NDArray[np.bool_],
    things: Collection[int],
) -> tuple[Ids, list[int]]:
    """Return (H, W) ids, and the kept query of each segment; one segment per class of stuff."""
    table, of_segment, stuff = np.zeros(len(labels) + 1, np.int32), list[int](), dict[int, int]()
    for index in np.flatnonzero(used).tolist():
        label = int(labels[index])
        if label in stuff:
            number = stuff[label]
            if scores[index] > scores[of_segment[number - 1]]:
                of_segment[number - 1] = index
        else:
            of_segment.append(index)
            number = len(of_segment)
            if label not in things:
                stuff[label] = number
        table[index + 1] = number
    return table[winners + 1], of_segment


def _add_components(
    ids: Ids, mask: npt.NDArray[np.bool_], won: npt.NDArray[np.bool_], first: int, overlap_threshold: float
) -> int:
    """Write the components of a mask of which enough was won into `ids`, after id `first`; return their number."""
    components, count = _label(mask)
    areas = np.bincount(components.ravel(), minlength=count + 1)
    wins = np.bincount(components[won], minlength=count + 1)
    enough = (wins > 0) & (wins / areas.clip(1) >= overlap_threshold)
    enough[0] = False
    table = np.where(enough, np.cumsum(enough) + first, 0).astype(np.int32)
    found = table[components[won]]
    ids[won] = np.where(found > 0, found, ids[won])
    return int(enough.sum())


def _mask_probs(view: View, queries: Tensor, shrink: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield (H, W) mask probabilities of each query."""
    height, width = view.geometry.output_size
    for part in queries.split(max(1, _BAND_VALUES // shrink // (height * width))):
        yield from _block(_own(view, part), _rows(len(part), width, shrink))


@torch_defaults()
@torch.no_grad()
def _block(view: View, num_rows: int) -> npt.NDArray[np.float32]:
    """Return (Q, H, W) mask probabilities of a view with few queries."""
    block = torch.empty((len(view.mask_logits), *view.geometry.output_size), device=view.mask_logits.device)
    for rows, columns, probs in mask_bands([view], num_rows):
        block[:, rows, columns] = probs
    return block.cpu().numpy()


@torch_defaults()
@torch.no_grad()
def _thing_probs(view: View, classes: list[int]) -> Tensor:
    """Return class probabilities (Q, T) of some classes, on the CPU."""
    return query_probs([view])[:, classes].cpu()


def _parts_of(mask: npt.NDArray[np.bool_], connected: bool) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield a mask that is not empty, or each of its connected components."""
    if not connected:
        if mask.any():
            yield mask
        return
    components, count = _label(mask)
    for number in range(1, count + 1):
        yield components == number


def _label(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], int]:
    """Return the components of a mask, connected by the sides of pixels: (H, W) of 0..n, and n."""
    require_extra("label", "finding connected components", "scipy")
    from scipy import ndimage

    components, count = ndimage.label(mask)
    return components, count
