"""Stores weights in the number type of the computation."""

from __future__ import annotations

import torch
from torch import nn

from san.clip.blocks import Attention
from san.model.san import SANModel


def round_weights(model: SANModel, dtype: torch.dtype) -> None:
    """Round, once and in place, the weights that autocast would round at every use: those of the image side's products.

        Autocast caches rounded weights in training only. In prediction this saves the conversion of these weights for
        every
    batch, and half of their memory; results under autocast are bit for bit the same. Norms, positions and the text
    tower are unchanged. Afterwards the model can neither be trained nor saved in full precision.

    Args:
        model: any SAN.
        dtype: of autocast; float32 does nothing.
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
