"""The mask head. B batch, Q queries, S side width, (h_s, w_s) side grid. Source: docs/method.md#4.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from san.model.config import HeadConfig
from san.model.layers import MLP
from san.model.side_adapter import SideFeatures


class MaskHead(nn.Module):
    """Query and pixel MLPs whose product gives the mask logits."""

    def __init__(self, config: HeadConfig, side_width: int) -> None:
        super().__init__()
        self.query_mlp = MLP(side_width, config.mlp_channels, config.embed_channels, config.mlp_num_layers)
        self.pixel_mlp = MLP(side_width, config.mlp_channels, config.embed_channels, config.mlp_num_layers)

    def forward(self, features: SideFeatures) -> tuple[Tensor, Tensor]:
        """Mask logits (B, Q, h_s, w_s), and the query embeddings (B, Q, embed_channels) the bias head shares."""
        queries = self.query_mlp(features.queries)
        pixels = self.pixel_mlp(features.patch_tokens)
        logits = torch.einsum("bqc,btc->bqt", queries, pixels)
        return logits.unflatten(2, features.grid), queries  # (B, Q, h_s, w_s)
