"""CLIP weights as transformers saves them: names, shapes, activation, and the same embeddings."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from san.clip import loader
from san.clip.arch import TINY
from san.clip.loader import load_clip
from san.clip.open_clip_adapter import build_trainable_clip
from san.clip.weights import read_clip_weights


def theirs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip CLIP as transformers names and shapes them, written out by hand."""
    made = {}
    for name, value in state.items():
        if name.endswith("attn_mask"):
            continue
        side = "vision_model" if name.startswith("visual.") else "text_model"
        rest = name.removeprefix("visual.")
        if "resblocks" in rest:
            _, number, inner = rest.split("resblocks")[1].split(".", 2)
            inner = inner.replace("ln_", "layer_norm").replace("c_fc", "fc1").replace("c_proj", "fc2")
            if "in_proj" in inner:
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    made[f"{side}.encoder.layers.{number}.self_attn.{letter}_proj.{inner.split('_')[-1]}"] = (
                        part.clone()
                    )
                continue
            made[f"{side}.encoder.layers.{number}.{inner.replace('attn.', 'self_attn.')}"] = value
            continue
        renamed = {
            "class_embedding": f"{side}.embeddings.class_embedding",
            "conv1.weight": f"{side}.embeddings.patch_embedding.weight",
            "positional_embedding": f"{side}.embeddings.position_embedding.weight",
            "ln_pre.weight": f"{side}.pre_layrnorm.weight",
            "ln_pre.bias": f"{side}.pre_layrnorm.bias",
            "ln_post.weight": f"{side}.post_layernorm.weight",
            "ln_post.bias": f"{side}.post_layernorm.bias",
            "token_embedding.weight": f"{side}.embeddings.token_embedding.weight",
            "ln_final.weight": f"{side}.final_layer_norm.weight",
            "ln_final.bias": f"{side}.final_layer_norm.bias",
            "proj": "visual_projection.weight",
            "text_projection": "text_projection.weight",
            "logit_scale": "logit_scale",
        }
        made[renamed[rest]] = value.t().contiguous() if rest in ("proj", "text_projection") else value
    made["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return made


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    state = build_trainable_clip(TINY).state_dict()
    save_file(theirs(state), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", {key: value for key, value in state.items() if "attn_mask" not in key}


def test_names_and_shapes_become_those_of_open_clip(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    found, quick_gelu = read_clip_weights(saved[0], trusted_scripts=lambda: ())
    assert quick_gelu is None
    torch.testing.assert_close(found, saved[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, False),
        ({"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}, True),
        ({"model_type": "clip", "vision_config": {}}, True),  # transformers leaves out what is its default
        ({"model_type": "other"}, None),
        ([], None),
    ],
)
def test_the_activation_comes_from_the_configuration_beside(
    saved: tuple[Path, dict[str, torch.Tensor]],
    config: object,
    expected: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved[0]
    path.with_name("config.json").write_text(json.dumps(config))
    monkeypatch.setattr(loader, "_open_clip_arch", lambda name: replace(TINY, quick_gelu=False))
    with caplog.at_level(logging.WARNING):
        assert load_clip("ViT-B-16", str(path)).arch.quick_gelu is bool(expected)
    assert ("does not say how it was trained" in caplog.text) is (expected is None)


def test_the_library_itself_gives_the_same_embeddings(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision, text = TINY.vision, TINY.text
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.context_length,
            "hidden_act": "quick_gelu",
            "eos_token_id": text.vocab_size - 1,
        },
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "quick_gelu",
        },
        projection_dim=TINY.embed_dim,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    state, quick_gelu = read_clip_weights(tmp_path / "model.safetensors", trusted_scripts=lambda: ())
    assert quick_gelu is True
    own = build_trainable_clip(replace(TINY, quick_gelu=True)).eval()
    own.load_state_dict(state | {key: value for key, value in own.state_dict().items() if "attn_mask" in key})
    images = torch.randn(2, 3, vision.image_size, vision.image_size)
    tokens = torch.randint(1, text.vocab_size - 2, (2, text.context_length))
    tokens[:, 5] = text.vocab_size - 1
    with torch.no_grad():
        outputs = model(input_ids=tokens, pixel_values=images)
        for mine, expected in (
            (own.encode_image(images), outputs.image_embeds),
            (own.encode_text(tokens), outputs.text_embeds),
        ):
            mine = torch.nn.functional.normalize(mine, dim=-1)
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
