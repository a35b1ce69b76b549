"""Training losses, plain PyTorch: points, matching, criterion (docs/method.md#8.2, #8.3)."""

from san.losses.config import LossConfig
from san.losses.criterion import SetCriterion
from san.losses.matcher import match, match_all, matching_cost
from san.losses.targets import LabelMapTarget, Target
from san.losses.terms import TERMS, CriterionTerm, MatchedLayer, Normalisers, Term, dice_loss, mask_loss

__all__ = [
    "TERMS",
    "CriterionTerm",
    "LabelMapTarget",
    "LossConfig",
    "MatchedLayer",
    "Normalisers",
    "SetCriterion",
    "Target",
    "Term",
    "dice_loss",
    "mask_loss",
    "match",
    "match_all",
    "matching_cost",
]
