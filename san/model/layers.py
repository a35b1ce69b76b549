"""Small parts of the side network. B batch, T tokens, S width."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.blocks import attend
from san.clip.pos_embed import is_dynamic

LAYER_NORM_EPS = 1e-6
"""Epsilon of LayerNorm in the side network and the fusions; CLIP's is 1e-5 (guarded by tests/test_golden.py)."""


class SideAttention(nn.Module):
    """Multi-head self-attention with qkv bias."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, S) to (B, T, S)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, heads, T, S / heads)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T, S)
        result: Tensor = self.proj(mixed)
        return result


class SideBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.attn = SideAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(embed_dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, embed_dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, S) to (B, T, S)."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        result: Tensor = self.layers[-1](self.hidden(x))
        return result

    def hidden(self, x: Tensor) -> Tensor:
        """(..., in_dim) to the input of the last layer, (..., hidden_dim)."""
        for layer in list(self.layers)[:-1]:
            x = F.relu(layer(x))
        return x


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of CLIP's patch map.

    Not an nn.LayerNorm, because the published optimiser decays these weights and not those of nn.LayerNorm
    (guarded by the optimiser groups in tests/test_golden.py).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


def mask_shares(mask_logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share (B, Q, h * w) of each patch of a grid (h, w) in mask logits (B, Q, h_s, w_s); sums to 1."""
    probs = F.adaptive_avg_pool2d(mask_logits.float().sigmoid(), grid).flatten(2)
    shares: Tensor = probs / probs.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)
    return shares


def adaptive_max_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.adaptive_max_pool2d` (B, C, H, W) to (B, C, *size), also for the dynamic sizes of torch.export."""
    if is_dynamic(size):
        return _adaptive_max(_adaptive_max(x, size[0], dim=2), size[1], dim=3)
    return F.adaptive_max_pool2d(x, size)


def _adaptive_max(x: Tensor, size: int, *, dim: int) -> Tensor:
    """Compute `F.adaptive_max_pool2d` along one axis, also for dynamic sizes."""
    length = x.shape[dim]
    index = torch.arange(size, device=x.device)
    start, stop = index * length // size, ((index + 1) * length + size - 1) // size  # of each window
    longest = (length + size - 1) // size + 1
    places = torch.minimum(
        start[:, None] + torch.arange(longest, device=x.device), stop[:, None] - 1
    )  # (size, longest)
    windows: Tensor = x.index_select(dim, places.flatten()).unflatten(dim, (size, longest))
    return windows.amax(dim=dim + 1)
