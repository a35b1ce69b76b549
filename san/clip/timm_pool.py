"""Image towers of timm whose embedding is pooled by attention: SigLIP, SigLIP 2 and PE-Core.

No class token could recognise masks in their blocks. An [SLS] token is a copy of the query of the attention pooling
instead: it attends to the patch tokens after the last block, with the attention bias on the logits. All other steps of
the pooling are the library's own, so that with zero bias every [SLS] token gives the library's embedding.

B batch, D CLIP width, E joint embedding, N_h heads of the pooling, T patch tokens, S [SLS] tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from san.clip.arch import ClipArch
from san.clip.timm_tower import TRUNKS, DeepTimm, ShallowTimm, Trunk, checked_trunk
from san.clip.towers import FAMILIES, Towers
from san.record import FieldError
from san.torch_defaults import without_autocast

for _release, _names in {
    "1.0.3": (
        "vit_base_patch16_siglip_224", "vit_base_patch16_siglip_256", "vit_base_patch16_siglip_384",
        "vit_base_patch16_siglip_512", "vit_large_patch16_siglip_256", "vit_large_patch16_siglip_384",
        "vit_so400m_patch14_siglip_224", "vit_so400m_patch14_siglip_384",
    ),
    "1.0.10": ("vit_so400m_patch14_siglip_378", "vit_so400m_patch16_siglip_256"),
    "1.0.15": (
        "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip_384",
        "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256", "vit_giantopt_patch16_siglip_384",
    ),
}.items():  # fmt: skip
    for _name in _names:
        TRUNKS.register(_name)(Trunk("timm_pool", "map", projected=False, release=_release))
for _release, _names in {
    "1.0.16": ("vit_pe_core_base_patch16_224", "vit_pe_core_large_patch14_336", "vit_pe_core_gigantic_patch14_448"),
    "1.0.18": ("vit_pe_core_tiny_patch16_384", "vit_pe_core_small_patch16_384"),
}.items():
    for _name in _names:
        TRUNKS.register(_name)(Trunk("timm_pool", "map", release=_release))


class DeepPool(DeepTimm):
    """Blocks K+1..N of a model of timm, and its attention pooling with one query per [SLS] token.

    Args:
        trunk: the model.
        depth: K.

    Raises:
        ValueError: its pooling has a part that is not computed here.
    """

    def __init__(self, trunk: Any, depth: int) -> None:
        super().__init__(trunk, depth)
        pool = self.attn_pool = trunk.attn_pool
        norms = (pool.q_norm, pool.k_norm)
        plain = pool.latent.shape[1] == 1 and pool.pool == "token" and pool.pos_embed is None and pool.mlp is not None
        if not plain or not all(isinstance(each, nn.Identity) for each in norms):
            raise ValueError(f"the attention pooling of timm has a part that SAN lacks: {pool}")

    def start(self, class_token: Tensor) -> Tensor:
        """Return the query of the pooling (B, 1, D), before its projection."""
        latent: Tensor = self.attn_pool.latent
        return latent.expand(len(class_token), -1, -1)

    def forward(
        self,
        class_token: Tensor,
        patch_tokens: Tensor,
        sls_tokens: Tensor,
        attn_bias: Tensor,
        grid: tuple[int, int] | None = None,
        mask_shares: Tensor | None = None,
    ) -> Tensor:
        """See `DeepTower.forward`; the biases (B, 1, 1 or N_h, S, T) act in the pooling. A class token has none."""
        if mask_shares is not None:
            raise FieldError(
                "the scorer second_opinion pools patches in the last block of a CLIP with a class token, and this one "
                "is pooled by attention after it; set scorer.name to sls",
                "scorer.name",
            )
        x, rotation = torch.cat([class_token, patch_tokens], dim=1), self.rotation(grid)
        for block in self.resblocks:
            x = block(x, rotation)
        pool, bias = self.attn_pool, F.pad(attn_bias[:, 0], (class_token.shape[1], 0))  # (B, ., S, 1 + T)
        tokens = self.ln_post(x)
        q = self._heads(pool.q(sls_tokens))  # (B, N_h, S, d)
        k, v = map(self._heads, pool.kv(tokens).chunk(2, dim=-1))  # (B, N_h, 1 + T, d)
        with without_autocast(q.device):
            logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1) + bias.float()
            probs = logits.softmax(dim=-1).to(v.dtype)
        pooled = pool.proj((probs @ v).transpose(1, 2).flatten(2))  # (B, S, D)
        pooled = pooled + pool.mlp(pool.norm(pooled))
        with without_autocast(pooled.device):
            return self.projected(pooled.to(self.ln_post.weight.dtype))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.attn_pool.num_heads, -1)).transpose(1, 2)  # (B, N_h, ., d)
        return heads


@FAMILIES.register("timm_pool")
def pooled_towers(arch: ClipArch, shallow_depth: int) -> Towers:
    """Return both parts of a model of timm with attention pooling."""
    trunk, side = checked_trunk(arch), arch.vision.grid_size
    return ShallowTimm(trunk, shallow_depth, (side, side)), DeepPool(trunk, shallow_depth)
