"""The mask head. B batch, Q queries, S side width, (h_s, w_s) side grid. Source: docs/method.md#4.1."""

from __future__ import annotations

from typing import Any

import torch

from san.model.config import SANConfig
from san.model.layers import MLP
from san.model.parts import MASK_HEADS, MaskHead, MaskPrediction, SideFeatures


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
