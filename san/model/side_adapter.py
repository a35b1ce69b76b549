"""The side network: a small ViT that fuses CLIP's shallow features and carries the queries.

B batch, Q queries, S side width, D CLIP width, (h, w) CLIP grid, (h_s, w_s) side grid, T_s = h_s * w_s.
Source: docs/method.md#3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from san.clip.pos_embed import resize_pos_embed
from san.clip.towers import ShallowFeatures
from san.model.config import SANConfig
from san.model.layers import SideBlock
from san.model.parts import FUSIONS, SideFeatures


class SideAdapter(nn.Module):
    """Patch embedding, queries, blocks and fusions."""

    def __init__(self, model: SANConfig, clip_width: int) -> None:
        super().__init__()
        config = self.config = model.side_adapter
        width = config.embed_dim
        self.native_grid = (config.image_size // config.patch_size,) * 2
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(self.native_grid[0] ** 2, width))
        self.query_embed = nn.Parameter(torch.empty(config.num_queries, width))
        self.query_pos_embed = nn.Parameter(torch.empty(config.num_queries, width))
        self.blocks = nn.ModuleList(SideBlock(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        fusions = {str(block): FUSIONS.build(model.fusion, clip_width, width) for _, block in config.fusion}
        self.fusions = nn.ModuleDict(fusions)
        self._source = {block: feature for feature, block in config.fusion}
        for parameter in (self.pos_embed, self.query_embed, self.query_pos_embed):
            nn.init.normal_(parameter, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, clip: ShallowFeatures, supervised: tuple[int, ...]) -> list[SideFeatures]:
        """Return features after each of the `supervised` blocks (increasing) for normalised images (B, 3, H, W)."""
        x = self.patch_embed(images)  # (B, S, h_s, w_s)
        grid = (x.shape[-2], x.shape[-1])
        patches = x.flatten(2).transpose(1, 2)  # (B, T_s, S)
        queries = self.query_embed.expand(images.shape[0], -1, -1)
        positions = torch.cat([self.query_pos_embed, resize_pos_embed(self.pos_embed, self.native_grid, grid)])
        x = torch.cat([queries.to(patches.dtype), patches], dim=1) + positions  # (B, Q + T_s, S)
        x = self._fuse(x, 0, clip, grid)
        outputs = []
        for index, block in enumerate(self.blocks, start=1):
            x = self._fuse(block(x), index, clip, grid)
            if index in supervised:
                count = self.config.num_queries
                outputs.append(SideFeatures(x[:, :count], x[:, count:], grid))
            if index < len(self.blocks):
                x = x + positions
        return outputs

    def _fuse(self, x: Tensor, block: int, clip: ShallowFeatures, grid: tuple[int, int]) -> Tensor:
        """Fuse the CLIP feature of this block into the patch tokens; queries are unchanged."""
        if block not in self._source:
            return x
        count, feature = self.config.num_queries, clip.patch_tokens[self._source[block]]
        patches = self.fusions[str(block)](x[:, count:], feature, clip.grid, grid)
        return torch.cat([x[:, :count], patches], dim=1)
