"""The mask heads. B batch, Q queries, S side width, (h_s, w_s) side grid. Source: docs/method.md#4.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from san.model.config import SANConfig
from san.model.layers import MLP
from san.model.parts import MASK_HEADS, MaskHead, MaskPrediction, SideFeatures
from san.record import Options, option


@MASK_HEADS.register("mlp")
class MLPMaskHead(MaskHead):
    """Query and pixel MLPs whose product gives the mask logits."""

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__(options, config)
        head = config.head
        sizes = (config.side_adapter.embed_dim, head.mlp_channels, head.embed_channels, head.mlp_num_layers)
        self.query_mlp = MLP(*sizes)
        self.pixel_mlp = MLP(*sizes)

    def forward(self, features: SideFeatures) -> MaskPrediction:
        """Return mask logits (B, Q, h_s, w_s), and query embeddings (B, Q, embed_channels) for the bias head."""
        queries = self.query_mlp(features.queries)
        pixels = self.pixel_mlp(features.patch_tokens)
        logits = torch.einsum("bqc,btc->bqt", queries, pixels)
        return MaskPrediction(logits.unflatten(2, features.grid), queries)  # (B, Q, h_s, w_s)


@dataclass(frozen=True)
class FineMaskOptions(Options):
    """Options of `FineMaskHead`."""

    factor: int = option(2, "mask logits per side of a patch", least=1, most=8)


@MASK_HEADS.register("fine")
class FineMaskHead(MLPMaskHead):
    """Several mask logits per patch: its token gives an embedding for each of `factor` x `factor` cells.

    It refines masks for the cost of a wider last layer, where a smaller patch would multiply the side network's tokens
    (sub-pixel convolution, arXiv 1609.05158). With factor 1 it is `MLPMaskHead`.
    """

    Options = FineMaskOptions

    def __init__(self, options: FineMaskOptions, config: SANConfig) -> None:
        super().__init__(options, config)
        self.factor, head = options.factor, config.head
        out_dim = head.embed_channels * self.factor**2
        self.pixel_mlp = MLP(config.side_adapter.embed_dim, head.mlp_channels, out_dim, head.mlp_num_layers)

    def forward(self, features: SideFeatures) -> MaskPrediction:
        """Return mask logits (B, Q, factor * h_s, factor * w_s), and query embeddings (B, Q, embed_channels)."""
        queries = self.query_mlp(features.queries)
        pixels = self.pixel_mlp(features.patch_tokens).unflatten(2, (self.factor**2, -1))  # (B, T_s, factor^2, c)
        logits = torch.einsum("bqc,btfc->bqft", queries, pixels)  # (B, Q, factor^2, T_s)
        fine = F.pixel_shuffle(logits.unflatten(3, features.grid), self.factor)
        return MaskPrediction(fine.squeeze(2), queries)  # (B, Q, 1, ...) before
