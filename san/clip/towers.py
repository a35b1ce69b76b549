"""CLIP families: the kinds of image towers, each cut into a shallow and a deep part; and what the parts exchange.

B batch, D CLIP width, E joint embedding, N_h heads, T = h * w patch tokens of the (h, w) CLIP grid, S [SLS] tokens,
M masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.registry import Registry


@dataclass(frozen=True)
class ShallowFeatures:
    """States of the shallow blocks; index 0 is the state before block 1, index i the state after block i.

    Attributes:
        patch_tokens: (B, T, D) each, row by row over the grid.
        class_tokens: (B, 1, D) each; (B, 0, D) if the tower has none.
        grid: (h, w).
    """

    patch_tokens: tuple[Tensor, ...]
    class_tokens: tuple[Tensor, ...]
    grid: tuple[int, int]


class ShallowTower(nn.Module):
    """Base of the shallow parts: patch embedding and blocks 1..K.

    Attributes:
        positional_embedding: trained if configured; (1 + T, D), or (T, D) without a class token.
    """

    positional_embedding: nn.Parameter

    def forward(self, images: Tensor) -> ShallowFeatures:
        """Return features of normalised images (B, 3, H, W) at CLIP's input scale; partial patches are cut off."""
        raise NotImplementedError


class DeepTower(nn.Module):
    """Base of the deep parts: blocks K+1..N, and what makes an embedding of a token.

    Attributes:
        resblocks: the blocks.
    """

    resblocks: nn.ModuleList

    def start(self, class_token: Tensor) -> Tensor:
        """Return the token (B, 1, D) that [SLS] tokens copy: the class token (B, 1, D) after block K."""
        return class_token

    def forward(
        self,
        class_token: Tensor,
        patch_tokens: Tensor,
        sls_tokens: Tensor,
        attn_bias: Tensor,
        grid: tuple[int, int] | None = None,
        mask_shares: Tensor | None = None,
    ) -> Tensor:
        """Return one unit-length embedding per [SLS] token, and one per mask.

        Args:
            class_token: (B, 1, D) after block K; (B, 0, D) if the tower has none.
            patch_tokens: (B, T, D) after block K.
            sls_tokens: (B, S, D).
            attn_bias: (B, L, 1 or N_h, S, T) added to an [SLS] token's logits for the patch tokens; L is
                1 (the same for all blocks) or the number of blocks.
            grid: (h, w), which towers with rotary positions need.
            mask_shares: (B, M, T), the share of each patch in a mask, summing to 1, under which patches of the last
                block are pooled.

        Returns:
            (B, S, E), or (B, S + M, E) with masks.

        Raises:
            ValueError: there are masks, and the tower has no class token in its blocks.
        """
        raise NotImplementedError


Towers = tuple[ShallowTower, DeepTower]

FAMILIES: Registry[Callable[[ClipArch, int], Towers]] = Registry(
    "CLIP family", "clip_arch.vision.family", own="san.clip.families"
)
"""Entries make the two parts of an image tower, given the architecture and K, the number of shallow blocks."""
