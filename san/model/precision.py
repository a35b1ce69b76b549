"""Number types that a network computes in: weights held in them once, and the context that the network runs in.

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
    """Round, once and in place, the weights of the network's products.

    - bfloat16 and float16: what autocast would round at every use. Autocast remembers what it rounded only of weights
      that are being trained. For a model that predicts, this saves reading each of these weights in float32 and writing
      it in half precision for every batch, and half of their memory; the numbers under autocast are the same to the
      last bit. Norms, positions and CLIP's last projections stay as they are.
    - int8: the linear layers of CLIP's image tower and the side network become `Int8Linear`; the rest is bfloat16, or
      float32 where bfloat16 is slower.

    The text tower computes in bfloat16 or float16 then, too; text embeddings are float32. The model is for prediction
    then: it can neither be trained further nor saved in full precision.

    Args:
        model: any SAN, on the device that it will run on.
        dtype: of the `mixed_precision` that the model will run in; float32 does nothing.
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
    for part in (*quantised, model.mask_head, model.bias_head, text.transformer):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
            elif isinstance(module, Attention) and not isinstance(module, Int8Attention):
                _round(module.in_proj_weight, module.in_proj_bias, dtype=dtype)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a model whose weights `hold_weights` holds in a number type computes."""
    dtype = _beside_int8(device) if dtype == torch.int8 else dtype
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _beside_int8(device: torch.device) -> torch.dtype:
    """What the rest of a network computes in, of which some layers are int8."""
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 numbers, with PyTorch's kernel for that.

    A weight is rounded to 127 steps of the largest of its output channel, an activation, each time, to 127 steps of the
    largest of its token. Sums are exact (int32). On a CPU without VNNI instructions the kernel adds two products in
    int16, which overflows unless weights have 63 steps only.

    Args:
        weight: (D_out, D_in).
        bias: (D_out,), or None.
        dtype: of the result.
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
        """(..., D_in) of any floating type to (..., D_out)."""
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
    """Rows of float32 numbers as int8 up to `steps`, and the (rows, 1) that they are to be multiplied with."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / steps
    return (rows / scale).round_().to(torch.int8), scale


def _quantise(module: nn.Module, dtype: torch.dtype) -> None:
    """Exchanges the linear layers in a module whose sizes PyTorch's int8 kernels take, multiples of 8."""
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
