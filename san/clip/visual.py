"""CLIP's image tower, cut in two: shallow blocks that feed the side network, deep blocks that recognise masks.

B batch, D CLIP width, E joint embedding, N_h heads, T = h * w patch tokens of the (h, w) CLIP grid, S [SLS] tokens,
M masks.
Source: docs/method.md#2 and #5; arXiv 2302.12242, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.blocks import AnyBlock, Block, attend
from san.clip.pos_embed import resize_pos_embed
from san.clip.towers import FAMILIES, DeepTower, ShallowFeatures, ShallowTower, Towers
from san.record import FieldError
from san.torch_defaults import without_autocast


class ShallowClip(ShallowTower):
    """Patch embedding and blocks 1..K of the ViT."""

    def __init__(self, arch: ClipArch, depth: int) -> None:
        super().__init__()
        vision = arch.vision
        self.patch_size, self.native_grid = vision.patch_size, vision.grid_size
        self.conv1 = nn.Conv2d(3, vision.width, vision.patch_size, stride=vision.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(vision.width) * vision.width**-0.5)
        self.positional_embedding = nn.Parameter(
            torch.randn(vision.grid_size**2 + 1, vision.width) * vision.width**-0.5
        )
        self.ln_pre = nn.LayerNorm(vision.width)
        self.resblocks = nn.ModuleList(
            Block(vision.width, vision.num_heads, vision.mlp_ratio, quick_gelu=arch.quick_gelu) for _ in range(depth)
        )

    def forward(self, images: Tensor) -> ShallowFeatures:
        """Return features of normalised images (B, 3, H, W) at CLIP's input scale; partial patches are cut off.

        Raises:
            ValueError: the image is smaller than a patch.
        """
        refuse_small(images, self.patch_size)
        x = self.conv1(images)  # (B, D, h, w)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # (B, T, D)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1).to(x.dtype), x], dim=1)  # (B, 1 + T, D)
        x = self.ln_pre(x + self._positions(grid).to(x.dtype))
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1]))
        return ShallowFeatures(tuple(s[:, 1:] for s in states), tuple(s[:, :1] for s in states), grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return positions (1 + T, D): that of the class token unchanged, those of patches resized to the grid."""
        native = (self.native_grid, self.native_grid)
        patches = resize_pos_embed(self.positional_embedding[1:], native, grid)
        return torch.cat([self.positional_embedding[:1], patches])


def refuse_small(images: Tensor, patch_size: int) -> None:
    """Raise FieldError if images (B, 3, H, W) have no whole patch."""
    if min(images.shape[-2:]) < patch_size:
        raise FieldError(
            f"CLIP's input of {tuple(images.shape[-2:])} pixels is smaller than its patch of {patch_size}; "
            "give larger images or raise clip.input_scale",
            "clip.input_scale",
        )


class DeepClip(DeepTower):
    """Blocks K+1..N: recognises every mask in one pass through its [SLS] token."""

    def __init__(self, arch: ClipArch, depth: int) -> None:
        super().__init__()
        vision = arch.vision
        self.resblocks = nn.ModuleList(
            Block(vision.width, vision.num_heads, vision.mlp_ratio, quick_gelu=arch.quick_gelu) for _ in range(depth)
        )
        self.ln_post = nn.LayerNorm(vision.width)
        self.proj = nn.Parameter(torch.randn(vision.width, arch.embed_dim) * vision.width**-0.5)

    def forward(
        self,
        class_token: Tensor,
        patch_tokens: Tensor,
        sls_tokens: Tensor,
        attn_bias: Tensor,
        grid: tuple[int, int] | None = None,
        mask_shares: Tensor | None = None,
    ) -> Tensor:
        """See `DeepTower.forward`."""
        x, sls = torch.cat([class_token, patch_tokens], dim=1), sls_tokens
        shared, rotation = attn_bias.shape[1] == 1, self.rotation(grid)
        for index, block in enumerate(self.resblocks):
            bias = attn_bias[:, 0 if shared else index]
            last = index + 1 == len(self.resblocks)
            x, sls = _recognise(block, x, sls, bias, rotation, mask_shares if last else None, keep_patches=not last)
        return self.embed(sls)

    def rotation(self, grid: tuple[int, int] | None) -> Tensor | None:
        """Return what rotates queries and keys of the patch tokens of a grid; None without rotary positions."""
        return None

    def embed(self, tokens: Tensor) -> Tensor:
        """Return unit-length embeddings (B, S, E) of tokens (B, S, D) after the last block."""
        with without_autocast(tokens.device):  # of all roundings, this one would be seen most in the class logits
            return F.normalize(self.ln_post(tokens.to(self.proj.dtype)) @ self.proj, dim=-1)


def _recognise(
    block: nn.Module,
    x: Tensor,
    sls: Tensor,
    bias: Tensor,
    rotation: Tensor | None,
    mask_shares: Tensor | None = None,
    *,
    keep_patches: bool,
) -> tuple[Tensor, Tensor]:
    """Apply a block to class and patch tokens (B, 1 + T, D), which see no [SLS] token, and [SLS] tokens (B, S, D).

    Tokens pooled under masks, if any, follow the latter.
    """
    assert isinstance(block, AnyBlock)
    q, k, v = block.project(x) if rotation is None else block.project(x, rotation)
    sls = block.finish(sls, sls_attention(*block.project(sls), k[:, :, 1:], v[:, :, 1:], bias))
    if mask_shares is not None:
        pooled = pooled_tokens(block, x[:, 1:], v[:, :, 1:], mask_shares)
        sls = torch.cat([sls, pooled.to(sls.dtype)], dim=1)
    if keep_patches:
        x = block.finish(x, attend(q, k, v))
    return x, sls


def pooled_tokens(block: AnyBlock, patch_tokens: Tensor, values: Tensor, mask_shares: Tensor) -> Tensor:
    """Pool patches under masks: attention with the masks as its weights, added to the mean patch.

    CLIP was never trained to use what its last block gives for patches; the values of its attention are closer to names
    (arXiv 2112.01071). They are projected after pooling, once per mask instead of once per patch.

    Args:
        block: CLIP's last.
        patch_tokens: (B, T, D) before the block.
        values: (B, N_h, T, d) of the patches.
        mask_shares: (B, M, T), summing to 1 over the patches.

    Returns:
        (B, M, D).
    """
    with without_autocast(patch_tokens.device):  # in half precision, shares of many patches would be rounded
        shares = mask_shares.float()
        tokens, heads = shares @ patch_tokens.float(), shares.unsqueeze(1) @ values.float()
    return block.attended(tokens, heads.to(values.dtype))


def sls_attention(q: Tensor, k_self: Tensor, v_self: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend from each [SLS] token to itself and the patch tokens.

    Written out, because for few tokens it is faster on a CPU than torch's fused kernel (1.7 ms against 2.7, two cores).
    The memory-efficient GPU kernel crashes in the backward pass if only the bias needs a gradient (torch issue
    148476). Logits are always float32, as in a fused kernel.

    Args:
        q: (B, N_h, S, d), queries of the [SLS] tokens.
        k_self: (B, N_h, S, d), their own keys.
        v_self: (B, N_h, S, d), their own values.
        k: (B, N_h, T, d), keys of the patch tokens.
        v: (B, N_h, T, d), values of the patch tokens.
        bias: (B, 1 or N_h, S, T).

    Returns:
        (B, N_h, S, d).
    """
    with without_autocast(q.device):
        q = q.float() * q.shape[-1] ** -0.5
        own = (q * k_self).sum(dim=-1, keepdim=True)  # (B, N_h, S, 1)
        logits = torch.cat([own, q @ k.float().transpose(-2, -1) + bias], dim=-1)  # (B, N_h, S, 1 + T)
        probs = logits.softmax(dim=-1).to(v.dtype)
    result: Tensor = probs[..., 1:] @ v + probs[..., :1] * v_self
    return result


@FAMILIES.register("vit")
def vit_towers(arch: ClipArch, shallow_depth: int) -> Towers:
    """Return both parts of a class-token ViT with open_clip's names."""
    return ShallowClip(arch, shallow_depth), DeepClip(arch, arch.vision.depth - shallow_depth)
