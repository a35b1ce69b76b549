"""Fusions of CLIP features into the side network: addition (published), gated addition, cross-attention.

B batch, S side width, D CLIP width, (h, w) CLIP grid, (h_s, w_s) side grid, T = h * w, T_s = h_s * w_s, N heads.
Source: docs/method.md#3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import NUM_HEADS
from san.clip.blocks import attend
from san.model.layers import LAYER_NORM_EPS, ChannelNorm
from san.model.parts import FUSIONS, Fusion
from san.record import FieldError, Options, option


@FUSIONS.register("add")
class AddFusion(Fusion):
    """Adds a CLIP feature, projected to the side network's width and resized to its grid (published)."""

    def __init__(self, options: Any, clip_width: int, embed_dim: int) -> None:
        super().__init__(options, clip_width, embed_dim)
        self.norm = ChannelNorm(clip_width)
        self.proj = nn.Linear(clip_width, embed_dim)
        nn.init.kaiming_uniform_(self.proj.weight, a=1)  # Caffe2's "Xavier", as published
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Tensor, feature: Tensor, grid: tuple[int, int], side_grid: tuple[int, int]) -> Tensor:
        """See `Fusion.forward`."""
        return patches + self.aligned(feature, grid, side_grid)

    def aligned(self, feature: Tensor, grid: tuple[int, int], side_grid: tuple[int, int]) -> Tensor:
        """Project and resize the CLIP feature (B, h * w, D) on `grid` to (B, T_s, S) on `side_grid`."""
        x = self.proj(self.norm(feature)).transpose(1, 2).unflatten(2, grid)  # (B, S, h, w)
        x = F.interpolate(x, size=side_grid, mode="bilinear", align_corners=False)
        return x.flatten(2).transpose(1, 2)  # (B, T_s, S)


@FUSIONS.register("gated")
class GatedFusion(AddFusion):
    """Adds a CLIP feature times a gate in (0, 2), computed from each patch token and its feature, per channel.

    The gate is 2 sigmoid(W [patch, feature] + b). W and b start at zero, so training starts as with `AddFusion`.
    """

    def __init__(self, options: Any, clip_width: int, embed_dim: int) -> None:
        super().__init__(options, clip_width, embed_dim)
        self.gate = nn.Linear(2 * embed_dim, embed_dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, patches: Tensor, feature: Tensor, grid: tuple[int, int], side_grid: tuple[int, int]) -> Tensor:
        """See `Fusion.forward`."""
        added = self.aligned(feature, grid, side_grid)
        gate = 2 * torch.sigmoid(self.gate(torch.cat([patches, added], dim=-1)))  # (B, T_s, S)
        return patches + gate * added


@dataclass(frozen=True)
class CrossAttentionOptions(Options):
    """Options of `CrossAttentionFusion`."""

    num_heads: int = option(6, "attention heads; they divide the side width", **NUM_HEADS)


@FUSIONS.register("cross_attention")
class CrossAttentionFusion(Fusion):
    """Each patch token attends to all tokens of a CLIP feature, on CLIP's grid, and adds the result.

    Raises:
        FieldError: the heads do not divide the side width.
    """

    Options = CrossAttentionOptions

    def __init__(self, options: CrossAttentionOptions, clip_width: int, embed_dim: int) -> None:
        super().__init__(options, clip_width, embed_dim)
        self.num_heads = options.num_heads
        if embed_dim % self.num_heads:
            raise FieldError(
                f"side width {embed_dim} is not a multiple of the {self.num_heads} heads of the fusion "
                "'cross_attention'; set fusion.options.num_heads to a divisor of it",
                "fusion.options.num_heads",
            )
        self.norm = ChannelNorm(clip_width)
        self.norm_patches = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(clip_width, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, patches: Tensor, feature: Tensor, grid: tuple[int, int], side_grid: tuple[int, int]) -> Tensor:
        """See `Fusion.forward`."""
        q = self._heads(self.q(self.norm_patches(patches)))  # (B, N, T_s, S / N)
        k, v = map(self._heads, self.kv(self.norm(feature)).chunk(2, dim=-1))  # (B, N, T, S / N) each
        found = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T_s, S)
        fused: Tensor = patches + self.proj(found)
        return fused

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, T, S / N)
        return heads
