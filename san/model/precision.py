"""Number types of a network: converts weights once, and provides the context in which the network runs."""

from __future__ import annotations

import torch
from torch import nn

from san.clip.blocks import Attention
from san.devices import computes_bfloat16
from san.model.int8 import Int8Attention, quantise
from san.model.san import SANModel


def round_weights(model: SANModel, dtype: torch.dtype) -> None:
    """Round the weights of the network's matrix products, once and in place.

    - bfloat16 and float16: the weights that autocast would round at every use. Autocast caches rounded weights only if
      they are trained. In prediction, rounding once avoids reading each weight in float32 and writing it in half
      precision for every batch, and halves their memory. Results under autocast are the same bit for bit. Norms,
      positions and CLIP's last projections are not changed.
    - int8: see `quantise`; the rest is bfloat16, or float32 if bfloat16 is slower.

    Text embeddings are float32. The model can only predict: it can neither be trained further nor saved.

    Args:
        model: any SAN, on the device that it will run on.
        dtype: number type of the `mixed_precision` in which the model will run; float32 does nothing.
    """
    if dtype == torch.int8:
        dtype = _beside_int8(model.pixel_mean.device)
        quantise(model, dtype)
    if dtype == torch.float32:
        return
    text = model.text_classifier
    text.embedder.amp_dtype = dtype
    image_side = (model.shallow_clip, model.deep_clip, model.side_adapter, model.mask_head, model.bias_head)
    for part in (*image_side, text):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
            elif isinstance(module, Attention) and not isinstance(module, Int8Attention):
                _round(module.in_proj_weight, module.in_proj_bias, dtype=dtype)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a model runs after `round_weights` with a number type."""
    dtype = _beside_int8(device) if dtype == torch.int8 else dtype
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _beside_int8(device: torch.device) -> torch.dtype:
    """Return the number type of the layers that are not int8."""
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def _round(*parameters: nn.Parameter, dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
