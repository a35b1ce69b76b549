"""Weights held in the number type that a network computes in."""

from __future__ import annotations

import torch
from torch import nn

from san.clip.blocks import Attention
from san.model.san import SANModel


def hold_weights(model: SANModel, dtype: torch.dtype) -> None:
    """Rounds, once and in place, the weights that autocast would round at every use: the image side's products.

    Autocast remembers what it rounded only of weights that are being trained. For a model that predicts, this saves
    reading each of these weights in float32 and writing it in half precision for every batch, and half of their memory;
    the numbers under autocast are the same to the last bit. Norms, positions and the text tower stay as they are.
    The model is for prediction then: it can neither be trained further nor saved in full precision.

    Args:
        model: any SAN.
        dtype: of the autocast that the model will run in; float32 does nothing.
    """
    if dtype == torch.float32:
        return
    for part in (model.shallow_clip, model.deep_clip, model.side_adapter, model.mask_head, model.bias_head):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
            elif isinstance(module, Attention):
                _round(module.in_proj_weight, module.in_proj_bias, dtype=dtype)
    _round(model.deep_clip.proj, dtype=dtype)


def _round(*parameters: nn.Parameter, dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
