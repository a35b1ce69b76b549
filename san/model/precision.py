"""Number types of a network: converts weights once, and provides the context in which the network runs.

D_in, D_out input and output width of a layer, T tokens of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.blocks import Attention
from san.devices import computes_bfloat16, cpu_supports
from san.model.san import SANModel

_LEAST_ROWS = 17  # of the left matrix in torch._int_mm on a GPU


def hold_weights(model: SANModel, dtype: torch.dtype) -> None:
    """Round the weights of the network's matrix products, once and in place.

    - bfloat16 and float16: the weights that autocast would round at every use. Autocast caches rounded weights only if
      they are trained. In prediction, rounding once avoids reading each weight in float32 and writing it in half
      precision for every batch, and halves their memory. Results under autocast are the same bit for bit. Norms,
      positions and CLIP's last projections are not changed.
    - int8: the linear layers of CLIP's image tower and the side network become `Int8Linear`; the rest is bfloat16, or
      float32 if bfloat16 is slower.

    The text tower then computes in bfloat16 or float16 too; text embeddings are float32. The model can only predict: it
    can neither be trained further nor saved in full precision.

    Args:
        model: any SAN, on the device that it will run on.
        dtype: number type of the `mixed_precision` in which the model will run; float32 does nothing.
    """
    quantised: tuple[nn.Module, ...] = (model.shallow_clip, model.deep_clip, model.side_adapter)
    if dtype == torch.int8:
        dtype = _beside_int8(model.pixel_mean.device)
        for part in quantised:
            _quantise(part, dtype)
    if dtype == torch.float32:
        return
    text = model.text_classifier
    text.embedder.amp_dtype = dtype
    for part in (*quantised, model.mask_head, model.bias_head, text):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
            elif isinstance(module, Attention) and not isinstance(module, Int8Attention):
                _round(module.in_proj_weight, module.in_proj_bias, dtype=dtype)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a model runs after `hold_weights` with a number type."""
    dtype = _beside_int8(device) if dtype == torch.int8 else dtype
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _beside_int8(device: torch.device) -> torch.dtype:
    """Return the number type of the layers that are not int8."""
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 numbers, with PyTorch's kernel for that.

    Weights are rounded once to 127 steps of the largest value of their output channel. Activations are rounded in every
    call to 127 steps of the largest value of their token. Sums are exact (int32). On a CPU without VNNI instructions
    the kernel adds two products in int16, which would overflow, so weights have only 63 steps.

    Args:
        weight: (D_out, D_in).
        bias: (D_out,), or None.
        dtype: number type of the result.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        steps = 127 if weight.device.type != "cpu" or cpu_supports("vnni") else 63
        weight = weight.detach().float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        rounded, scale = _to_int8(weight, steps)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D_in) of any floating type to (..., D_out)."""
        tokens, scale = _to_int8(x.flatten(0, -2).float())  # (T, D_in), (T, 1)
        count = len(tokens)
        if count < _LEAST_ROWS:
            tokens = F.pad(tokens, (0, 0, 0, _LEAST_ROWS - count))
        sums = torch._int_mm(tokens, self.weight.t())[:count]  # (T, D_out)
        result = torch.addcmul(self.bias, sums.float().mul_(scale), self.scale).to(self.dtype)
        return result.view(*x.shape[:-1], -1)


class Int8Attention(Attention):
    """CLIP's attention with `Int8Linear` projections."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.num_heads, out = attention.num_heads, attention.out_proj
        self.in_proj = Int8Linear(attention.in_proj_weight, attention.in_proj_bias, dtype)
        self.out_proj = Int8Linear(out.weight, out.bias, dtype)  # type: ignore[assignment]

    def packed(self, x: Tensor) -> Tensor:
        """See `Attention.packed`."""
        result: Tensor = self.in_proj(x)
        return result


def _to_int8(rows: Tensor, steps: int = 127) -> tuple[Tensor, Tensor]:
    """Return rows of float32 numbers as int8 up to `steps`, and their scale factors (rows, 1)."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / steps
    return (rows / scale).round_().to(torch.int8), scale


def _quantise(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers in a module with sizes that PyTorch's int8 kernels support, multiples of 8."""
    for name, child in module.named_children():
        if isinstance(child, Attention) and child.out_proj.in_features % 8 == 0:
            setattr(module, name, Int8Attention(child, dtype))
        elif isinstance(child, nn.Linear) and child.in_features % 8 == child.out_features % 8 == 0:
            setattr(module, name, Int8Linear(child.weight, child.bias, dtype))
        else:
            _quantise(child, dtype)


def _round(*parameters: nn.Parameter, dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
