"""Resizes positional embeddings from their training grid to the grid of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(embed: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic resize of patch positions.

    Published weights were trained with align_corners=False and no antialias (guarded by tests/test_golden.py).

    Args:
        embed: (native h * native w, D), row by row.
        native: (h, w) of `embed`.
        grid: (h, w) wanted.

    Returns:
        (h * w, D); `embed` itself where the grids are equal.
    """
    if not is_dynamic(grid) and native == grid:  # in this order: a comparison fixes a dynamic grid
        return embed
    image = embed.float().view(1, *native, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    resized = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].transpose(0, 1).to(embed.dtype)  # (h * w, D)


def is_dynamic(grid: tuple[int, int]) -> bool:
    """Whether torch.export traces this grid with dynamic sizes; a comparison would then fix them."""
    return any(isinstance(each, torch.SymInt) for each in grid)
