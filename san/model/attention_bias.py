"""The attention-bias head: what each [SLS] token looks at, per head of CLIP, apart from the masks.

B batch, Q queries, L bias layers, N bias heads, c embed channels, d hidden channels of the patch MLP, (h_s, w_s) side
grid, T_s = h_s * w_s, (h, w) CLIP grid.
Source: docs/method.md#4.2 and #5.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.pos_embed import is_dynamic
from san.model.config import AttnBiasConfig, HeadConfig
from san.model.layers import MLP
from san.model.side_adapter import SideFeatures


class AttentionBiasHead(nn.Module):
    """A patch MLP with one embedding per layer and head, multiplied with the query embedding.

    The MLP's last layer (W, b) is linear, so query . (W z + b) is computed as (query W) . z + query . b: the embeddings
    of all patches, (B, T_s, L N c), are never made.
    """

    def __init__(self, config: AttnBiasConfig, head: HeadConfig, side_width: int) -> None:
        super().__init__()
        self.config, self.embed_channels = config, head.embed_channels
        out_dim = head.embed_channels * config.num_heads * config.num_layers
        self.attn_mlp = MLP(side_width, head.mlp_channels, out_dim, head.mlp_num_layers)
        if config.learnt_scale:
            self.scale = nn.Parameter(torch.ones(1))
            self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, features: SideFeatures, queries: Tensor) -> Tensor:
        """Biases (B, L, N, Q, h_s, w_s) from patch tokens and query embeddings (B, Q, c)."""
        config, last = self.config, self.attn_mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        shape = (config.num_layers * config.num_heads, self.embed_channels)  # (L N, c)
        patches = self.attn_mlp.hidden(features.patch_tokens)  # (B, T_s, d)
        weights = torch.einsum("bqc,kcd->bkqd", queries, last.weight.unflatten(0, shape)).flatten(1, 2)  # (B, L N Q, d)
        offsets = torch.einsum("bqc,kc->bkq", queries, last.bias.view(shape)).flatten(1, 2)  # (B, L N Q)
        bias: Tensor = torch.baddbmm(offsets.unsqueeze(2), weights, patches.transpose(1, 2))  # (B, L N Q, T_s)
        bias = bias.unflatten(1, (config.num_layers, config.num_heads, -1)).unflatten(4, features.grid)
        if config.learnt_scale:
            bias = bias * self.scale + self.offset
        return bias if config.enabled else bias * 0  # a product, so that distributed training sees every weight used

    def to_grid(self, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        """Biases (B, L, N, Q, h_s, w_s) brought to the CLIP grid: (B, L, N, Q, h * w)."""
        if bias.shape[-2:] != grid:
            bias = self._resize(bias.flatten(0, 2), grid).unflatten(0, bias.shape[:3])  # (B, L, N, Q, h, w)
        return bias.flatten(4)

    def _resize(self, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        match self.config.pooling:
            case "max" if is_dynamic(grid):
                return _adaptive_max(_adaptive_max(bias, grid[0], dim=2), grid[1], dim=3)
            case "max":
                return F.adaptive_max_pool2d(bias, grid)
            case "average":
                return F.adaptive_avg_pool2d(bias, grid)
            case "bilinear":
                return F.interpolate(bias, size=grid, mode="bilinear", align_corners=False)
            case pooling:
                return F.interpolate(bias, size=grid, mode=pooling)


def _adaptive_max(x: Tensor, size: int, *, dim: int) -> Tensor:
    """What `F.adaptive_max_pool2d`, which takes no dynamic size of torch.export, gives along one axis."""
    length = x.shape[dim]
    index = torch.arange(size, device=x.device)
    start, stop = index * length // size, ((index + 1) * length + size - 1) // size  # of each window
    longest = (length + size - 1) // size + 1
    places = torch.minimum(
        start[:, None] + torch.arange(longest, device=x.device), stop[:, None] - 1
    )  # (size, longest)
    windows: Tensor = x.index_select(dim, places.flatten()).unflatten(dim, (size, longest))
    return windows.amax(dim=dim + 1)
