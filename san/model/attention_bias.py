"""The attention-bias heads: where each [SLS] token attends, per head of CLIP.

B batch, Q queries, L bias layers, N bias heads, c embed channels, d hidden channels of the patch MLP, (h_s, w_s) side
grid, T_s = h_s * w_s, (h, w) CLIP grid. Source: docs/method.md#4.2 and #5.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from san.model.config import SANConfig
from san.model.layers import MLP
from san.model.parts import BIAS_HEADS, BiasHead, MaskPrediction, SideFeatures


class ScaledBiasHead(BiasHead):
    """Base of heads whose biases have one learnt scale and offset (`learnt_scale`), or are zero (`enabled`)."""

    def add_scale(self) -> None:
        """Create the parameters, if configured; called at the end of a constructor."""
        if self.config.learnt_scale:
            self.scale = nn.Parameter(torch.ones(1))
            self.offset = nn.Parameter(torch.zeros(1))

    def scaled(self, bias: Tensor) -> Tensor:
        """Scale and shift biases of any shape, or set them to zero."""
        if self.config.learnt_scale:
            bias = bias * self.scale + self.offset
        return bias if self.config.enabled else bias * 0  # so that all weights have a gradient


@BIAS_HEADS.register("mlp")
class AttentionBiasHead(ScaledBiasHead):
    """A patch MLP with one embedding per layer and head, multiplied with the query embedding.

    The MLP's last layer (W, b) is linear, so query . (W z + b) is computed as (query W) . z + query . b, without the
    embeddings of all patches, (B, T_s, L N c).
    """

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__(options, config)
        head, bias = config.head, config.attn_bias
        self.embed_channels = head.embed_channels
        out_dim = head.embed_channels * bias.num_heads * bias.num_layers
        self.attn_mlp = MLP(config.side_adapter.embed_dim, head.mlp_channels, out_dim, head.mlp_num_layers)
        self.add_scale()

    def forward(self, features: SideFeatures, masks: MaskPrediction) -> Tensor:
        """Return biases (B, L, N, Q, h_s, w_s) from patch tokens and the mask head's query embeddings (B, Q, c)."""
        config, queries, last = self.config, masks.queries, self.attn_mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        shape = (config.num_layers * config.num_heads, self.embed_channels)  # (L N, c)
        patches = self.attn_mlp.hidden(features.patch_tokens)  # (B, T_s, d)
        weights = torch.einsum("bqc,kcd->bkqd", queries, last.weight.unflatten(0, shape)).flatten(1, 2)  # (B, L N Q, d)
        offsets = torch.einsum("bqc,kc->bkq", queries, last.bias.view(shape)).flatten(1, 2)  # (B, L N Q)
        bias: Tensor = torch.baddbmm(offsets.unsqueeze(2), weights, patches.transpose(1, 2))  # (B, L N Q, T_s)
        bias = bias.unflatten(1, (config.num_layers, config.num_heads, -1)).unflatten(4, features.grid)
        return self.scaled(bias)


@BIAS_HEADS.register("coupled")
class CoupledBiasHead(ScaledBiasHead):
    """Uses the mask logits as biases of every layer and head, with the learnt scale and offset.

    The whole mask head then gets the gradient of recognition (with `AttentionBiasHead` only its query MLP does), and
    the mask losses also change where the [SLS] token of a mask attends.
    """

    def __init__(self, options: Any, config: SANConfig) -> None:
        super().__init__(options, config)
        self.add_scale()

    def forward(self, features: SideFeatures, masks: MaskPrediction) -> Tensor:
        """Return biases (B, L, N, Q, h_s, w_s), equal for all L and N."""
        bias = self.scaled(masks.logits)[:, None, None]  # (B, 1, 1, Q, h_s, w_s)
        return bias.expand(-1, self.config.num_layers, self.config.num_heads, -1, -1, -1)
