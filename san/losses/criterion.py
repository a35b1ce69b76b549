"""Training losses over matched queries (method.md 8.2-8.3).

Legend: B images, Q queries, C classes, M targets of an image, N matched pairs of the batch, P points,
(H, W) padded image, (h_s, w_s) side grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from san.losses.config import LossConfig
from san.losses.matcher import match, matching_cost
from san.losses.point_sampling import keep_uncertain, sample_points, seeded_generator, uniform_points


@dataclass(frozen=True)
class Target:
    """What one image holds.

    Attributes:
        labels: (M,) int64 class of each mask, in [0, C); M may be 0.
        masks: (M, H, W) bool, padded (with False) like the image, so that all images of a batch share (H, W).
    """

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class _Normalisers:
    """Per-worker means of what the sums of losses are divided by."""

    num_masks: float
    class_weight: float


def dice_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of pairs: 1 - (2 * sum(p t) + 1) / (sum(p) + sum(t) + 1).

    Args:
        mask_logits: (N, P); p is their sigmoid.
        masks: (N, P) in [0, 1].

    Returns:
        (N,), each in [0, 1).
    """
    probs = mask_logits.sigmoid()
    overlap = (probs * masks).sum(dim=1)
    return 1.0 - (2.0 * overlap + 1.0) / (probs.sum(dim=1) + masks.sum(dim=1) + 1.0)


def mask_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of pairs, averaged over points.

    Args:
        mask_logits: (N, P).
        masks: (N, P) in [0, 1].

    Returns:
        (N,), each 0 or more.
    """
    return F.binary_cross_entropy_with_logits(mask_logits, masks, reduction="none").mean(dim=1)


class SetCriterion(nn.Module):
    """Matches queries to targets and weighs three losses per supervised layer.

    Every layer is matched on its own. Sums are divided by what is averaged over the workers of torch.distributed, both
    the number of masks and the total class weight, so that the mean over workers, of the losses and of the gradients,
    is what one process gives for the same images.

    Args:
        config: weights, costs and points.
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        """Keep the options; the module has no parameter and no buffer."""
        super().__init__()
        self.config = config or LossConfig()

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Target | Mapping[str, Tensor]],
        *,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, in float32 also under autocast.

        Args:
            outputs: `pred_logits` (B, Q, C + 1), `pred_masks` (B, Q, h_s, w_s) before the sigmoid, and `aux_outputs`,
                a list of the same for earlier layers (may be empty or absent).
            targets: one per image, a `Target` or a mapping with `labels` and `masks`.
            seeds: one integer per image. All points of an image then depend on its seed (and on the layer) alone, not
                on its place in the batch. None draws from torch's global generator.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice`, and the same with suffix `_i` for the i-th earlier layer; scalars whose
            sum is the objective. Gradients stay connected where an image, or the whole batch, has no target.

        Raises:
            ValueError: if targets or seeds do not fit the outputs.
            FloatingPointError: if a matching cost is not finite.
        """
        class_logits = outputs["pred_logits"]
        checked = _check(class_logits, targets, seeds)
        device = class_logits.device
        masks = torch.cat([target.masks for target in checked]).to(device=device, dtype=torch.float32)  # (sum M, H, W)
        norm = self._normalisers(class_logits, checked)
        layers = [*outputs.get("aux_outputs", ()), outputs]
        losses: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            for index, layer in enumerate(layers):
                generators: list[torch.Generator | None] = [None] * len(checked)
                if seeds is not None:
                    generators = [seeded_generator(seed, index, device) for seed in seeds]
                values = self._layer(
                    layer["pred_logits"].float(), layer["pred_masks"].float(), checked, masks, norm, generators
                )
                suffix = "" if layer is outputs else f"_{index}"
                losses |= {name + suffix: value for name, value in values.items()}
        return losses

    def _layer(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        targets: Sequence[Target],
        masks: Tensor,
        norm: _Normalisers,
        generators: Sequence[torch.Generator | None],
    ) -> dict[str, Tensor]:
        """Losses of one supervised layer; masks is (sum M, H, W) float, all images' targets one after the other."""
        config = self.config
        counts = [len(target.labels) for target in targets]
        image_masks = masks.split(counts)
        classes = torch.full(class_logits.shape[:2], class_logits.shape[-1] - 1, device=masks.device)  # (B, Q)
        paired_logits, paired_masks, points = [], [], []
        for i, (target, generator) in enumerate(zip(targets, generators, strict=True)):
            if counts[i] == 0:
                paired_logits.append(mask_logits[i, :0])  # keeps the graph connected
                continue
            queries, matched = self._match(class_logits[i], mask_logits[i], target, image_masks[i], generator)
            queries, matched = queries.to(masks.device), matched.to(masks.device)
            classes[i, queries] = target.labels[matched]
            paired_logits.append(mask_logits[i, queries])
            paired_masks.append(image_masks[i][matched])
            points.append(self._loss_points(paired_logits[-1], generator))
        weight = torch.ones(class_logits.shape[-1], device=masks.device)
        weight[-1] = config.no_object_weight
        loss_ce = F.cross_entropy(class_logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
        logits = torch.cat(paired_logits)  # (N, h_s, w_s)
        if points:
            where = torch.cat(points)  # (N, P, 2)
            at_logits = sample_points(logits.unsqueeze(1), where).squeeze(1)  # (N, P)
            at_masks = sample_points(torch.cat(paired_masks).unsqueeze(1), where).squeeze(1)  # (N, P)
            loss_mask, loss_dice = mask_loss(at_logits, at_masks).sum(), dice_loss(at_logits, at_masks).sum()
        else:
            loss_mask = loss_dice = logits.sum()  # of no elements: 0, with a gradient of 0
        return {
            "loss_ce": config.class_weight * loss_ce / norm.class_weight,
            "loss_mask": config.mask_weight * loss_mask / norm.num_masks,
            "loss_dice": config.dice_weight * loss_dice / norm.num_masks,
        }

    @torch.no_grad()
    def _match(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        target: Target,
        masks: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Match one image at uniform points shared by its queries (Q, h_s, w_s) and masks (M, H, W)."""
        points = uniform_points(1, self.config.num_points, device=mask_logits.device, generator=generator)  # (1, P, 2)
        at_logits = sample_points(mask_logits.unsqueeze(0), points)[0]  # (Q, P)
        at_masks = sample_points(masks.unsqueeze(0), points)[0]  # (M, P)
        return match(matching_cost(class_logits, at_logits, target.labels, at_masks, config=self.config))

    def _loss_points(self, mask_logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Points (M, P, 2) of one image's matched mask logits (M, h_s, w_s): mostly uncertain, the rest uniform."""
        config, device = self.config, mask_logits.device
        num_uncertain = int(config.importance_ratio * config.num_points)
        num_candidates = int(config.oversample_ratio * config.num_points)
        candidates = uniform_points(len(mask_logits), num_candidates, device=device, generator=generator)
        uncertain = keep_uncertain(mask_logits.detach().unsqueeze(1), candidates, num_uncertain)
        fresh = uniform_points(len(mask_logits), config.num_points - num_uncertain, device=device, generator=generator)
        return torch.cat([uncertain, fresh], dim=1)

    def _normalisers(self, class_logits: Tensor, targets: Sequence[Target]) -> _Normalisers:
        """What sums are divided by. Known before matching: min(Q, M) queries of an image get a target."""
        num_images, num_queries = class_logits.shape[:2]
        matched = sum(min(num_queries, len(target.labels)) for target in targets)
        num_masks = float(sum(len(target.labels) for target in targets))
        class_weight = matched + self.config.no_object_weight * (num_images * num_queries - matched)
        world = 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            world = dist.get_world_size()
            totals = torch.tensor([num_masks, class_weight], dtype=torch.float64, device=class_logits.device)
            dist.all_reduce(totals)
            num_masks, class_weight = totals.tolist()
        # At least one mask in all, not per worker: the losses must not depend on how many workers share the batch.
        return _Normalisers(num_masks=max(num_masks, 1.0) / world, class_weight=class_weight / world)


def _check(
    class_logits: Tensor, targets: Sequence[Target | Mapping[str, Tensor]], seeds: Sequence[int] | None
) -> list[Target]:
    """Targets as dataclasses on the outputs' device, after checking them against the outputs."""
    num_images, num_classes = class_logits.shape[0], class_logits.shape[-1] - 1
    if len(targets) != num_images or num_images == 0:
        raise ValueError(f"{len(targets)} targets for {num_images} images; give one per image, and one image at least")
    if seeds is not None and len(seeds) != num_images:
        raise ValueError(f"{len(seeds)} seeds for {num_images} images; give one per image, or none at all")
    checked = []
    for target in targets:
        labels, masks = (
            (target["labels"], target["masks"]) if isinstance(target, Mapping) else (target.labels, target.masks)
        )
        if masks.dim() != 3 or labels.shape != masks.shape[:1]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} with masks of shape {tuple(masks.shape)}; "
                "give (M,) and (M, H, W)"
            )
        checked.append(Target(labels.to(class_logits.device), masks))
    sizes = {tuple(target.masks.shape[1:]) for target in checked}
    if len(sizes) > 1:
        raise ValueError(f"target masks of different sizes {sorted(sizes)}; pad them to the batch's common size")
    labels = torch.cat([target.labels for target in checked])
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"target labels span {int(labels.min())}..{int(labels.max())} but the vocabulary has {num_classes} classes "
            f"(0..{num_classes - 1}); check the data set's label map and its ignore label"
        )
    return checked
