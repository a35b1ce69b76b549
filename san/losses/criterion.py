"""Training losses over matched queries (docs/method.md#8.2, #8.3).

Legend: B images, Q queries, C classes, M targets of an image, N matched pairs of the batch, P points, (h_s, w_s) side
grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from san.losses.config import LossConfig
from san.losses.matcher import match_all, matching_cost
from san.losses.point_sampling import sample_points, seeded_generator, uniform_points
from san.losses.targets import AnyTarget, TargetBatch, target_batch
from san.losses.terms import TERMS, MatchedLayer, Normalisers, Pairs, Term, average_counts, count_batch

_POINT_VALUES = 2**24  # mask logits at points of a layer, in memory at a time: 64 MB


class SetCriterion(nn.Module):
    """Matches queries to targets and computes the losses of its terms for every supervised layer.

    Every layer is matched separately. Losses are sums divided by counts of the whole iteration (`Normalisers`): summed
    over accumulation steps and averaged over processes, they equal those of one process for the same images.

    Terms are registered parts (`san.losses.terms`); a subclass may also override `terms`.

    Args:
        config: weights, costs, points and terms.

    Raises:
        FieldError: a term is not registered, or one of its options does not fit.
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = config or LossConfig()
        self.parts = nn.ModuleDict({part.name: TERMS.build(part, self.config) for part in self.config.parts})

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
                `sls_embed` (B, Q, E), `aux_outputs`, a list of the same for earlier layers, and `text_embed` (C, E).
            targets: one per image: a `LabelMapTarget`, a `Target`, or a mapping with the entries of one of them.
            seeds: one integer per image. The points of an image then depend only on its seed and the layer, not on its
                position in the batch. None uses torch's global generator.
            norm: divisors of the sums, counted over all processes and accumulation steps of an iteration. None counts
                this batch over all processes.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` and those of other terms, and the same with suffix `_i` for the i-th
            earlier layer; scalars that add up to the objective. Gradients stay connected if an image, or the whole
            batch, has no target.

        Raises:
            ValueError: targets or seeds do not match the outputs.
            FloatingPointError: a matching cost is not finite.
        """
        num_images, num_queries, num_logits = outputs["pred_logits"].shape
        device = outputs["pred_logits"].device
        truth = target_batch(targets, num_images, num_logits - 1, device)
        if seeds is not None and len(seeds) != num_images:
            raise ValueError(f"{len(seeds)} seeds for {num_images} images; give one per image, or none at all")
        norm = norm or self.normalisers(truth.counts, num_queries, device)
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
                embeds = (outputs.get("text_embed"), layer.get("sls_embed"))
                matched = MatchedLayer(layer, *pair, *embeds, truth, found, draw)
                losses |= {name + suffix: term.over(norm) for name, term in self.terms(matched).items()}
        return losses

    @torch.no_grad()
    def _costs(
        self, class_logits: Tensor, mask_logits: Tensor, truth: TargetBatch, draw: Sequence[torch.Generator | None]
    ) -> list[Tensor]:
        """Return matching costs (Q, M) per image with a target, at uniform points shared by its queries and targets.

        Many images are processed at once: targets are padded with empty ones to the maximum per image.
        """
        if not any(truth.counts):
            return []
        device, num_points = mask_logits.device, self.config.num_points
        points = torch.cat([uniform_points(1, num_points, device=device, generator=each) for each in draw])  # (B, P, 2)
        at_truth = truth.at_shared_points(points)  # (sum M, P)
        rows = nn.utils.rnn.pad_sequence(
            list(torch.arange(len(truth.labels)).split(truth.counts)), batch_first=True, padding_value=len(truth.labels)
        ).to(device, non_blocking=True)  # (B, most targets), target numbers; padded with that of the empty one
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
        """Match every layer's costs; one transfer to the CPU and one back to the outputs' device."""
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
        """Return the losses of all terms for one supervised layer, by name.

        Raises:
            ValueError: two terms return a loss of the same name.
        """
        found: dict[str, Term] = {}
        for name, part in self.parts.items():
            own = part(layer)
            if found.keys() & own.keys():
                raise ValueError(
                    f"criterion term {name!r} returns {', '.join(sorted(found.keys() & own.keys()))}, which another "
                    "term returns too; rename the loss"
                )
            found |= own
        return found

    def normalisers(self, num_targets: Sequence[int], num_queries: int, device: torch.device) -> Normalisers:
        """Count a batch over all processes; each process must call it. With several processes it runs on the device.

        Args:
            num_targets: M for each image of this process.
            num_queries: Q.
            device: device of the outputs.
        """
        own = count_batch(num_targets, num_queries, self.config.no_object_weight)
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return average_counts(*own, num_processes=1)
        world = dist.get_world_size()
        totals = torch.tensor(own, dtype=torch.float64).to(device, non_blocking=True)
        dist.all_reduce(totals)
        masks, weight, images, pairs = totals.unbind()
        counts = (masks.clamp(min=1.0), weight, images, pairs.clamp(min=1.0))
        return Normalisers(*((each / world).float() for each in counts))
