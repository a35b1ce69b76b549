"""The transformer block of both CLIP towers.

B batch, T tokens, D width, N_h heads, d = D / N_h. Parameters have the names of open_clip, so
its weights load unchanged.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights (guarded by tests/clip/test_loader.py)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; the shape stays."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with one packed input projection."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"width {embed_dim} is not a multiple of {num_heads} heads; change one of them")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T, D) to queries, keys and values, each (B, N_h, T, d)."""
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(batch, length, 3, self.num_heads, width // self.num_heads)  # (B, T, 3, N_h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, N_h, T, d)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Attention results (B, N_h, T, d) to output tokens (B, T, D)."""
        merged: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, T, D)
        return merged


class Block(nn.Module):
    """Pre-norm residual block: attention, then a two-layer MLP."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, *, quick_gelu: bool) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.ln_1 = nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads)
        self.ln_2 = nn.LayerNorm(embed_dim)
        act = QuickGELU() if quick_gelu else nn.GELU()
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(embed_dim, hidden), act=act, c_proj=nn.Linear(hidden, embed_dim))
        )

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        """(B, T, D) to (B, T, D); with `causal`, a token sees itself and earlier ones only."""
        q, k, v = self.attn.project(self.ln_1(x))
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Compute the rest of the block for tokens (B, T, D), given their attention results (B, N_h, T, d)."""
        x = x + self.attn.merge(heads)
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result
