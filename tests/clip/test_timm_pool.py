"""Towers with attention pooling: small models of the architecture of SigLIP and PE-Core, as open_clip makes them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from san.benchmark.analysis import AnalysisInput, count_multiply_adds
from san.clip.loader import LoadedClip, load_clip
from san.clip.open_clip_adapter import models_and_tags
from san.clip.timm_pool import DeepPool
from san.clip.timm_tower import TRUNKS, Trunk, read_trunk
from san.clip.weights import read_clip_weights
from san.export.folder import export_model
from san.inference.predictor import Predictor
from san.model.build import build_san, clip_state_to_own
from san.model.config import variant_for_clip
from san.registry import PartConfig
from tests.clip.small_clips import (
    TEXT,
    bare_recognition,
    check_files,
    check_parity,
    check_training,
    close,
    make_san,
    make_trunk_pair,
    register_trunk,
    write_tokenizer,
)

SIZES: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3}
SIGLIP_TEXT = TEXT | {
    "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "vocab_size": 64,
    "hf_tokenizer_name": "small/siglip", "tokenizer_kwargs": {"clean": "canonicalize"}, "context_length": 16,
}  # fmt: skip


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer without a token for the start, as SigLIP's, that transformers reads from the working directory."""
    write_tokenizer(tmp_path / "small/siglip", start=False)
    monkeypatch.chdir(tmp_path)


def make_siglip(monkeypatch: pytest.MonkeyPatch, **text: Any) -> tuple[Any, LoadedClip]:
    """Return a small SigLIP of open_clip, and as SAN loads it."""
    build = partial(VisionTransformer, **SIZES, class_token=False)
    register_trunk(monkeypatch, "small_siglip", Trunk("timm_pool", "map", projected=False), build)
    return make_trunk_pair("small_siglip", "map", "none", 48, SIGLIP_TEXT | text)


@pytest.mark.parametrize("release", [1, 2])
def test_siglip_equals_open_clip_and_trains(
    release: int, words: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SigLIP 2 has GELU with tanh in its text tower."""
    tanh = {"act_kwargs": {"approximate": "tanh"}} if release == 2 else {}
    reference, clip = make_siglip(monkeypatch, **tanh)
    model = make_san(clip)
    assert (clip.arch.vision.pool_heads, clip.arch.text.tanh_gelu) == (3, release == 2)
    assert not clip.arch.text.causal
    assert isinstance(model.deep_clip, DeepPool)
    check_parity(reference, model)
    with pytest.raises(ValueError, match="on open_clip's class-token ViT with CLIP's own text tower, not on 'tiny'"):
        export_model(Predictor(model, short_side=96), tmp_path / "exported")
    size = AnalysisInput(96, 96, 3)
    assert count_multiply_adds(model, size, as_written=True) is None  # has no plain form
    assert (count_multiply_adds(model, size) or {})["deep CLIP"] > 0
    if release == 1:
        check_files(model, clip, tmp_path)
        torch.save(reference.state_dict(), tmp_path / "clip.pt")  # as open_clip saves it, with its logit bias
        state, _ = read_clip_weights(tmp_path / "clip.pt", trusted_scripts=set)
        model.load_state_dict(clip_state_to_own(state, model.config.clip.shallow_depth), strict=False)
        assert state.keys() == (clip.state_dict or {}).keys()
    check_training(model)


@pytest.mark.parametrize("class_token", [True, False], ids=["base", "gigantic"])
def test_pe_core_equals_open_clip_and_trains(
    class_token: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not timm.is_model("vit_pe_core_base_patch16_224"):
        pytest.skip("this release of timm has no PE-Core")
    build = partial(
        Eva, **SIZES, class_token=class_token, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
        ref_feat_shape=(5, 5), rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=4,
        attn_pool_mlp_ratio=4.0, norm_layer=partial(LayerNorm, eps=1e-5),
    )  # fmt: skip
    register_trunk(monkeypatch, "small_pe", Trunk("timm_pool", "map"), build)
    reference, clip = make_trunk_pair("small_pe", "map", None, 40)
    model = make_san(clip)
    assert (model.shallow_clip.class_embedding is not None) == class_token
    assert model.config.attn_bias.num_heads == 4  # those of the pooling, not the 3 of the blocks
    check_parity(reference, model)
    if class_token:
        check_files(model, clip, tmp_path)
    check_training(model)


def test_a_bias_selects_the_patches_that_a_token_pools(words: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a strong bias on one patch, an [SLS] token is what the library pools of that patch alone."""
    reference, clip = make_siglip(monkeypatch)
    model, images = make_san(clip), torch.randn(1, 3, 64, 64)
    trunk = reference.visual.trunk
    with torch.no_grad():
        features = model.shallow_clip(images)
        sls = model.sls_init(model.deep_clip.start(features.class_tokens[-1]))
        bias = torch.zeros(1, 1, 1, 5, 16)
        bias[..., range(5), range(3, 8)] = 1e4
        found = model.deep_clip(features.class_tokens[-1], features.patch_tokens[-1], sls, bias, features.grid)
        tokens = trunk.forward_features(images)[0, 3:8, None]  # (5, 1, D)
        close(found[0], torch.nn.functional.normalize(trunk.attn_pool(tokens), dim=-1))


@pytest.mark.parametrize("start", ["learnt", "learnt_plus_class_token"])
def test_learnt_starts_of_the_tokens_work(start: str, words: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_siglip(monkeypatch)[1]
    config = variant_for_clip("small", None)
    model = build_san(replace(config, clip=replace(config.clip, sls_init=PartConfig(start))), clip=clip)
    embeds = bare_recognition(model, torch.randn(1, 3, 64, 64))[0]
    assert (embeds[0] - embeds[1]).norm() > 1e-3
    embeds.sum().backward()
    assert model.sls_init.embed.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_biases_that_do_not_fit_the_pooling_are_refused(words: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_siglip(monkeypatch)[1]
    config = variant_for_clip("small", None)
    with pytest.raises(ValueError, match="has 12 heads but its attention pooling has 3; set attn_bias.num_heads to 3"):
        build_san(replace(config, attn_bias=replace(config.attn_bias, num_heads=12)), clip=clip)
    with pytest.raises(ValueError, match="has 2 layers but acts in the attention pooling alone; set .* to 1$"):
        build_san(replace(config, attn_bias=replace(config.attn_bias, num_layers=2)), clip=clip)


EVERY = [
    pytest.param(name, marks=[] if "_base_patch16_clip" in name or "_base_patch32" in name else pytest.mark.slow)
    for name in sorted(TRUNKS)
]


@pytest.mark.parametrize("name", EVERY)
def test_each_known_model_of_the_installed_timm_is_read(name: str) -> None:
    """Without values; a model that the release lacks is refused with the release that has it."""
    if not timm.is_model(name):
        with pytest.raises(ValueError, match=f"has no '{name}'; install timm>={TRUNKS.get(name).release}"):
            read_trunk(name, 64)
        pytest.skip(f"timm {timm.__version__} has no {name}")
    arch, pixels = read_trunk(name, 64)
    assert (arch.pool_heads > 0) == (TRUNKS.get(name).pool == "map")
    assert arch.image_size == int(name.rsplit("_", 1)[1])
    if "siglip" in name or "pe_core" in name:
        assert pixels == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_the_clips_of_the_installed_release_are_read() -> None:
    """SigLIP 2 is in open_clip since 2.31, PE-Core since 3.0."""
    arch = load_clip("ViT-B-16-SigLIP", None).arch
    assert (arch.mean, arch.text.pool, arch.text.proj_bias) == ((0.5, 0.5, 0.5), "last", True)
    assert (arch.text.tokenizer, arch.text.clean) == ("timm/ViT-B-16-SigLIP", "canonicalize")
    with pytest.raises(ValueError, match="no model 'ViT-Q-16-SigLIP2'; those of 'SigLIP2' need open_clip_torch>=2.31"):
        load_clip("ViT-Q-16-SigLIP2", None)
    models = models_and_tags()
    for name, release in (("ViT-B-32-SigLIP2-256", "2.31"), ("PE-Core-T-16-384", "3.0")):
        if name not in models:
            with pytest.raises(ValueError, match=f"open_clip_torch>={release}"):
                load_clip(name, None)
        elif timm.is_model("vit_pe_core_tiny_patch16_384"):
            assert load_clip(name, None).arch.vision.pool_heads > 0
