"""Weights in int8: the layers that compute with them, and the tensors of a file that holds them.

A row of a matrix, the weights of one output channel or of one token, is rounded to 127 steps of its largest value, its
scale. D_in, D_out input and output width of a layer, T tokens of a batch, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.blocks import Attention
from san.devices import multiplies_int8
from san.io.errors import excerpt
from san.model.san import SANModel

_LEAST_ROWS = 17  # of the left matrix in torch._int_mm on a GPU
_SCALE = ".int8_scale"  # ends the name of a matrix's scales in a file


class Int8Linear(nn.Module):
    """A linear layer with int8 weights.

    Weights are rounded once to 127 steps of the largest value of their output channel. Where PyTorch multiplies int8
    matrices fast (`multiplies_int8`), activations are rounded in every call to 127 steps of the largest value of their
    token, and sums are exact (int32). Elsewhere the product is that of float32 numbers, and only memory is saved.

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
        self.dtype, self.rounds_tokens = dtype, multiplies_int8(weight.device)
        weight = weight.detach().float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        rounded, scale = _to_int8(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D_in) of any floating type to (..., D_out)."""
        tokens = x.flatten(0, -2).float()  # (T, D_in)
        if self.rounds_tokens:
            rounded, scale = _to_int8(tokens)  # scale (T, 1)
            count = len(rounded)
            if count < _LEAST_ROWS:
                rounded = F.pad(rounded, (0, 0, 0, _LEAST_ROWS - count))
            product = torch._int_mm(rounded, self.weight.t())[:count].float().mul_(scale)  # (T, D_out)
        else:
            product = tokens @ self.weight.t().float()
        return torch.addcmul(self.bias, product, self.scale).to(self.dtype).view(*x.shape[:-1], -1)


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


class Int8Embedding(nn.Module):
    """A table of vectors (N, D), looked up in float32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rounded, scale = _to_int8(weight.detach().float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., D) of ids (...)."""
        return self.weight[ids] * self.scale[ids]


def quantise(model: SANModel, dtype: torch.dtype) -> None:
    """Replace the linear layers of both CLIP towers and the side network, and the table of words, by int8 ones.

    Args:
        model: changed in place; it can only predict then.
        dtype: number type of the layers' results.
    """
    for parent, name, child in list(_quantisable(model)):
        if isinstance(child, Attention):
            layer: nn.Module = Int8Attention(child, dtype)
        elif isinstance(child, nn.Linear):
            layer = Int8Linear(child.weight, child.bias, dtype)
        else:
            assert isinstance(child, nn.Embedding), "see _quantisable"
            layer = Int8Embedding(child.weight)
        setattr(parent, name, layer)


def pack_int8(model: SANModel) -> dict[str, Tensor]:
    """Return a model's state with the matrices that `quantise` rounds in int8, each with its scales (N,) beside it."""
    names = {id(matrix) for _, _, child in _quantisable(model) for matrix in _matrices(child)}
    wanted = {name for name, value in model.named_parameters() if id(value) in names}
    packed = {}
    for name, value in model.state_dict().items():
        if name in wanted:
            packed[name], scale = _to_int8(value.detach().float())
            packed[name + _SCALE] = scale.squeeze(1)
        else:
            packed[name] = value
    return packed


def unpack_int8(tensors: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Return the tensors of a file in float32 where `pack_int8` wrote int8; others are unchanged.

    Raises:
        ValueError: an int8 matrix has no scales, or scales of another shape.
    """
    found = {}
    for name, value in tensors.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        if value.dtype == torch.int8:
            scale = tensors.get(name + _SCALE)
            if scale is None or not scale.is_floating_point() or scale.shape != value.shape[:1]:
                found_scale = "none" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
                raise ValueError(
                    f"{label} has the int8 tensor {excerpt(name)} of shape {tuple(value.shape)}, which needs one scale "
                    f"a row in {excerpt(name + _SCALE)}; found {found_scale}. Write it with san convert --dtype int8"
                )
            value = value.float() * scale.float().view(-1, *(1,) * (value.ndim - 1))
        found[name] = value
    return found


def _quantisable(model: SANModel) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield layers of sizes that PyTorch's int8 kernels support, multiples of 8: parent, name and layer."""
    pending: list[nn.Module] = [model.shallow_clip, model.deep_clip, model.side_adapter]
    text = model.text_classifier
    if text.foreign is None:
        yield text, "token_embedding", text.token_embedding
        pending.append(text.transformer)
    while pending:
        parent = pending.pop()
        for name, child in parent.named_children():
            sizes = [size for matrix in _matrices(child) for size in matrix.shape]
            if not sizes or isinstance(child, nn.Embedding) or any(size % 8 for size in sizes):
                pending.append(child)
            else:
                yield parent, name, child


def _matrices(layer: nn.Module) -> tuple[Tensor, ...]:
    """Return the matrices (D_out, D_in) or (N, D) of a layer; none of one with another class."""
    if isinstance(layer, Attention):
        return layer.in_proj_weight, layer.out_proj.weight
    return (layer.weight,) if isinstance(layer, (nn.Linear, nn.Embedding)) else ()


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of float32 numbers as int8, and their scale factors (rows, 1)."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / 127
    return (rows / scale).round_().to(torch.int8), scale
