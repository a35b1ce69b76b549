"""Options of the training losses (docs/method.md#8.2, #8.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from san.record import FieldError, Options, option
from san.registry import PartConfig


@dataclass(frozen=True)
class LossConfig(Options):
    """Weights of the losses and the matching costs, and options of the point sampling.

    The defaults are those of the published model (docs/method.md#8.2, #8.3).

    Raises:
        FieldError: a value is outside its range.
    """

    PLACE: ClassVar[str] = "loss."
    class_weight: float = option(2.0, "factor of the cross-entropy over C + 1 classes", least=0, most=10**6)
    mask_weight: float = option(5.0, "factor of the mask binary cross-entropy", least=0, most=10**6)
    dice_weight: float = option(5.0, "factor of the dice loss", least=0, most=10**6)
    no_object_weight: float = option(
        0.1, 'weight of the class "no object" inside the weighted mean of the cross-entropy', above=0, most=10**6
    )
    num_points: int = option(12544, "points per mask, in matching and in the mask losses", least=1, most=10**6)
    oversample_ratio: float = option(3.0, "candidates drawn per point kept", least=1, most=100)
    importance_ratio: float = option(
        0.75, "share of the points that are the most uncertain candidates; the rest is uniform", least=0, most=1
    )
    cost_class: float = option(2.0, "matching cost per unit of class probability", least=0, most=10**6)
    cost_mask: float = option(5.0, "matching cost per unit of mask binary cross-entropy", least=0, most=10**6)
    cost_dice: float = option(5.0, "matching cost per unit of dice", least=0, most=10**6)
    terms: tuple[str, ...] = option(
        ("classes", "masks"),
        "registered criterion terms that make up the objective; classes, masks and structure are SAN's own",
    )
    options: Mapping[str, Any] = option(dict, "options of the terms, by name of the term")

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.num_points) != self.num_points:
            raise FieldError(f"loss.num_points is {self.num_points}; give a whole number", "loss.num_points")
        if self.cost_class == self.cost_mask == self.cost_dice == 0:
            costs = ("loss.cost_class", "loss.cost_mask", "loss.cost_dice")
            raise FieldError(f"{', '.join(costs)} are all 0, so nothing decides the match; raise one", *costs)
        if not self.terms or len(set(self.terms)) != len(self.terms):
            raise FieldError(
                f"loss.terms is {list(self.terms)}; name one term or more, each once, such as classes and masks",
                "loss.terms",
            )
        for name in self.options:
            if name not in self.terms:
                raise FieldError(
                    f"loss.options has the entry {name!r}, which is none of loss.terms: {', '.join(self.terms)}",
                    "loss.options",
                    "loss.terms",
                )

    @property
    def parts(self) -> tuple[PartConfig, ...]:
        """Return the terms with their options."""
        return tuple(PartConfig(name, self.options.get(name, {})) for name in self.terms)
