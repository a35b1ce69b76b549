"""Training losses over matched queries (docs/method.md#8.2, #8.3).

Legend: B images, Q queries, C classes, M targets of an image, N matched pairs of the batch, P points, (h_s, w_s) side
grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from san.losses.config import LossConfig
from san.losses.matcher import match_all, matching_cost
from san.losses.point_sampling import keep_uncertain, sample_points, seeded_generator, uniform_points
from san.losses.truth import AnyTarget, Truth, truth_of

_POINT_VALUES = 2**24  # mask logits at points of a layer that are held at a time: 64 MB


@dataclass(frozen=True)
class _Pairs:
    """Matched queries of a layer: image, query, and target counted over the batch, (N,) int64 each, by image."""

    images: Tensor
    queries: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Normalisers:
    """Per-worker means of what the sums of losses are divided by; on the device where there are several workers."""

    num_masks: float | Tensor
    class_weight: float | Tensor


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


NUM_IMAGES, NUM_MASKS, CLASS_WEIGHT = "num_images", "num_masks", "class_weight"
"""What a loss may be divided by."""


class SetCriterion(nn.Module):
    """Matches queries to targets and weighs three losses per supervised layer.

    Every layer is matched on its own. Sums are divided by what is averaged over the workers of torch.distributed, both
    the number of masks and the total class weight, so that the mean over workers, of the losses and of the gradients,
    is what one process gives for the same images.

    A subclass may give further losses. One that is a mean over the images needs nothing else; one that is divided by
    the number of masks or the class weight is named in `divided_by`. Else an iteration in accumulation steps, which
    weighs the losses of each by its share of the whole, would give another value.

    Args:
        config: weights, costs and points.
    """

    divided_by: Mapping[str, str] = MappingProxyType(
        {"loss_ce": CLASS_WEIGHT, "loss_mask": NUM_MASKS, "loss_dice": NUM_MASKS}
    )
    """By the name of a loss without the suffix of its layer; `NUM_IMAGES` for those that are not named."""

    def __init__(self, config: LossConfig | None = None) -> None:
        """Keep the options; the module has no parameter and no buffer."""
        super().__init__()
        self.config = config or LossConfig()

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[AnyTarget], *, seeds: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, in float32 also under autocast.

        All matching costs of the batch, of every layer and image, go to the CPU in one transfer.

        Args:
            outputs: `pred_logits` (B, Q, C + 1), `pred_masks` (B, Q, h_s, w_s) before the sigmoid, and `aux_outputs`,
                a list of the same for earlier layers (may be empty or absent).
            targets: one per image: a `LabelMapTarget`, a `Target`, or a mapping with the entries of one of them.
            seeds: one integer per image. All points of an image then depend on its seed (and on the layer) alone, not
                on its place in the batch. None draws from torch's global generator.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice`, and the same with suffix `_i` for the i-th earlier layer; scalars whose
            sum is the objective. Gradients stay connected where an image, or the whole batch, has no target.

        Raises:
            ValueError: if targets or seeds do not fit the outputs.
            FloatingPointError: if a matching cost is not finite.
        """
        num_images, num_queries, num_logits = outputs["pred_logits"].shape
        device = outputs["pred_logits"].device
        truth = truth_of(targets, num_images, num_logits - 1, device)
        if seeds is not None and len(seeds) != num_images:
            raise ValueError(f"{len(seeds)} seeds for {num_images} images; give one per image, or none at all")
        norm = self._normalisers(num_images, num_queries, truth, device)
        layers = [*outputs.get("aux_outputs", ()), outputs]
        suffixes = [f"_{index}" for index in range(len(layers) - 1)] + [""]
        losses: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            logits = [(layer["pred_logits"].float(), layer["pred_masks"].float()) for layer in layers]
            draws: list[list[torch.Generator | None]] = [
                [None] * num_images if seeds is None else [seeded_generator(seed, index, device) for seed in seeds]
                for index in range(len(layers))
            ]
            costs = [self._costs(*pair, truth, draw) for pair, draw in zip(logits, draws, strict=True)]
            pairs = self._pairs(costs, truth, device)
            for (classes, masks), draw, found, suffix in zip(logits, draws, pairs, suffixes, strict=True):
                values = self._layer(classes, masks, truth, found, norm, draw)
                losses |= {name + suffix: value for name, value in values.items()}
        return losses

    @torch.no_grad()
    def _costs(
        self, class_logits: Tensor, mask_logits: Tensor, truth: Truth, draw: Sequence[torch.Generator | None]
    ) -> list[Tensor]:
        """Matching costs (Q, M) per image with a target, at uniform points its queries and targets share.

        Many images at once: targets are filled up with empty ones to the most that an image has.
        """
        if not any(truth.counts):
            return []
        device, num_points = mask_logits.device, self.config.num_points
        points = torch.cat([uniform_points(1, num_points, device=device, generator=each) for each in draw])  # (B, P, 2)
        at_truth = truth.at_shared_points(points)  # (sum M, P)
        rows = nn.utils.rnn.pad_sequence(
            list(torch.arange(len(truth.labels)).split(truth.counts)), batch_first=True, padding_value=len(truth.labels)
        ).to(device, non_blocking=True)  # (B, most targets), numbers of targets; of the empty one where there are fewer
        labels, masks = F.pad(truth.labels, (0, 1))[rows], F.pad(at_truth, (0, 0, 0, 1))[rows]
        num_images = max(1, _POINT_VALUES // (mask_logits.shape[1] * num_points))
        parts = zip(
            *(each.split(num_images) for each in (class_logits, mask_logits, points, labels, masks)), strict=True
        )
        costs = torch.cat(
            [
                matching_cost(own_classes, sample_points(own_masks, at), own_labels, own_truth, config=self.config)
                for own_classes, own_masks, at, own_labels, own_truth in parts
            ]
        )  # (B, Q, most targets)
        return [cost[:, :count] for cost, count in zip(costs, truth.counts, strict=True) if count]

    def _pairs(self, costs: Sequence[Sequence[Tensor]], truth: Truth, device: torch.device) -> list[_Pairs]:
        """The assignment of every layer's costs, on the outputs' device: one transfer there, one back."""
        with_targets = [image for image, count in enumerate(truth.counts) if count]
        first = [sum(truth.counts[:image]) for image in with_targets]
        matches = match_all([cost for layer in costs for cost in layer])
        rows = []
        for layer in range(len(costs)):
            found = matches[layer * len(with_targets) :][: len(with_targets)]
            parts = [
                torch.stack([torch.full_like(queries, image), queries, targets + start])
                for image, start, (queries, targets) in zip(with_targets, first, found, strict=True)
            ]
            rows.append(torch.cat(parts, dim=1) if parts else torch.empty(3, 0, dtype=torch.int64))
        moved = torch.cat(rows, dim=1).to(device, non_blocking=True).split([row.shape[1] for row in rows], dim=1)
        return [_Pairs(*rows_of_layer) for rows_of_layer in moved]

    def _layer(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        truth: Truth,
        pairs: _Pairs,
        norm: _Normalisers,
        draw: Sequence[torch.Generator | None],
    ) -> dict[str, Tensor]:
        """Losses of one supervised layer."""
        config, no_object = self.config, class_logits.shape[-1] - 1
        classes = torch.full(class_logits.shape[:2], no_object, device=class_logits.device)  # (B, Q)
        classes[pairs.images, pairs.queries] = truth.labels[pairs.targets]
        weight = torch.ones(no_object + 1, device=class_logits.device)
        weight[-1].fill_(config.no_object_weight)  # an assignment would copy from the CPU under some releases
        loss_ce = F.cross_entropy(class_logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
        logits = mask_logits[pairs.images, pairs.queries]  # (N, h_s, w_s)
        if len(logits):
            counts = [min(count, mask_logits.shape[1]) for count in truth.counts]
            points = self._loss_points(logits, counts, draw)  # (N, P, 2)
            at_logits = sample_points(logits.unsqueeze(1), points).squeeze(1)  # (N, P)
            at_truth = truth.at_pair_points(pairs.images, pairs.targets, points)
            loss_mask, loss_dice = mask_loss(at_logits, at_truth).sum(), dice_loss(at_logits, at_truth).sum()
        else:
            loss_mask = loss_dice = logits.sum()  # of no elements: 0, with a gradient of 0
        return {
            "loss_ce": config.class_weight * loss_ce / norm.class_weight,
            "loss_mask": config.mask_weight * loss_mask / norm.num_masks,
            "loss_dice": config.dice_weight * loss_dice / norm.num_masks,
        }

    def _loss_points(self, logits: Tensor, counts: Sequence[int], draw: Sequence[torch.Generator | None]) -> Tensor:
        """Points (N, P, 2) of matched mask logits (N, h_s, w_s): mostly uncertain, the rest uniform.

        The pairs of an image, `counts` of them, are drawn from its own generator.
        """
        config, device = self.config, logits.device
        num_uncertain = int(config.importance_ratio * config.num_points)
        sizes = (int(config.oversample_ratio * config.num_points), config.num_points - num_uncertain)
        candidates, fresh = zip(
            *(
                [uniform_points(count, size, device=device, generator=generator) for size in sizes]
                for count, generator in zip(counts, draw, strict=True)
                if count
            ),
            strict=True,
        )
        uncertain = keep_uncertain(logits.detach().unsqueeze(1), torch.cat(candidates), num_uncertain)
        return torch.cat([uncertain, torch.cat(fresh)], dim=1)

    def _normalisers(self, num_images: int, num_queries: int, truth: Truth, device: torch.device) -> _Normalisers:
        """What sums are divided by. Known before matching: min(Q, M) queries of an image get a target."""
        matched = sum(min(num_queries, count) for count in truth.counts)
        num_masks = float(sum(truth.counts))
        class_weight = matched + self.config.no_object_weight * (num_images * num_queries - matched)
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return _Normalisers(num_masks=max(num_masks, 1.0), class_weight=class_weight)
        world = dist.get_world_size()
        totals = torch.tensor([num_masks, class_weight], dtype=torch.float64).to(device, non_blocking=True)
        dist.all_reduce(totals)
        masks, weight = totals.unbind()
        # At least one mask in all, not per worker: the losses must not depend on how many workers share the batch.
        return _Normalisers((masks.clamp(min=1.0) / world).float(), (weight / world).float())
