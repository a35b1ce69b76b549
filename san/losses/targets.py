"""Targets of a batch, sampled at points: binary masks, or label maps, which are sampled without building masks.

Legend: B images, M targets of an image, N pairs of a query with a target, P points, (H, W) padded image. A point is
(x, y), each in [0, 1] over the padded image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from san.io.errors import brief_repr
from san.losses.point_sampling import sample_points


@dataclass(frozen=True)
class Target:
    """The targets of one image as masks that may overlap.

    Attributes:
        labels: (M,) int64 class of each mask, in [0, C); M may be 0.
        masks: (M, H, W) bool, padded (with False) like the image, so that all images of a batch share (H, W).
    """

    labels: Tensor
    masks: Tensor

    __repr__ = brief_repr


@dataclass(frozen=True)
class LabelMapTarget:
    """The targets of one image as a map whose values number them: each value is one target.

    Attributes:
        labels: (M,) int64 class of each target, in [0, C); M may be 0. On the CPU it avoids a GPU synchronization.
        label_map: (H, W) integers, padded like the image; a value of no target belongs to no mask.
        values: (M,) int64 value of each target in the map, each once; several targets may have one class. None: the
            map contains class indices, and each class is one target.
    """

    labels: Tensor
    label_map: Tensor
    values: Tensor | None = None

    __repr__ = brief_repr

    @property
    def map_values(self) -> Tensor:
        """Value of each target in the map (M,)."""
        return self.labels if self.values is None else self.values


AnyTarget = Target | LabelMapTarget | Mapping[str, Tensor]


class TargetBatch(ABC):
    """The targets of a batch.

    Attributes:
        labels: (sum M,) int64, those of all images concatenated.
        counts: M for each image.
    """

    labels: Tensor
    counts: list[int]

    @abstractmethod
    def at_shared_points(self, points: Tensor) -> Tensor:
        """Sample all targets at points (B, P, 2), shared within an image: (sum M, P) float32 in [0, 1]."""

    @abstractmethod
    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """Sample one target per pair at the pair's own points.

        Args:
            images: (N,) int64, image of each pair.
            targets: (N,) int64, target of each pair, numbered over the batch.
            points: (N, P, 2).

        Returns:
            (N, P) float32.
        """


class MaskTargetBatch(TargetBatch):
    """Targets given as masks."""

    def __init__(self, targets: Sequence[Target], device: torch.device) -> None:
        self.counts = [len(target.labels) for target in targets]
        self.labels = torch.cat([target.labels.to(device) for target in targets])
        masks = torch.cat([target.masks for target in targets])
        self.masks = masks.to(device=device, dtype=torch.float32)  # (sum M, H, W)

    def at_shared_points(self, points: Tensor) -> Tensor:
        """See `TargetBatch`."""
        images = zip(self.masks.split(self.counts), points, strict=True)
        return torch.cat([sample_points(masks[None], own[None])[0] for masks, own in images])

    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """See `TargetBatch`."""
        return sample_points(self.masks[targets].unsqueeze(1), points).squeeze(1)


class LabelMapTargetBatch(TargetBatch):
    """Targets given as label maps: a target's value at a point is the bilinear weight of the pixels of its value.

    Equal to sampling the masks (guarded by tests/losses/test_targets.py), with four small reads per point and without
    (sum M, H, W) floats. The maps are padded by one pixel without a class, so that every point has four neighbours and
    no bounds check is needed; outside the map, masks are 0.
    """

    def __init__(self, targets: Sequence[LabelMapTarget], device: torch.device) -> None:
        self.counts = [len(target.labels) for target in targets]
        self.labels = torch.cat([target.labels for target in targets]).to(device, non_blocking=True)
        wide = any(target.label_map.dtype == torch.int64 for target in targets)
        values = self.labels
        if any(target.values is not None for target in targets):
            values = torch.cat([target.map_values for target in targets]).to(device, non_blocking=True)
        self._values = values.to(torch.int64 if wide else torch.int32)  # type of `maps`, to avoid casts
        images = torch.arange(len(targets)).repeat_interleave(torch.tensor(self.counts))
        self._images = images.to(device, non_blocking=True)  # (sum M,), for each target
        height, width = targets[0].label_map.shape
        self.maps = self._values.new_full((len(targets), height + 2, width + 2), -1)  # (B, H + 2, W + 2)
        for framed, target in zip(self.maps, targets, strict=True):
            framed[1:-1, 1:-1] = target.label_map.to(device, non_blocking=True)

    def at_shared_points(self, points: Tensor) -> Tensor:
        """See `TargetBatch`."""
        images = torch.arange(len(points), device=points.device)
        return self._shares(images, points, self._values, self._images)

    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """See `TargetBatch`."""
        return self._shares(images, points, self._values[targets])

    def _shares(self, images: Tensor, points: Tensor, labels: Tensor, sets: Tensor | None = None) -> Tensor:
        """Return the summed bilinear weights of the pixels around each point that have a given label.

        Args:
            images: (N,) image of each set of points.
            points: (N, P, 2).
            labels: (M,).
            sets: (M,) set of points for each label; None: the i-th set for the i-th label.

        Returns:
            (M, P).
        """
        framed_height, row_length = self.maps.shape[1:]
        # rounded as in grid_sample
        x, y = (
            (2 * points[..., axis]).sub_(1).add_(1).mul_(size - 2).sub_(1).div_(2)
            for axis, size in enumerate((row_length, framed_height))
        )
        left, top = x.floor(), y.floor()  # starts at -1, the padding
        right_share, lower_share = x.sub_(left), y.sub_(top)
        number = torch.int32 if self.maps.numel() < 2**31 else torch.int64
        first = top.to(number).add_(1)  # (N, P), index of the upper left pixel in all maps
        first += images.to(number).unsqueeze(1) * framed_height
        first = first.mul_(row_length).add_(left.to(number)).add_(1)
        flat, nothing = self.maps.flatten(), points.new_zeros(())
        shares = points.new_zeros(len(labels), points.shape[1])
        for row, row_share in enumerate((1 - lower_share, lower_share)):
            for column, column_share in enumerate((1 - right_share, right_share)):
                later = flat[row * row_length + column :]  # shifted, for the same index; index_select is by far fastest
                values, weights = later.index_select(0, first.flatten()).view(first.shape), row_share * column_share
                if sets is not None:
                    values, weights = values.index_select(0, sets), weights.index_select(0, sets)
                shares += torch.where(values == labels.unsqueeze(1), weights, nothing)
        return shares


def target_batch(targets: Sequence[AnyTarget], num_images: int, num_classes: int, device: torch.device) -> TargetBatch:
    """Check the targets of a batch against the outputs, and prepare them for sampling.

    Args:
        targets: one per image; mappings have `labels`, and either `masks`, or `label_map` and optionally `values`.
        num_images: B.
        num_classes: C.
        device: device of the outputs.

    Raises:
        ValueError: a number, shape or label does not match.
    """
    if len(targets) != num_images or num_images == 0:
        raise ValueError(f"{len(targets)} targets for {num_images} images; give one per image, and one image at least")
    known = [_from_mapping(target) if isinstance(target, Mapping) else target for target in targets]
    sizes = {_checked_size(target) for target in known}
    if len(sizes) > 1:
        raise ValueError(f"target masks of different sizes {sorted(sizes)}; pad them to the batch's common size")
    labels = torch.cat([target.labels.cpu() for target in known])
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"target labels span {int(labels.min())}..{int(labels.max())} but the vocabulary has {num_classes} classes "
            f"(0..{num_classes - 1}); check the data set's label map and its ignore label"
        )
    maps = [target for target in known if isinstance(target, LabelMapTarget)]
    if len(maps) == len(known):
        return LabelMapTargetBatch(maps, device)
    return MaskTargetBatch([_as_masks(target) for target in known], device)


def _from_mapping(target: Mapping[str, Any]) -> Target | LabelMapTarget:
    if "label_map" in target:
        return LabelMapTarget(target["labels"], target["label_map"], target.get("values"))
    return Target(target["labels"], target["masks"])


def _checked_size(target: Target | LabelMapTarget) -> tuple[int, ...]:
    """Return (H, W) of a target."""
    if isinstance(target, LabelMapTarget):
        if target.label_map.dim() != 2 or target.labels.dim() != 1:
            raise ValueError(
                f"labels of shape {tuple(target.labels.shape)} with a label map of shape "
                f"{tuple(target.label_map.shape)}; give (M,) and (H, W)"
            )
        if target.map_values.shape != target.labels.shape:
            raise ValueError(
                f"labels of shape {tuple(target.labels.shape)} with values of shape {tuple(target.map_values.shape)}; "
                "give (M,) both"
            )
        return tuple(target.label_map.shape)
    if target.masks.dim() != 3 or target.labels.shape != target.masks.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(target.labels.shape)} with masks of shape {tuple(target.masks.shape)}; "
            "give (M,) and (M, H, W)"
        )
    return tuple(target.masks.shape[1:])


def _as_masks(target: Target | LabelMapTarget) -> Target:
    if isinstance(target, Target):
        return target
    labels, values = (each.to(target.label_map.device) for each in (target.labels, target.map_values))
    return Target(labels, target.label_map == values[:, None, None])
