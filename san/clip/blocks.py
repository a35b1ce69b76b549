"""The transformer block of both CLIP towers.

B batch, T tokens, D width, N_h heads, d = D / N_h. Parameters have the names of open_clip, so
its weights load unchanged.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.devices import cpu_supports

_MAX_LOGITS = 2**25
"""Maximum number of attention logits in memory if they are computed explicitly: 64 MB in bfloat16."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax attention (B, N_h, T, d) of queries (B, N_h, T, d) over keys and values (B, N_h, T', d).

    Uses torch's fused kernel. In bfloat16 on a CPU without AMX, that kernel is slower than in float32 (47 ms for 1700
    tokens, 6 heads of 40), although matrix products take half the time of float32. In this case attention is computed
    with matrix products (32 ms). Their logits are rounded to bfloat16. To reduce this error, the mean of the keys is
    subtracted: this does not change the softmax, and in a trained network the mean is a large part of the logits.
    """
    written_out = q.dtype == torch.bfloat16 and q.device.type == "cpu" and not cpu_supports("amx_tile")
    if not written_out or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    k = (k - k.mean(dim=2, keepdim=True)) * q.shape[-1] ** -0.5
    rows = max(1, _MAX_LOGITS // (q.shape[1] * k.shape[2]))  # of one image
    images = []
    for image, keys, values in zip(q.split(1), k.split(1), v.split(1), strict=True):
        parts = [(part @ keys.transpose(2, 3)).softmax(dim=-1) @ values for part in image.split(rows, dim=2)]
        images.append(torch.cat(parts, dim=2))
    return torch.cat(images)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights (guarded by tests/clip/test_loader.py)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; the shape does not change."""
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
        """Project tokens (B, T, D) to queries, keys and values, each (B, N_h, T, d)."""
        batch, length, width = x.shape
        qkv = self.packed(x).view(batch, length, 3, self.num_heads, width // self.num_heads)  # (B, T, 3, N_h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, N_h, T, d)
        return q, k, v

    def packed(self, x: Tensor) -> Tensor:
        """Project tokens (B, T, D) to concatenated queries, keys and values (B, T, 3 D)."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def merge(self, heads: Tensor) -> Tensor:
        """Project attention results (B, N_h, T, d) to output tokens (B, T, D)."""
        merged: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, T, D)
        return merged


class AnyBlock(nn.Module):
    """Base of transformer blocks whose attention can be computed between `project` and `finish`."""

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, N_h, T, d) of tokens (B, T, D).

        Args:
            x: the tokens.
            rotation: (T', 2 d), sines and cosines that rotate queries and keys of the last T' tokens, in blocks with
                rotary positions.
        """
        raise NotImplementedError

    def attended(self, x: Tensor, heads: Tensor) -> Tensor:
        """Return tokens (B, T, D) before the MLP, given their attention results (B, N_h, T, d)."""
        raise NotImplementedError

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Compute the rest of the block for tokens (B, T, D), given their attention results (B, N_h, T, d)."""
        raise NotImplementedError


class Block(AnyBlock):
    """Pre-norm residual block: attention, then a two-layer MLP.

    Args:
        embed_dim: D.
        num_heads: N_h.
        mlp_ratio: width of the MLP, in multiples of D.
        quick_gelu: the activation is `QuickGELU`, else GELU.
        tanh_gelu: GELU with tanh.
        norm_eps: epsilon of LayerNorm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        quick_gelu: bool,
        tanh_gelu: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.ln_1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads)
        self.ln_2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        act = QuickGELU() if quick_gelu else nn.GELU("tanh" if tanh_gelu else "none")
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(embed_dim, hidden), act=act, c_proj=nn.Linear(hidden, embed_dim))
        )

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        """Map (B, T, D) to (B, T, D); with `causal`, a token attends only to itself and earlier ones."""
        q, k, v = self.project(x)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True) if causal else attend(q, k, v)
        return self.finish(x, heads)

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See `AnyBlock.project`; there are no rotary positions."""
        assert rotation is None
        return self.attn.project(self.ln_1(x))

    def attended(self, x: Tensor, heads: Tensor) -> Tensor:
        """See `AnyBlock.attended`."""
        return x + self.attn.merge(heads)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """See `AnyBlock.finish`."""
        x = self.attended(x, heads)
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result
