"""The terms of the criterion: inputs, outputs, registry, and SAN's own terms.

Legend: B images, Q queries, C classes, E joint embedding, M targets of an image, N matched pairs of the batch,
P points, (h_s, w_s) side grid. Source: docs/method.md#8.3; docs/extend.md shows how to add a term.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from san.losses.config import LossConfig
from san.losses.point_sampling import keep_uncertain, sample_points, uniform_points
from san.losses.targets import TargetBatch
from san.part import Part
from san.record import Options, option
from san.registry import Registry

TERMS: Registry[type[CriterionTerm]] = Registry("criterion term", "loss.terms", "loss.options.{name}.", own=__name__)


@dataclass(frozen=True)
class Pairs:
    """Matched queries of a layer: image, query, and target numbered over the batch; (N,) int64 each, by image."""

    images: Tensor
    queries: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Normalisers:
    """Divisors of the loss sums: counts of an iteration, averaged over its processes.

    Attributes:
        masks: number of targets; at least 1 over all processes.
        class_weight: sum of the class weights of all queries.
        images: number of images in a process's share of the batch.
        pairs: number of pairs of matched masks of one image; at least 1 over all processes.
    """

    masks: float | Tensor
    class_weight: float | Tensor
    images: float | Tensor
    pairs: float | Tensor = 1.0


@dataclass(frozen=True)
class MatchedLayer:
    """One supervised layer, with its queries matched to targets.

    Attributes:
        outputs: outputs of the layer, as returned by the model.
        class_logits: (B, Q, C + 1) float32.
        mask_logits: (B, Q, h_s, w_s) float32, before the sigmoid.
        text_embed: (C, E), if the outputs of the batch have it.
        sls_embed: (B, Q, E), if the outputs of the layer have it.
        truth: the targets of the batch.
        pairs: matched queries and their targets.
        generators: generator of each image's random points; None uses torch's global generator.
    """

    outputs: Mapping[str, Any]
    class_logits: Tensor
    mask_logits: Tensor
    text_embed: Tensor | None
    sls_embed: Tensor | None
    truth: TargetBatch
    pairs: Pairs
    generators: Sequence[torch.Generator | None]


@dataclass(frozen=True)
class Term:
    """One loss of a supervised layer.

    Attributes:
        total: weighted sum, a scalar.
        per: the field of `Normalisers` that the criterion divides it by: "masks", "class_weight", "images" or "pairs".
    """

    total: Tensor
    per: Literal["masks", "class_weight", "images", "pairs"]

    def over(self, norm: Normalisers) -> Tensor:
        """Return the loss.

        Raises:
            ValueError: `per` is none of them.
        """
        if self.per not in Normalisers.__dataclass_fields__:
            known = ", ".join(Normalisers.__dataclass_fields__)
            raise ValueError(f"a loss is divided by {self.per!r}, which is not counted; choose one of {known}")
        divisor: float | Tensor = getattr(norm, self.per)
        return self.total / divisor


def count_batch(
    num_targets: Iterable[int], num_queries: int, no_object_weight: float
) -> tuple[float, float, float, float]:
    """Return what a batch adds to the fields of `Normalisers`, in their order; known before matching.

    Args:
        num_targets: M for each image; min(Q, M) of its queries are matched.
        num_queries: Q.
        no_object_weight: class weight of a query without a target.
    """
    counts = [*num_targets]
    found = [min(num_queries, count) for count in counts]
    class_weight = sum(found) + no_object_weight * (len(counts) * num_queries - sum(found))
    pairs = sum(count * (count - 1) // 2 for count in found)
    return float(sum(counts)), class_weight, float(len(counts)), float(pairs)


def average_counts(masks: float, class_weight: float, images: float, pairs: float, num_processes: int) -> Normalisers:
    """Build `Normalisers` from sums over an iteration's processes and accumulation steps.

    The minimum of one mask, and of one pair, applies to the total, not per process: losses must not depend on the
    number of processes.
    """
    totals = (max(masks, 1.0), class_weight, images, max(pairs, 1.0))
    return Normalisers(*(each / num_processes for each in totals))


def dice_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the dice loss of pairs: 1 - (2 * sum(p t) + 1) / (sum(p) + sum(t) + 1).

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
    """Compute the binary cross-entropy of pairs, averaged over points.

    Args:
        mask_logits: (N, P).
        masks: (N, P) in [0, 1].

    Returns:
        (N,), each 0 or more.
    """
    return F.binary_cross_entropy_with_logits(mask_logits, masks, reduction="none").mean(dim=1)


class CriterionTerm(Part):
    """One or more losses of the objective.

    Args:
        options: options of the term.
        config: configuration of the criterion.
    """

    def __init__(self, options: Any, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, layer: MatchedLayer) -> dict[str, Term]:
        """Return the losses of one supervised layer by name; called once per layer, outside autocast."""
        raise NotImplementedError


@TERMS.register("classes")
class ClassTerm(CriterionTerm):
    """``loss_ce``: weighted cross-entropy over C + 1 classes of all queries, "no object" for those without a target."""

    def forward(self, layer: MatchedLayer) -> dict[str, Term]:
        """See `CriterionTerm.forward`."""
        no_object, device = layer.class_logits.shape[-1] - 1, layer.class_logits.device
        classes = torch.full(layer.class_logits.shape[:2], no_object, device=device)  # (B, Q)
        classes[layer.pairs.images, layer.pairs.queries] = layer.truth.labels[layer.pairs.targets]
        weight = torch.ones(no_object + 1, device=device)
        weight[-1].fill_(self.config.no_object_weight)  # an assignment would copy from the CPU under some releases
        total = F.cross_entropy(layer.class_logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
        return {"loss_ce": Term(self.config.class_weight * total, per="class_weight")}


@TERMS.register("masks")
class MaskTerm(CriterionTerm):
    """``loss_mask`` and ``loss_dice`` of matched masks, at points drawn for each."""

    def forward(self, layer: MatchedLayer) -> dict[str, Term]:
        """See `CriterionTerm.forward`."""
        images, queries, targets = layer.pairs.images, layer.pairs.queries, layer.pairs.targets
        logits = layer.mask_logits[images, queries]  # (N, h_s, w_s)
        if len(logits):
            counts = [min(count, layer.mask_logits.shape[1]) for count in layer.truth.counts]
            points = self._points(logits, counts, layer.generators)  # (N, P, 2)
            at_logits = sample_points(logits.unsqueeze(1), points).squeeze(1)  # (N, P)
            at_truth = layer.truth.at_pair_points(images, targets, points)
            loss_mask, loss_dice = mask_loss(at_logits, at_truth).sum(), dice_loss(at_logits, at_truth).sum()
        else:
            loss_mask = loss_dice = logits.sum()  # sum over no elements: 0, with a gradient of 0
        return {
            "loss_mask": Term(self.config.mask_weight * loss_mask, per="masks"),
            "loss_dice": Term(self.config.dice_weight * loss_dice, per="masks"),
        }

    def _points(self, logits: Tensor, counts: Sequence[int], draw: Sequence[torch.Generator | None]) -> Tensor:
        """Draw points (N, P, 2) for matched mask logits (N, h_s, w_s): mostly uncertain ones, the rest uniform.

        The points of an image's pairs, `counts` of them, are drawn from the image's generator.
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


@dataclass(frozen=True)
class StructureOptions(Options):
    """Options of `StructureTerm`."""

    weight: float = option(1.0, "factor of the loss", least=0, most=10**6)


@TERMS.register("structure")
class StructureTerm(CriterionTerm):
    """``loss_structure``: distances between matched masks imitate those between the names of their classes.

    The distance of two embeddings is 1 - cosine. The loss is the mean absolute difference of both distances, over the
    pairs of masks of one image; masks of several images are not compared, because a loss must not depend on which
    images share a batch. Names get no gradient.

    It is the distance-wise loss of relational knowledge distillation (arXiv 1904.05068), with names as the teacher.
    Source: docs/beyond.md#structure.
    """

    Options = StructureOptions

    def __init__(self, options: StructureOptions, config: LossConfig) -> None:
        super().__init__(options, config)
        self.weight = options.weight

    def forward(self, layer: MatchedLayer) -> dict[str, Term]:
        """See `CriterionTerm.forward`.

        Raises:
            ValueError: the outputs have no embeddings.
        """
        if layer.sls_embed is None or layer.text_embed is None:
            raise ValueError("the term 'structure' compares embeddings; give outputs with sls_embed and text_embed")
        images = layer.pairs.images  # (N,)
        masks = layer.sls_embed[images, layer.pairs.queries].float()  # (N, E)
        names = layer.text_embed.detach()[layer.truth.labels[layer.pairs.targets]].float()  # (N, E)
        once = (images[:, None] == images).triu(diagonal=1)  # (N, N), each pair of one image
        difference = (masks @ masks.T - names @ names.T).abs()  # of 1 - cosine, as of the cosines
        return {"loss_structure": Term(self.weight * (difference * once).sum(), per="pairs")}
