"""Image towers of timm with a class token, such as EVA02-CLIP's, cut in two. Only this file imports timm.

The modules of timm's blocks are used: norms, projections, SwiGLU, sub-norms. Only attention is computed here, because
[SLS] tokens read the keys and values of the patch tokens.

B batch, D CLIP width, E joint embedding, N_h heads, d = D / N_h, T patch tokens, (h, w) CLIP grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from san.clip.arch import ClipArch, VisionArch
from san.clip.blocks import AnyBlock, attend
from san.clip.pos_embed import resize_pos_embed
from san.clip.towers import FAMILIES, ShallowFeatures, ShallowTower, Towers
from san.clip.visual import DeepClip, refuse_small
from san.record import FieldError
from san.registry import Registry
from san.torch_defaults import without_autocast


@dataclass(frozen=True)
class Trunk:
    """What SAN knows of a model of timm.

    Attributes:
        family: in `san.clip.towers.FAMILIES`.
        pool: how timm pools its tokens: "token" or "map".
        projected: whether a linear layer makes the embedding.
        release: the first release of timm that has it.
    """

    family: str = "timm"
    pool: str = "token"
    projected: bool = True
    release: str = "1.0.3"


TRUNKS: Registry[Trunk] = Registry("model of timm", "clip_arch.vision.trunk", own="san.clip.families")
"""Models of timm whose blocks are understood."""

for _name in (
    "eva_giant_patch14_224", "eva02_base_patch16_clip_224", "eva02_large_patch14_clip_224",
    "eva02_large_patch14_clip_336", "eva02_enormous_patch14_clip_224", "vit_large_patch14_clip_224",
):  # fmt: skip
    TRUNKS.register(_name)(Trunk())


def make_trunk(name: str, embed_dim: int) -> Any:
    """Return a model of timm with drawn weights, as open_clip makes it.

    Raises:
        FieldError: timm or this release of SAN does not know it.
    """
    import timm

    trunk = TRUNKS.get(name)
    if not timm.is_model(name):
        raise FieldError(
            f"timm {timm.__version__} has no {name!r}; install timm>={trunk.release}, or set clip.name to another CLIP",
            "clip.name",
        )
    with _DropPathRates():
        return timm.create_model(name, num_classes=embed_dim if trunk.projected else 0, global_pool=trunk.pool)


class _DropPathRates(TorchFunctionMode):
    """Computes the rates of drop path on the CPU: timm before 1.0.21 reads their values, also on a meta device."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a torch function."""
        options = options or {}
        return function(*arguments, **(options | {"device": "cpu"} if function is torch.linspace else options))


def read_trunk(name: str, embed_dim: int) -> tuple[VisionArch, dict[str, Any]]:
    """Return the sizes of a model of timm, and the "mean" and "std" of its pixels."""
    with torch.device("meta"):
        model = make_trunk(name, embed_dim)
    block = model.blocks[0]
    arch = VisionArch(
        image_size=model.patch_embed.img_size[0],
        patch_size=model.patch_embed.patch_size[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc2.in_features / model.embed_dim,
        family=TRUNKS.get(name).family,
        trunk=name,
        pool_heads=getattr(getattr(model, "attn_pool", None), "num_heads", 0),
    )
    return arch, {key: tuple(model.default_cfg[key]) for key in ("mean", "std")}


class TimmBlock(AnyBlock):
    """The modules of a block of timm, under timm's names.

    Args:
        block: an EvaBlock, EvaBlockPostNorm, or a Block of timm's VisionTransformer.

    Raises:
        ValueError: it has a part that is not computed here.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.post_norm = type(block).__name__ == "EvaBlockPostNorm"
        self.attn._buffers.pop("k_bias", None)  # always zero
        identities = [getattr(block, name, None) for name in ("ls1", "ls2")]
        identities += [getattr(self.attn, name, None) for name in ("q_norm", "k_norm")]
        absent = [getattr(block, name, None) for name in ("gamma_1", "gamma_2")]
        absent.append(getattr(self.attn, "gate", None))
        if any(each is not None for each in absent) or not all(
            each is None or isinstance(each, nn.Identity) for each in identities
        ):
            raise ValueError(f"a block of timm has layer scale, a gate or norms of queries, which SAN lacks: {block}")

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.finish(x, attend(*self.project(x, rotation)))

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See `AnyBlock.project`."""
        attn, x = self.attn, x if self.post_norm else self.norm1(x)
        if attn.qkv is None:
            parts = (attn.q_proj(x), attn.k_proj(x), attn.v_proj(x))
        else:
            packed = attn.qkv(x)
            if getattr(attn, "q_bias", None) is not None:
                bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
                packed = packed + bias.to(packed.dtype)
            parts = packed.chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)  # (B, N_h, T, d)
        if rotation is not None:
            q, k = _rotated(q, rotation), _rotated(k, rotation)
        return q, k, v

    def attended(self, x: Tensor, heads: Tensor) -> Tensor:
        """See `AnyBlock.attended`."""
        merged = heads.transpose(1, 2).flatten(2)  # (B, T, D)
        norm = getattr(self.attn, "norm", None)
        result: Tensor = self.attn.proj(merged if norm is None else norm(merged))
        return x + (self.norm1(result) if self.post_norm else result)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """See `AnyBlock.finish`."""
        x = self.attended(x, heads)
        result: Tensor = x + (self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))
        return result


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the last T of the queries or keys (B, N_h, ., d) by angles whose sines and cosines are (T, 2 d)."""
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    first = x.shape[2] - rotation.shape[0]
    return torch.cat([x[:, :, :first], apply_rot_embed_cat(x[:, :, first:], rotation).to(x.dtype)], dim=2)


Rotary = Callable[[tuple[int, int], torch.device], Tensor]


def _rotary(trunk: Any) -> Rotary | None:
    """Return what gives the rotation (h w, 2 d) of a grid, with the settings of a model; None if it has none."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    options = {"in_pixels": False, "temperature": rope.temperature, "ref_feat_shape": rope.ref_feat_shape}
    options |= {name: getattr(rope, name) for name in ("grid_offset", "grid_indexing") if hasattr(rope, name)}
    dim = trunk.embed_dim // trunk.blocks[0].attn.num_heads
    return partial(_rotation, dim, options)


def _rotation(dim: int, options: dict[str, Any], grid: tuple[int, int], device: torch.device) -> Tensor:
    from timm.layers.pos_embed_sincos import build_rotary_pos_embed

    # the positions of another grid are those of the trained one, interpolated (ref_feat_shape)
    return torch.cat(build_rotary_pos_embed(list(grid), dim=dim, device=device, **options), dim=-1)


class ShallowTimm(ShallowTower):
    """Patch embedding and blocks 1..K of a model of timm.

    Args:
        trunk: the model.
        depth: K.
        native_grid: (h, w) of its positional embedding.
    """

    def __init__(self, trunk: Any, depth: int, native_grid: tuple[int, int]) -> None:
        super().__init__()
        self.native_grid, self._rotary = native_grid, _rotary(trunk)
        self.conv1 = trunk.patch_embed.proj
        self.class_embedding = None if trunk.cls_token is None else nn.Parameter(trunk.cls_token.detach().flatten())
        self.positional_embedding = nn.Parameter(trunk.pos_embed.detach()[0])
        self.ln_pre = getattr(trunk, "norm_pre", nn.Identity())  # EVA has one in later releases of timm
        self.resblocks = nn.ModuleList(map(TimmBlock, trunk.blocks[:depth]))

    def forward(self, images: Tensor) -> ShallowFeatures:
        """See `ShallowTower.forward`."""
        refuse_small(images, self.conv1.kernel_size[0])
        x = self.conv1(images)  # (B, D, h, w)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # (B, T, D)
        positions, first = self.positional_embedding, 0
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1).to(x.dtype), x], dim=1)  # (B, 1 + T, D)
            first = 1
        patches = resize_pos_embed(positions[first:], self.native_grid, grid)
        x = self.ln_pre(x + torch.cat([positions[:first], patches]).to(x.dtype))
        rotation = self._rotary(grid, x.device) if self._rotary else None
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], rotation))
        return ShallowFeatures(tuple(s[:, first:] for s in states), tuple(s[:, :first] for s in states), grid)


class DeepTimm(DeepClip):
    """Blocks K+1..N of a model of timm, with [SLS] tokens as in `DeepClip`; they are not rotated, as the class token.

    Args:
        trunk: the model.
        depth: K.
    """

    proj_bias: nn.Parameter

    def __init__(self, trunk: Any, depth: int) -> None:
        nn.Module.__init__(self)
        self._rotary = _rotary(trunk)
        self.resblocks = nn.ModuleList(map(TimmBlock, trunk.blocks[depth:]))
        self.ln_post = trunk.norm
        if isinstance(trunk.head, nn.Linear):
            self.proj = nn.Parameter(trunk.head.weight.detach().t().contiguous())
            self.proj_bias = nn.Parameter(trunk.head.bias.detach())

    def rotation(self, grid: tuple[int, int] | None) -> Tensor | None:
        """See `DeepClip.rotation`."""
        if self._rotary is None:
            return None
        assert grid is not None
        return self._rotary(grid, self.ln_post.weight.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `DeepClip.embed`."""
        with without_autocast(tokens.device):
            return self.projected(self.ln_post(tokens.to(self.ln_post.weight.dtype)))

    def projected(self, x: Tensor) -> Tensor:
        """Return unit-length embeddings (B, S, E) of pooled tokens (B, S, D)."""
        return F.normalize(x @ self.proj + self.proj_bias if hasattr(self, "proj") else x, dim=-1)


def checked_trunk(arch: ClipArch) -> Any:
    """Return the model of timm of an architecture.

    Raises:
        ValueError: it has other sizes, as a file may claim.
    """
    found, wanted = read_trunk(arch.vision.trunk, arch.embed_dim)[0], arch.vision
    if found != wanted:
        raise ValueError(f"clip_arch.vision is {wanted}, but timm's model has {found}; write the file again")
    return make_trunk(wanted.trunk, arch.embed_dim)


@FAMILIES.register("timm")
def timm_towers(arch: ClipArch, shallow_depth: int) -> Towers:
    """Return both parts of a model of timm with a class token."""
    trunk, side = checked_trunk(arch), arch.vision.grid_size
    return ShallowTimm(trunk, shallow_depth, (side, side)), DeepTimm(trunk, shallow_depth)
