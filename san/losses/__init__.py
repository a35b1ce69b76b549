"""Training losses, plain PyTorch: points, matching, criterion (method.md 8.2-8.3)."""

from san.losses.config import LossConfig
from san.losses.criterion import SetCriterion, Target, dice_loss, mask_loss
from san.losses.matcher import match, matching_cost

__all__ = ["LossConfig", "SetCriterion", "Target", "dice_loss", "mask_loss", "match", "matching_cost"]
