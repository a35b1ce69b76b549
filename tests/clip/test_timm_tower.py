"""Image towers of timm: EVA-CLIP with small models of its architecture, as open_clip makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva

from san.clip.arch import ClipArch
from san.clip.loader import LoadedClip
from san.clip.open_clip_config import arch_of
from san.clip.pos_embed import resize_pos_embed
from san.clip.timm_tower import ShallowTimm, Trunk, checked_trunk, read_trunk
from tests.clip.small_clips import (
    check_files,
    check_parity,
    check_training,
    close,
    make_san,
    make_trunk_pair,
    register_trunk,
)

TINY_EVA: dict[str, dict[str, Any]] = {
    "eva01": {"mlp_ratio": 4.3637},
    "eva02": {
        "qkv_fused": False, "mlp_ratio": 8 / 3, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True,
        "use_rot_pos_emb": True, "ref_feat_shape": (5, 5),
    },
    "eva02_e": {"mlp_ratio": 8.5715, "use_post_norm": True},
}  # fmt: skip
"""Options of timm's eva_giant_patch14_224, eva02_*_clip_* and eva02_enormous_patch14_clip_224."""


@pytest.fixture(params=TINY_EVA)
def eva(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, LoadedClip]:
    """A small EVA-CLIP of open_clip, and as SAN loads it."""
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3}
    register_trunk(
        monkeypatch, "small_eva", Trunk(), lambda **options: Eva(**sizes, **TINY_EVA[request.param], **options)
    )
    return make_trunk_pair("small_eva", "token", None, 40)


def test_eva_equals_open_clip_and_trains(eva: tuple[Any, LoadedClip], tmp_path: Path) -> None:
    reference, clip = eva
    model = make_san(clip)
    assert (clip.arch.mean, clip.arch.vision.depth, model.config.attn_bias.num_heads) == ((0.5, 0.4, 0.3), 4, 3)
    check_parity(reference, model)
    if hasattr(reference.visual.trunk.blocks[0].attn, "q_proj"):  # one of them is enough
        check_files(model, clip, tmp_path)
    check_training(model)


@torch.no_grad()
def test_patches_are_pooled_under_masks(eva: tuple[Any, LoadedClip]) -> None:
    """As the second opinion needs it; [SLS] tokens stay as they are without it."""
    model = make_san(eva[1]).eval()
    clip = model.shallow_clip(torch.randn(1, 3, 64, 64))
    shares = torch.rand(1, 2, clip.patch_tokens[-1].shape[1]).softmax(dim=-1)
    sls = model.deep_clip.start(clip.class_tokens[-1]).repeat(1, 3, 1)
    given = (clip.class_tokens[-1], clip.patch_tokens[-1], sls, torch.zeros(1, 1, 1, 3, shares.shape[-1]), clip.grid)
    plain, both = model.deep_clip(*given), model.deep_clip(*given, shares)
    assert both.shape == (1, 5, plain.shape[-1])
    close(both[:, :3], plain)
    assert both.norm(dim=-1).allclose(torch.ones(1, 5), atol=1e-5)
    assert not both[:, 3].allclose(both[:, 4])


def test_rotary_positions_follow_the_grid_of_an_image() -> None:
    """As in timm's model for that image size: positions of the trained grid, interpolated."""
    torch.manual_seed(0)
    sizes = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 8, "global_pool": "token"}
    small, large = (Eva(img_size=size, **sizes, **TINY_EVA["eva02"]).eval() for size in ((64, 64), (96, 48)))
    state = small.state_dict()
    patches = resize_pos_embed(state["pos_embed"][0, 1:], (4, 4), (6, 3))
    large.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], patches[None]], dim=1)})
    images = torch.randn(1, 3, 96, 48)
    with torch.no_grad():
        found = ShallowTimm(small, 2, (4, 4))(images)
        close(small.norm(found.patch_tokens[-1]), large.forward_features(images)[:, 1:])
        close(small.norm(found.class_tokens[-1]), large.forward_features(images)[:, :1])
    assert found.grid == (6, 3)


def test_a_trunk_that_is_missing_or_has_other_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register_trunk(monkeypatch, "other", Trunk(release="9.9"), lambda **options: None)
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "other")
    with pytest.raises(ValueError, match=r"has no 'other'; install timm>=9\.9, or set clip.name to another CLIP"):
        read_trunk("other", 8)
    arch = read_trunk("eva02_base_patch16_clip_224", 512)[0]
    wrong = ClipArch(512, replace(arch, depth=24))
    with pytest.raises(ValueError, match=r"depth=24.*but timm's model has .*depth=12"):
        checked_trunk(wrong)
    with pytest.raises(ValueError, match="'hf-hub:me/evil', which is not a registered model of timm"):
        checked_trunk(ClipArch(512, replace(arch, trunk="hf-hub:me/evil")))


@pytest.mark.parametrize(
    ("key", "value"),
    [("timm_pool", "avg"), ("timm_proj", "linear"), ("timm_model_name", "convnext_base"), ("timm_x", 1)],
)
def test_a_trunk_that_open_clip_uses_in_another_way_is_refused(key: str, value: Any) -> None:
    vision = {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None, key: value}
    with pytest.raises(ValueError, match=f"vision {key}={value!r}"):
        arch_of("other", {"embed_dim": 512, "vision_cfg": vision, "text_cfg": {}})
