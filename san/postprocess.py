"""Converts mask and class logits to per-class scores or a label map (docs/method.md#7).

Legend: Q queries, C classes, (h_s, w_s) side grid, (H, W) requested output; a band is a run of output rows.

A result may combine several predictions of an image (scales, mirror images, models), each a `View`. The mean of their
scores is one sum over all their queries, so it is computed band by band, as for a single view.

Both resizes of docs/method.md#7.1 are linear and separable, so each axis is one small matrix, and any block of the
output can be computed independently: memory is bounded for any output size, side ratio and vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from san.io.errors import brief_repr
from san.torch_defaults import torch_defaults

_BLOCK_SIDE = 8192  # output pixels along each side of a block, which is computed band by band
_BAND_VALUES = 2**24  # mask probabilities and scores in memory at a time: 64 MB in float32
_CACHED_VALUES = 2**20  # on a CPU, for a label map: fits its cache
_TILE = 16  # output pixels along each side of a tile, for which classes are excluded
_TILE_ROWS = 2  # of tiles in a band
_FEW_CLASSES = 40  # with so few classes, excluding some is not faster; fewer with few queries


@dataclass(frozen=True)
class Geometry:
    """Sizes that connect an image's masks to its result, each (height, width) in pixels.

    Attributes:
        padded_size: size of the network's input batch.
        image_size: size of the image, in the upper left corner of the input; the rest is padding.
        output_size: size of the result.

    Raises:
        ValueError: a size is not positive, or the image is larger than the padded batch.
    """

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def __post_init__(self) -> None:
        if any(image > padded for image, padded in zip(self.image_size, self.padded_size, strict=True)):
            raise ValueError(f"image_size {self.image_size} exceeds padded_size {self.padded_size}; were they swapped?")
        if min(*self.image_size, *self.output_size) < 1:
            raise ValueError(f"image_size {self.image_size} and output_size {self.output_size} must be positive")


@dataclass(frozen=True, eq=False)
class View:
    """One prediction of an image: by one model, at one scale, of the image or of its mirror image.

    Attributes:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C+1), the last column "no object".
        geometry: sizes of the network's input, of the image in it, and of the result.
        mirrored: whether left and right were exchanged in the network's input; the result is mirrored back.
        weight: weight of this view in the mean over several views, 0 or more.
    """

    mask_logits: Tensor
    class_logits: Tensor
    geometry: Geometry
    mirrored: bool = False
    weight: float = 1.0

    __repr__ = brief_repr


def semantic_scores(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry, *, shrink: int = 1) -> Tensor:
    """Compute every class's score per pixel: sum over queries of softmax(class) * sigmoid(mask), without "no object".

    Args:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C+1), the last column "no object".
        geometry: sizes of the network's input, of the image in it, and of the result.
        shrink: factor by which the band height is reduced to save memory.

    Returns:
        (C, H, W) float32.

    Raises:
        ValueError: the shapes do not match.
    """
    return mean_scores([View(mask_logits, class_logits, geometry)], shrink=shrink)


def semantic_labels(mask_logits: Tensor, class_logits: Tensor, geometry: Geometry, *, shrink: int = 1) -> Tensor:
    """Compute the class of every pixel, (H, W) int64: argmax of `semantic_scores` without an array of C x H x W scores.

    For equal scores, the first class is taken, as in `torch.argmax`.
    """
    return mean_labels([View(mask_logits, class_logits, geometry)], shrink=shrink)[0]


@torch_defaults()
def mean_scores(views: Sequence[View], *, shrink: int = 1) -> Tensor:
    """Compute the weighted mean of the `semantic_scores` of several views of one image.

    Args:
        views: at least one; all with the same classes and output size.
        shrink: factor by which the band height is reduced to save memory.

    Returns:
        (C, H, W) float32.

    Raises:
        ValueError: there is no view, shapes do not match, or the weights have no mean.
    """
    class_probs = query_probs(views)[:, :-1]  # (Q, C)
    num_rows = _rows_of_band(_BAND_VALUES // shrink, class_probs, views)
    scores = torch.empty(class_probs.shape[1], *views[0].geometry.output_size, device=class_probs.device)
    for rows, columns, mask_probs in mask_bands(views, num_rows):
        scores[:, rows, columns] = torch.einsum("qc,qhw->chw", class_probs, mask_probs)
    return scores


def labels_and_scores(
    mask_logits: Tensor, class_logits: Tensor, geometry: Geometry, **options: Any
) -> tuple[Tensor, Tensor]:
    """Compute `mean_labels` of one prediction, given the arguments of `semantic_scores` and `mean_labels`."""
    return mean_labels([View(mask_logits, class_logits, geometry)], **options)


@torch_defaults()
def mean_labels(
    views: Sequence[View],
    *,
    threshold: float = 0.0,
    none_of_these: bool = False,
    shrink: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute the class with the highest `mean_scores` at every pixel, or -1 for "none of these", and its score.

    Args:
        views: at least one; all with the same classes and output size.
        threshold: a pixel with a lower best score gets no class.
        none_of_these: "no object" competes as a class: a pixel where its score exceeds that of every class gets no
            class.
        shrink: factor by which the band height is reduced to save memory.

    Returns:
        labels (H, W) int64, and the best class's score (H, W) float32, also where the label is -1.

    Raises:
        ValueError: there is no view, shapes do not match, or the weights have no mean.
    """
    class_probs = query_probs(views).t().contiguous()  # (C+1, Q)
    class_probs, no_object = class_probs[:-1], class_probs[-1]
    on_cpu, num_queries = class_probs.device.type == "cpu", class_probs.shape[1]
    prune = on_cpu and len(class_probs) > min(_FEW_CLASSES, 1.5 * num_queries)
    band_values = (min(_BAND_VALUES, _CACHED_VALUES) if on_cpu else _BAND_VALUES) // shrink
    num_rows = _TILE * max(1, _TILE_ROWS // len(views)) if prune else _rows_of_band(band_values, class_probs, views)
    output_size = views[0].geometry.output_size
    labels = torch.empty(output_size, dtype=torch.int64, device=class_probs.device)
    best = torch.empty(output_size, device=class_probs.device)
    for rows, columns, mask_probs in mask_bands(views, num_rows):
        pixels = mask_probs.flatten(1)  # (Q, rows * W)
        if prune:
            score, label = _best_of_tiles(class_probs, mask_probs, band_values)
        else:
            score, label = _best_class(class_probs, pixels, band_values)
        none = score < threshold
        if none_of_these:
            none |= no_object @ pixels > score
        labels[rows, columns] = label.masked_fill(none, -1).view(mask_probs.shape[1:])
        best[rows, columns] = score.view(mask_probs.shape[1:])
    return labels, best


def _rows_of_band(max_values: int, class_probs: Tensor, views: Sequence[View]) -> int:
    """Return the height of a band with about `max_values` mask probabilities and scores."""
    width = min(views[0].geometry.output_size[1], _block_width(views))
    return max(1, max_values // (sum(class_probs.shape) * width))


def _block_width(views: Sequence[View]) -> int:
    """Return the number of columns of a block, which is smaller for more views."""
    return max(1, _BLOCK_SIDE // len(views))


def _best_class(class_probs: Tensor, pixels: Tensor, max_values: int) -> tuple[Tensor, Tensor]:
    """Return the highest class score and its class, (P,) each, from class (C, Q) and mask probabilities (Q, P).

    Args:
        class_probs: (C, Q).
        pixels: (Q, P).
        max_values: approximate maximum number of scores in memory at a time.
    """
    parts = pixels.split(max(1, max_values // len(class_probs)), dim=1)
    scores, labels = zip(*((class_probs @ part).max(dim=0) for part in parts), strict=True)
    return torch.cat(scores), torch.cat(labels)


def _best_of_tiles(class_probs: Tensor, mask_probs: Tensor, max_values: int) -> tuple[Tensor, Tensor]:
    """Compute `_best_class` of a band; in most tiles, only for the few classes that can have the highest score.

    Inside an object, one or two classes are candidates; where several objects meet, there can be hundreds. Pixels of
    tiles with more than twice the median number of candidates are computed separately.

    Args:
        class_probs: (C, Q).
        mask_probs: (Q, rows, W).
        max_values: approximate maximum number of scores in memory at a time.
    """
    pixels = mask_probs.flatten(1)  # (Q, rows * W)
    possible = _possible_winners(mask_probs, class_probs)  # (C, tile rows, tile columns)
    counts = possible.sum(dim=0)
    crowded = counts > 2 * counts.median()
    classes = (possible & ~crowded).flatten(1).any(dim=1).nonzero().squeeze(1)
    score, label = _best_class(class_probs[classes], pixels, max_values)
    label = classes[label]
    if crowded.any():
        classes = (possible & crowded).flatten(1).any(dim=1).nonzero().squeeze(1)
        crowd = crowded.repeat_interleave(_TILE, dim=0).repeat_interleave(_TILE, dim=1)  # (rows, W) or more
        crowd = crowd[: mask_probs.shape[1], : mask_probs.shape[2]].flatten().nonzero().squeeze(1)
        score[crowd], found = _best_class(class_probs[classes], pixels.index_select(1, crowd), max_values)
        label[crowd] = classes[found]
    return score, label


def _possible_winners(mask_probs: Tensor, class_probs: Tensor) -> Tensor:
    """Return which classes can have the highest score at some pixel of a tile: (C, tile rows, tile columns).

    Masks are smooth, so a mask's probability hardly changes within a tile. A class is excluded if its score with every
    mask's maximum is below another class's score with every mask's minimum.

    Args:
        mask_probs: (Q, rows, W).
        class_probs: (C, Q).
    """
    rows = mask_probs.split(_TILE, dim=1)
    highest = torch.stack([row.amax(dim=1) for row in rows], dim=1)  # (Q, tile rows, W)
    highest = F.max_pool1d(highest, _TILE, ceil_mode=True)  # (Q, tile rows, tile columns)
    lowest = torch.stack([row.amin(dim=1) for row in rows], dim=1)
    lowest = -F.max_pool1d(-lowest, _TILE, ceil_mode=True)
    at_least = (class_probs @ lowest.flatten(1)).amax(dim=0)  # (tiles,), for the best class
    possible = ~(class_probs @ highest.flatten(1) < at_least * (1 - 1e-5))  # margin for rounding; NaN is possible
    return possible.view(-1, *highest.shape[1:])


def have_non_finite(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Return which images have NaN or infinite outputs, for which a label map would show class 0.

    Args:
        mask_logits: (B, Q, h_s, w_s).
        class_logits: (B, Q, C+1).

    Returns:
        (B,) bool on their device; reading it synchronizes with a GPU, so do that after starting the label maps.
    """
    # a sum is finite only if all its terms are
    total = mask_logits.sum((1, 2, 3), dtype=torch.float32) + class_logits.sum((1, 2), dtype=torch.float32)
    return ~total.isfinite()


def refuse_non_finite(found: Tensor, names: Sequence[str]) -> None:
    """Raise if an image has NaN or infinite outputs.

    Args:
        found: (B,) as returned by `have_non_finite`.
        names: names of the images, for the message.

    Raises:
        ValueError: an image has; the message names the first one.
    """
    for name, wrong in zip(names, found.cpu().tolist(), strict=True):
        if wrong:
            raise ValueError(
                f"the network's outputs for {name} are NaN or infinite; compute in float32 if they were in half "
                "precision, else use a checkpoint from before the training broke down"
            )


@torch_defaults()
def resized_masks(mask_logits: Tensor, geometry: Geometry) -> Tensor:
    """Resize masks to the requested size, before the sigmoid: docs/method.md#7.1.

    Args:
        mask_logits: (Q, h_s, w_s).
        geometry: sizes of the network's input, of the image in it, and of the result.

    Returns:
        (Q, H, W) float32.
    """
    rows, columns = (
        _resize_matrix(*axis, slice(0, axis[-1]), mask_logits.device) for axis in _axes(mask_logits, geometry)
    )
    return rows @ mask_logits.float() @ columns.T


def query_probs(views: Sequence[View]) -> Tensor:
    """Return class probabilities (Q, C+1) of all views' queries times their view's share; ValueError for odd views."""
    if not views:
        raise ValueError("there is no view to make a result of; give at least one")
    total = sum(view.weight for view in views)
    if not (all(view.weight >= 0 for view in views) and 0 < total < math.inf):
        raise ValueError(f"the weights are {[view.weight for view in views]}; give numbers of 0 or more, not all 0")
    for view in views:
        masks, classes = tuple(view.mask_logits.shape), tuple(view.class_logits.shape)
        if len(masks) != 3 or len(classes) != 2 or masks[0] != classes[0]:
            raise ValueError(
                f"mask_logits {masks} and class_logits {classes} must be (Q, h_s, w_s) and (Q, C+1) of one image; take "
                "one image of the batch"
            )
        if classes[1] < 2:
            raise ValueError("class_logits has no class but the background; give at least one class name")
        if classes[1] != views[0].class_logits.shape[1]:
            found = sorted({each.class_logits.shape[1] - 1 for each in views})
            raise ValueError(f"views have {found} classes; give all of them one vocabulary")
        if view.geometry.output_size != views[0].geometry.output_size:
            sizes = [each.geometry.output_size for each in views]
            raise ValueError(f"views have the output sizes {sizes}; give all of them one")
    probs = [view.class_logits.float().softmax(dim=-1) for view in views]
    if len(probs) == 1:
        return probs[0]
    return torch.cat([each * (view.weight / total) for view, each in zip(views, probs, strict=True)])


def mask_bands(views: Sequence[View], num_rows: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield output rows, columns and mask probabilities (Q, rows, columns) of each band.

    Args:
        views: views of one image; Q counts the queries of all views.
        num_rows: height of a band; the last one of a block may be lower.
    """
    for columns in _parts(0, views[0].geometry.output_size[1], _block_width(views)):
        across = [view.mask_logits.float() @ _column_matrix(view, columns).T for view in views]  # (Q, h_s, columns)
        for block in _parts(0, views[0].geometry.output_size[0], _BLOCK_SIDE):
            down = [_resize_matrix(*next(_axes(v.mask_logits, v.geometry)), block, v.mask_logits.device) for v in views]
            for rows in _parts(block.start, block.stop, num_rows):
                inside = slice(rows.start - block.start, rows.stop - block.start)
                bands = [_mask_band(matrix[inside], part) for matrix, part in zip(down, across, strict=True)]
                yield rows, columns, bands[0] if len(bands) == 1 else torch.cat(bands)


def _mask_band(rows: Tensor, across: Tensor) -> Tensor:
    """Return mask probabilities (Q, rows, columns) from a matrix (rows, h_s) and masks (Q, h_s, columns)."""
    sources = slice(None)
    if rows.device.type == "cpu":  # on other devices the host would wait for the result
        nearby = rows.any(dim=0).nonzero()  # few of h_s rows
        sources = slice(int(nearby[0]), int(nearby[-1]) + 1)
    return (rows[:, sources] @ across[:, sources]).sigmoid_()


def _column_matrix(view: View, columns: slice) -> Tensor:
    """Return the matrix (columns, w_s) that resizes along the width; it mirrors a mirrored view back."""
    _, axis = _axes(view.mask_logits, view.geometry)
    if not view.mirrored:
        return _resize_matrix(*axis, columns, view.mask_logits.device)
    there = slice(axis[-1] - columns.stop, axis[-1] - columns.start)
    return _resize_matrix(*axis, there, view.mask_logits.device).flip(0)


def _parts(start: int, stop: int, length: int) -> Iterator[slice]:
    """Split the range into parts of a length; the last may be shorter."""
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))


def _axes(mask_logits: Tensor, geometry: Geometry) -> Iterator[tuple[int, int, int, int]]:
    """Return the lengths of masks (Q, h_s, w_s), padded input, image and result: along the height, then the width."""
    sizes = (geometry.padded_size, geometry.image_size, geometry.output_size)
    return zip(mask_logits.shape[1:], *sizes, strict=True)


def _resize_matrix(grid: int, padded: int, image: int, output: int, part: slice, device: torch.device) -> Tensor:
    """Return an axis's resize matrix: linear to the padded length, crop to the image, linear to part of the output.

    Args:
        grid: length of the masks.
        padded: length of the padded batch.
        image: length of the image in it.
        output: length of the whole result.
        part: range of the output to compute.
        device: device of the matrix.

    Returns:
        (part, grid) float32.
    """
    basis = torch.eye(grid, device=device)[None]  # (1, grid, grid)
    basis = F.interpolate(basis, size=padded, mode="linear", align_corners=False)[0, :, :image].T  # (image, grid)
    # the second one equals F.interpolate, which cannot compute a part
    centres = torch.arange(part.start, part.stop, device=device, dtype=torch.float32) + 0.5
    centres = (centres * (image / output) - 0.5).clamp(min=0)
    lower = centres.long()
    upper = (lower + 1).clamp(max=image - 1)
    share = (centres - lower)[:, None]
    return (1 - share) * basis[lower] + share * basis[upper]
