"""Hungarian matching of queries to target masks (docs/method.md#8.2).

Legend: Q queries, C classes, M target masks, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from san.io.errors import require_extra
from san.losses.config import LossConfig


def pairwise_mask_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the binary cross-entropy of every query with every target, averaged over points.

    Uses bce(x, t) = softplus(x) - x * t to avoid a (Q, M, P) array.

    Args:
        mask_logits: (..., Q, P) at the points.
        masks: (..., M, P) in [0, 1] at the same points.

    Returns:
        (..., Q, M), 0 or more.
    """
    num_points = mask_logits.shape[-1]
    return F.softplus(mask_logits).mean(dim=-1, keepdim=True) - mask_logits @ masks.mT / num_points  # (..., Q, M)


def pairwise_dice_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the dice loss of every query with every target: 1 - (2 * sum(p t) + 1) / (sum(p) + sum(t) + 1).

    Args:
        mask_logits: (..., Q, P) at the points; p is their sigmoid.
        masks: (..., M, P) in [0, 1] at the same points.

    Returns:
        (..., Q, M) in [0, 1).
    """
    probs = mask_logits.sigmoid()
    overlap = probs @ masks.mT  # (..., Q, M)
    total = probs.sum(dim=-1).unsqueeze(-1) + masks.sum(dim=-1).unsqueeze(-2)  # (..., Q, M)
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


@torch.no_grad()
def matching_cost(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor, *, config: LossConfig
) -> Tensor:
    """Compute the cost of every query with every target of an image, or of each of several images ("...").

    Args:
        class_logits: (..., Q, C + 1); the last class is "no object", which no target has.
        mask_logits: (..., Q, P) at the image's points.
        labels: (..., M) int64 in [0, C), on the logits' device.
        masks: (..., M, P) in [0, 1] at the same points.
        config: the three weights `cost_*`.

    Returns:
        (..., Q, M) float32 for inputs of any precision.
    """
    class_logits, mask_logits, masks = class_logits.float(), mask_logits.float(), masks.float()
    with torch.autocast(class_logits.device.type, enabled=False):
        of_each_query = labels.unsqueeze(-2).expand(*class_logits.shape[:-1], -1)  # (..., Q, M)
        cost_class = -class_logits.softmax(dim=-1).gather(-1, of_each_query)
        cost_mask = pairwise_mask_cost(mask_logits, masks)
        cost_dice = pairwise_dice_cost(mask_logits, masks)
        return config.cost_class * cost_class + config.cost_mask * cost_mask + config.cost_dice * cost_dice


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Assign queries to targets one to one, with minimum total cost.

    Args:
        cost: (Q, M). If M exceeds Q, only Q targets are matched.

    Returns:
        Indices of the matched queries and of their targets, both (min(Q, M),) int64 on the CPU, in order of the target.

    Raises:
        FloatingPointError: a cost is not finite.
    """
    return match_all([cost])[0]


def match_all(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Run `match` for many images; their costs are sent to the CPU in one transfer.

    Args:
        costs: (Q, M) each.

    Returns:
        the result of `match` for each image.

    Raises:
        FloatingPointError: a cost is not finite.
    """
    if not costs:
        return []
    together = torch.cat([cost.detach().flatten() for cost in costs]).cpu()
    finite = torch.isfinite(together)
    if not bool(finite.all()):
        raise FloatingPointError(
            f"{int((~finite).sum())} of {together.numel()} matching costs are not finite: the model's class or mask "
            "logits hold nan or inf. Lower the learning rate, check the loaded weights, or train with bf16 or float32 "
            "instead of fp16"
        )
    parts = together.split([cost.numel() for cost in costs])
    return [_assign(part.view(cost.shape)) for part, cost in zip(parts, costs, strict=True)]


def _assign(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return matched rows and columns of a cost matrix on the CPU, in order of the columns."""
    require_extra("train", "matching", "scipy")
    from scipy.optimize import linear_sum_assignment  # takes 40 MB that prediction does not need

    rows, columns = linear_sum_assignment(matrix.numpy())
    queries, targets = torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)
    order = targets.argsort()
    return queries[order], targets[order]
