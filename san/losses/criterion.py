"""Training losses over matched queries (docs/method.md#8.2, #8.3).

Legend: B images, Q queries, C classes, M targets of an image, N matched pairs of the batch, P points, (h_s, w_s) side
grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from san.losses.config import LossConfig
from san.losses.matcher import match_all, matching_cost
from san.losses.point_sampling import keep_uncertain, sample_points, seeded_generator, uniform_points
from san.losses.targets import AnyTarget, TargetBatch, target_batch

_POINT_VALUES = 2**24  # mask logits at points of a layer that are held at a time: 64 MB


@dataclass(frozen=True)
class Pairs:
    """Matched queries of a layer: image, query, and target counted over the batch, (N,) int64 each, by image."""

    images: Tensor
    queries: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Normalisers:
    """What the sums of losses are divided by: counts of an iteration, averaged over its processes.

    Attributes:
        masks: targets; at least 1 over all processes.
        class_weight: sum of the class weights of all queries.
        images: of a process's share of the batch.
    """

    masks: float | Tensor
    class_weight: float | Tensor
    images: float | Tensor


@dataclass(frozen=True)
class MatchedLayer:
    """One supervised layer, with its queries matched to targets.

    Attributes:
        outputs: of the layer, as the model gave them.
        class_logits: (B, Q, C + 1) float32.
        mask_logits: (B, Q, h_s, w_s) float32, before the sigmoid.
        text_embed: (C, E), where the outputs of the batch have it.
        truth: the targets of the batch.
        pairs: which queries are matched, and to which targets.
        generators: of each image's random points; None draws from torch's global generator.
    """

    outputs: Mapping[str, Any]
    class_logits: Tensor
    mask_logits: Tensor
    text_embed: Tensor | None
    truth: TargetBatch
    pairs: Pairs
    generators: Sequence[torch.Generator | None]


@dataclass(frozen=True)
class Term:
    """One loss of a supervised layer.

    Attributes:
        total: scalar, weighted, summed over what it is divided by.
        per: what the criterion divides it by: "masks", "class_weight" or "images", a field of `Normalisers`.
    """

    total: Tensor
    per: Literal["masks", "class_weight", "images"]

    def over(self, norm: Normalisers) -> Tensor:
        """The loss.

        Raises:
            ValueError: `per` is none of the three.
        """
        if self.per not in Normalisers.__dataclass_fields__:
            known = ", ".join(Normalisers.__dataclass_fields__)
            raise ValueError(f"a loss is divided by {self.per!r}, which is not counted; choose one of {known}")
        divisor: float | Tensor = getattr(norm, self.per)
        return self.total / divisor


def count_batch(num_targets: Iterable[int], num_queries: int, no_object_weight: float) -> tuple[float, float, float]:
    """What a batch adds to the fields of `Normalisers`, in their order. Known before matching.

    Args:
        num_targets: M of each image; min(Q, M) of its queries get one.
        num_queries: Q.
        no_object_weight: class weight of a query without a target.
    """
    counts = [*num_targets]
    matched = sum(min(num_queries, count) for count in counts)
    return float(sum(counts)), matched + no_object_weight * (len(counts) * num_queries - matched), float(len(counts))


def average_counts(masks: float, class_weight: float, images: float, num_processes: int) -> Normalisers:
    """`Normalisers` of sums over an iteration's processes and accumulation steps.

    At least one mask in all, not per process: losses must not depend on how many processes share the batch.
    """
    return Normalisers(max(masks, 1.0) / num_processes, class_weight / num_processes, images / num_processes)


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

    Every layer is matched on its own. Losses are sums, divided by counts of the whole iteration (`Normalisers`): added
    over accumulation steps and averaged over processes, they are what one process gives for the same images.

    A subclass adds losses in `terms`, and names for each what it is divided by.

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
        targets: Sequence[AnyTarget],
        *,
        seeds: Sequence[int] | None = None,
        norm: Normalisers | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch, in float32 also under autocast.

        All matching costs of the batch, of every layer and image, go to the CPU in one transfer.

        Args:
            outputs: `pred_logits` (B, Q, C + 1), `pred_masks` (B, Q, h_s, w_s) before the sigmoid, and optionally
                `aux_outputs`, a list of the same for earlier layers, and `text_embed` (C, E).
            targets: one per image: a `LabelMapTarget`, a `Target`, or a mapping with the entries of one of them.
            seeds: one integer per image. All points of an image then depend on its seed (and on the layer) alone, not
                on its place in the batch. None draws from torch's global generator.
            norm: what sums are divided by, counted over all processes and accumulation steps of an iteration. None
                counts this batch, over all processes.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice`, and the same with suffix `_i` for the i-th earlier layer; scalars whose
            sum is the objective. Gradients stay connected where an image, or the whole batch, has no target.

        Raises:
            ValueError: if targets or seeds do not fit the outputs.
            FloatingPointError: if a matching cost is not finite.
        """
        num_images, num_queries, num_logits = outputs["pred_logits"].shape
        device = outputs["pred_logits"].device
        truth = target_batch(targets, num_images, num_logits - 1, device)
        if seeds is not None and len(seeds) != num_images:
            raise ValueError(f"{len(seeds)} seeds for {num_images} images; give one per image, or none at all")
        norm = norm or self._normalisers(num_queries, truth, device)
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
            for layer, pair, draw, found, suffix in zip(layers, logits, draws, pairs, suffixes, strict=True):
                matched = MatchedLayer(layer, *pair, outputs.get("text_embed"), truth, found, draw)
                losses |= {name + suffix: term.over(norm) for name, term in self.terms(matched).items()}
        return losses

    @torch.no_grad()
    def _costs(
        self, class_logits: Tensor, mask_logits: Tensor, truth: TargetBatch, draw: Sequence[torch.Generator | None]
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

    def _pairs(self, costs: Sequence[Sequence[Tensor]], truth: TargetBatch, device: torch.device) -> list[Pairs]:
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
        return [Pairs(*rows_of_layer) for rows_of_layer in moved]

    def terms(self, layer: MatchedLayer) -> dict[str, Term]:
        """The losses of one supervised layer, by name.

        A subclass returns ``super().terms(layer) | {"loss_mine": Term(total, per="masks")}``.
        """
        config, no_object = self.config, layer.class_logits.shape[-1] - 1
        images, queries, targets = layer.pairs.images, layer.pairs.queries, layer.pairs.targets
        device = layer.class_logits.device
        classes = torch.full(layer.class_logits.shape[:2], no_object, device=device)  # (B, Q)
        classes[images, queries] = layer.truth.labels[targets]
        weight = torch.ones(no_object + 1, device=device)
        weight[-1].fill_(config.no_object_weight)  # an assignment would copy from the CPU under some releases
        loss_ce = F.cross_entropy(layer.class_logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
        logits = layer.mask_logits[images, queries]  # (N, h_s, w_s)
        if len(logits):
            counts = [min(count, layer.mask_logits.shape[1]) for count in layer.truth.counts]
            points = self._loss_points(logits, counts, layer.generators)  # (N, P, 2)
            at_logits = sample_points(logits.unsqueeze(1), points).squeeze(1)  # (N, P)
            at_truth = layer.truth.at_pair_points(images, targets, points)
            loss_mask, loss_dice = mask_loss(at_logits, at_truth).sum(), dice_loss(at_logits, at_truth).sum()
        else:
            loss_mask = loss_dice = logits.sum()  # of no elements: 0, with a gradient of 0
        return {
            "loss_ce": Term(config.class_weight * loss_ce, per="class_weight"),
            "loss_mask": Term(config.mask_weight * loss_mask, per="masks"),
            "loss_dice": Term(config.dice_weight * loss_dice, per="masks"),
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

    def _normalisers(self, num_queries: int, truth: TargetBatch, device: torch.device) -> Normalisers:
        """Of this batch, over all processes; on the device where there are several."""
        counts = count_batch(truth.counts, num_queries, self.config.no_object_weight)
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return average_counts(*counts, num_processes=1)
        world = dist.get_world_size()
        totals = torch.tensor(counts, dtype=torch.float64).to(device, non_blocking=True)
        dist.all_reduce(totals)
        masks, weight, images = totals.unbind()
        return Normalisers(*((each / world).float() for each in (masks.clamp(min=1.0), weight, images)))
