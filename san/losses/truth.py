"""What the images of a batch hold, read at points: as binary masks, or as label maps, which need no mask at all.

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

from san.losses.point_sampling import sample_points


@dataclass(frozen=True)
class Target:
    """What one image holds, as masks that may overlap.

    Attributes:
        labels: (M,) int64 class of each mask, in [0, C); M may be 0.
        masks: (M, H, W) bool, padded (with False) like the image, so that all images of a batch share (H, W).
    """

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class LabelMapTarget:
    """What one image holds, as one label map: a mask per class in it.

    Attributes:
        labels: (M,) int64 classes present, each once, in [0, C); M may be 0. On the CPU it spares the GPU a wait.
        label_map: (H, W) integers, padded like the image; a value that is not in `labels` belongs to no mask.
    """

    labels: Tensor
    label_map: Tensor


AnyTarget = Target | LabelMapTarget | Mapping[str, Tensor]


class Truth(ABC):
    """The targets of a batch.

    Attributes:
        labels: (sum M,) int64, all images' one after the other.
        counts: M of each image.
    """

    labels: Tensor
    counts: list[int]

    @abstractmethod
    def at_shared_points(self, image: int, points: Tensor) -> Tensor:
        """Values in [0, 1] of all targets of one image at points (P, 2) they share: (M, P) float32."""

    @abstractmethod
    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """Values of one target per pair at points of its own.

        Args:
            images: (N,) int64, which image a pair is of.
            targets: (N,) int64, its target, counted over the batch.
            points: (N, P, 2).

        Returns:
            (N, P) float32.
        """


class MaskTruth(Truth):
    """Targets given as masks."""

    def __init__(self, targets: Sequence[Target], device: torch.device) -> None:
        self.counts = [len(target.labels) for target in targets]
        self.labels = torch.cat([target.labels.to(device) for target in targets])
        masks = torch.cat([target.masks for target in targets])
        self.masks = masks.to(device=device, dtype=torch.float32)  # (sum M, H, W)
        self._of_image = self.masks.split(self.counts)

    def at_shared_points(self, image: int, points: Tensor) -> Tensor:
        """See `Truth`."""
        return sample_points(self._of_image[image].unsqueeze(0), points.unsqueeze(0))[0]

    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """See `Truth`."""
        return sample_points(self.masks[targets].unsqueeze(1), points).squeeze(1)


class LabelMapTruth(Truth):
    """Targets given as label maps: a mask's value at a point is the weight of the neighbouring pixels of its class.

    Equal to sampling the masks (guarded by tests/losses/test_truth.py), at four small reads per point and without
    (sum M, H, W) floats.
    """

    def __init__(self, targets: Sequence[LabelMapTarget], device: torch.device) -> None:
        self.counts = [len(target.labels) for target in targets]
        self.labels = torch.cat([target.labels for target in targets]).to(device, non_blocking=True)
        self._of_image = self.labels.split(self.counts)
        self.maps = torch.stack([target.label_map.to(device, non_blocking=True) for target in targets])  # (B, H, W)

    def at_shared_points(self, image: int, points: Tensor) -> Tensor:
        """See `Truth`."""
        values, weights = self._corners(image, points)  # (4, P)
        hits = values == self._of_image[image].view(-1, 1, 1)  # (M, 4, P)
        shares: Tensor = (hits * weights).sum(dim=1)
        return shares

    def at_pair_points(self, images: Tensor, targets: Tensor, points: Tensor) -> Tensor:
        """See `Truth`."""
        values, weights = self._corners(images.unsqueeze(1), points)  # (4, N, P)
        hits = values == self.labels[targets].unsqueeze(1)  # (4, N, P)
        shares: Tensor = (hits * weights).sum(dim=0)
        return shares

    def _corners(self, image: Tensor | int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and bilinear weights of the four pixels around points (..., 2), each (4, ...); see `sample_points`."""
        height, width = self.maps.shape[1:]
        # rounded as grid_sample does
        x, y = ((((2 * points[..., axis] - 1) + 1) * size - 1) / 2 for axis, size in enumerate((width, height)))
        left, top = x.floor(), y.floor()
        right_share, lower_share = x - left, y - top
        columns = torch.stack([left, left + 1, left, left + 1]).long()
        rows = torch.stack([top, top, top + 1, top + 1]).long()
        weights = torch.stack([
            (1 - right_share) * (1 - lower_share),
            right_share * (1 - lower_share),
            (1 - right_share) * lower_share,
            right_share * lower_share,
        ])  # fmt: skip
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        index = (image * height + rows.clamp(0, height - 1)) * width + columns.clamp(0, width - 1)
        return self.maps.flatten()[index], weights * inside


def truth_of(targets: Sequence[AnyTarget], num_images: int, num_classes: int, device: torch.device) -> Truth:
    """Checks the targets of a batch against the outputs, and makes them readable.

    Args:
        targets: one per image; mappings hold `labels` and either `masks` or `label_map`.
        num_images: B.
        num_classes: C.
        device: of the outputs.

    Raises:
        ValueError: a number, shape or label that does not fit.
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
        return LabelMapTruth(maps, device)
    return MaskTruth([_as_masks(target) for target in known], device)


def _from_mapping(target: Mapping[str, Any]) -> Target | LabelMapTarget:
    if "label_map" in target:
        return LabelMapTarget(target["labels"], target["label_map"])
    return Target(target["labels"], target["masks"])


def _checked_size(target: Target | LabelMapTarget) -> tuple[int, ...]:
    """(H, W) of a target."""
    if isinstance(target, LabelMapTarget):
        if target.label_map.dim() != 2 or target.labels.dim() != 1:
            raise ValueError(
                f"labels of shape {tuple(target.labels.shape)} with a label map of shape "
                f"{tuple(target.label_map.shape)}; give (M,) and (H, W)"
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
    labels = target.labels.to(target.label_map.device)
    return Target(labels, target.label_map == labels[:, None, None])
