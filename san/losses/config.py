"""Options of the training losses (docs/method.md#8.2, #8.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses and of the matching costs, and how points are drawn.

    The defaults are those of the published model (docs/method.md#8.2, #8.3).

    Attributes:
        class_weight: factor of the cross-entropy over C + 1 classes.
        mask_weight: factor of the mask binary cross-entropy.
        dice_weight: factor of the dice loss.
        no_object_weight: weight of the "no object" class inside the weighted mean of the cross-entropy; above 0.
        num_points: points per mask, for matching and for the mask losses.
        oversample_ratio: candidates drawn per kept point, at least 1.
        importance_ratio: share of the points that are the most uncertain candidates, in [0, 1]; the rest is uniform.
        cost_class: matching cost per unit of class probability.
        cost_mask: matching cost per unit of mask binary cross-entropy.
        cost_dice: matching cost per unit of dice.

    Raises:
        ValueError: if a value lies outside its range.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    cost_class: float = 2.0
    cost_mask: float = 5.0
    cost_dice: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} is {value}; give a finite number that is 0 or more")
        if self.no_object_weight == 0:
            raise ValueError("no_object_weight is 0, so a batch without objects has no loss; give a number above 0")
        if int(self.num_points) != self.num_points or self.num_points < 1:
            raise ValueError(f"num_points is {self.num_points}; give a whole number of 1 or more")
        if self.oversample_ratio < 1:
            raise ValueError(f"oversample_ratio is {self.oversample_ratio}; give 1 (no oversampling) or more")
        if self.importance_ratio > 1:
            raise ValueError(f"importance_ratio is {self.importance_ratio}; give a share between 0 and 1")
        if self.cost_class == self.cost_mask == self.cost_dice == 0:
            raise ValueError("cost_class, cost_mask and cost_dice are all 0, so nothing decides the match; raise one")
