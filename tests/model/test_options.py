"""Every option of the model builds, runs, and gives every trained tensor a gradient, no frozen one."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from san.clip.arch import TINY
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import SIDE_WIDTHS, SANConfig, unseen_pixels, unusual_depth, variant
from san.registry import PartConfig

NAMES = ["cat", "dog", "grass"]


def tiny(**changes: dict[str, Any]) -> SANConfig:
    """The tiny variant with some fields of its parts replaced."""
    config = variant("tiny")
    return replace(config, **{part: replace(getattr(config, part), **fields) for part, fields in changes.items()})


def images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


OPTIONS = {
    "shared bias head": tiny(attn_bias={"num_heads": 1}),
    "a bias per head": tiny(attn_bias={"num_heads": 3}),
    "a bias per deep block": tiny(
        clip={"shallow_depth": 2}, side_adapter={"fusion": ((0, 0), (2, 3))}, attn_bias={"num_layers": 2}
    ),
    "one bias for two deep blocks": tiny(clip={"shallow_depth": 2}, side_adapter={"fusion": ((0, 0), (2, 3))}),
    "[SLS] learnt": tiny(clip={"sls_init": "learnt"}),
    "[SLS] learnt plus class token": tiny(clip={"sls_init": "learnt_plus_class_token"}),
    "max pooling": tiny(attn_bias={"pooling": "max"}),
    "average pooling": tiny(attn_bias={"pooling": "average"}),
    "bilinear": tiny(attn_bias={"pooling": "bilinear"}),
    "nearest": tiny(attn_bias={"pooling": "nearest"}),
    "no learnt scale": tiny(attn_bias={"learnt_scale": False}),
    "biases held at zero": tiny(attn_bias={"enabled": False}),
    "coupled head": replace(variant("tiny"), bias_head=PartConfig("coupled")),
    "a shared coupled head": replace(tiny(attn_bias={"num_heads": 1}), bias_head=PartConfig("coupled")),
    "blocked gradient": tiny(attn_bias={"stop_gradient": True}),
    "coupled head, blocked gradient": replace(tiny(attn_bias={"stop_gradient": True}), bias_head=PartConfig("coupled")),
    "gated fusion": replace(variant("tiny"), fusion=PartConfig("gated")),
    "cross-attention fusion": replace(variant("tiny"), fusion=PartConfig("cross_attention", {"num_heads": 4})),
    "fine masks": replace(variant("tiny"), mask_head=PartConfig("fine", {"factor": 3})),
    "no fusion": tiny(side_adapter={"fusion": ()}),
    "fusion after the last block": tiny(side_adapter={"fusion": ((1, 8), (3, 0))}),
    "one CLIP feature twice": tiny(side_adapter={"fusion": ((1, 1), (1, 2))}),
    "full-size CLIP input": tiny(clip={"input_scale": 1.0}),
    "odd CLIP input scale": tiny(clip={"input_scale": 0.7}),
    "frozen positions": tiny(clip={"train_pos_embed": False}),
    "one query": tiny(side_adapter={"num_queries": 1}),
    "last block only": tiny(side_adapter={"supervised_blocks": (8,)}),
    "three supervised blocks": tiny(side_adapter={"supervised_blocks": (2, 5, 8)}),
    "imagenet templates": tiny(clip={"templates": "imagenet"}),
    "no shallow block": tiny(
        clip={"shallow_depth": 0}, side_adapter={"fusion": ((0, 0),)}, attn_bias={"num_layers": 4}
    ),
    **{f"side width {width}": variant("tiny", side_width=width) for width in SIDE_WIDTHS},
}


@pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_trains(config: SANConfig) -> None:
    torch.manual_seed(0)
    model = build_san(config).train()
    output = model(images(), model.text_classifier.embed(NAMES))
    queries = config.side_adapter.num_queries
    fine = config.mask_head.options.get("factor", 1)
    assert output.mask_logits.shape == (2, queries, 4 * fine, 6 * fine)
    assert output.class_logits.shape == (2, queries, len(NAMES) + 1)
    layers, heads = config.attn_bias.num_layers, config.attn_bias.num_heads
    assert output.attn_bias.shape == (2, layers, heads, queries, 4, 6)
    assert len(output.aux) == len(config.side_adapter.supervised_blocks) - 1
    results = [output, *output.aux]
    sum(r.mask_logits.square().sum() + r.class_logits.square().sum() for r in results).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    trained = model.shallow_clip.positional_embedding.requires_grad
    assert trained == config.clip.train_pos_embed


SAME_FORWARD = {  # the tiny variant's own values, and options that change the text or the training only
    "max pooling",
    "a bias per head",
    "side width 144",
    "imagenet templates",
    "frozen positions",
    "last block only",
    "three supervised blocks",
    "blocked gradient",
    "gated fusion",  # its gate starts at 1
}


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in SAME_FORWARD])
def test_option_changes_the_prediction(option: str) -> None:
    """Against the tiny variant with the same seed: an option that does nothing would be a lie."""

    def predict(config: SANConfig) -> torch.Tensor:
        torch.manual_seed(0)
        model = build_san(config).eval()
        if config.attn_bias.learnt_scale:
            torch.nn.init.constant_(model.bias_head.scale, 3.0)
        with torch.no_grad():
            result: torch.Tensor = model(images(64, 64), torch.eye(2, 64)).class_logits
        return result

    ours, base = predict(OPTIONS[option]), predict(variant("tiny"))
    assert ours.shape != base.shape or not torch.allclose(ours, base, atol=1e-5)


def test_imagenet_templates_change_the_text() -> None:
    torch.manual_seed(0)
    vild = build_san(variant("tiny"))
    torch.manual_seed(0)
    imagenet = build_san(OPTIONS["imagenet templates"])
    assert not torch.allclose(vild.text_classifier.embed(["cat"]), imagenet.text_classifier.embed(["cat"]))


REFUSED = {
    "no templates": (lambda: tiny(clip={"templates": ()}), "clip.templates lists 0 texts; give 1 to 1000"),
    "a template without a place": (
        lambda: tiny(clip={"templates": ("a {}", "a cat")}),
        "holds 'a cat'; give texts .* {}",
    ),
    "a template with two": (lambda: tiny(clip={"templates": ("a {} {}",)}), "with one {} for the class's name"),
    "a template with a field": (lambda: tiny(clip={"templates": ("a {x.y} {}",)}), "no other brace"),
    "a template that is not text": (lambda: tiny(clip={"templates": (5,)}), "holds 5"),
    "bias heads": (
        lambda: build_san(tiny(attn_bias={"num_heads": 4})),
        "4 heads .* has 3; set attn_bias.num_heads",
    ),
    "bias layers": (
        lambda: build_san(tiny(attn_bias={"num_layers": 3})),
        "3 layers .* attn_bias.num_layers to 1",
    ),
    "pooling": (lambda: tiny(attn_bias={"pooling": "median"}), "'median'.*max, average"),
    "fusion source": (lambda: tiny(side_adapter={"fusion": ((4, 1),)}), r"\[4\].*0\.\.3.*side_adapter.fusion"),
    "fusion target": (lambda: tiny(side_adapter={"fusion": ((1, 9),)}), r"\[9\].*0\.\.8"),
    "fusion target twice": (lambda: tiny(side_adapter={"fusion": ((1, 2), (3, 2))}), "at most once"),
    "supervised block": (lambda: tiny(side_adapter={"supervised_blocks": (7, 9)}), r"\[7, 9\].*1\.\.8"),
    "last block unsupervised": (lambda: tiny(side_adapter={"supervised_blocks": (7,)}), "end with the last"),
    "K": (
        lambda: build_san(tiny(clip={"shallow_depth": 4})),
        "K = 4 .* has 4; set clip.shallow_depth within 0..3",
    ),
    "templates": (lambda: tiny(clip={"templates": "poem"}), "'poem'.*imagenet, plain, vild, or to a list of texts"),
    "sls": (
        lambda: build_san(tiny(clip={"sls_init": "zero"})),
        "clip.sls_init is 'zero', .* choose one of class_token, learnt",
    ),
    "scale": (lambda: tiny(clip={"input_scale": 0.0}), "clip.input_scale is 0.0; set it above 0 and at most 2"),
    "fusion heads": (
        lambda: build_san(replace(variant("tiny"), fusion=PartConfig("cross_attention", {"num_heads": 5}))),
        "144 is not a multiple of the 5 heads .*; set fusion.options.num_heads",
    ),
    "heads": (lambda: tiny(side_adapter={"num_heads": 7}), "144 is not a multiple of its 7 heads"),
    "no heads": (lambda: tiny(side_adapter={"num_heads": 0}), "side_adapter.num_heads is 0; set it within 1..256"),
    "no patch": (lambda: tiny(side_adapter={"patch_size": 0}), "side_adapter.patch_size is 0"),
    "MLP ratio": (lambda: tiny(side_adapter={"mlp_ratio": -1.0}), "side_adapter.mlp_ratio is -1.0"),
    "divisibility": (lambda: replace(variant("tiny"), size_divisibility=24), "multiple of 16"),
    "ResNet CLIP": (lambda: build_san(tiny(clip={"name": "RN50"})), "'RN50'.*ResNet.*clip.name"),
    "pooled CLIP": (lambda: build_san(tiny(clip={"name": "ViT-L-14-CLIPA"})), "no_ln_pre=True"),
    "unknown CLIP": (lambda: build_san(tiny(clip={"name": "ViT-B-17"})), "no model 'ViT-B-17'.*ViT-B-16"),
    "variant": (lambda: variant("vit_h14"), "'vit_h14'.*vit_b16"),
    "side width": (lambda: variant("tiny", side_width=100), r"100.*\[144, 192, 240, 288\]"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_value_and_remedy(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pixels_that_clip_does_not_see_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """For the model's own side when it is built, for another one when it is chosen."""
    expected = "become 57 at clip.input_scale 0.6, which the patch of 16 of CLIP 'tiny' does not divide: it does not"
    with caplog.at_level(logging.WARNING, "san"):
        model = build_san(tiny(clip={"input_scale": 0.6}))
        (record,) = caplog.records
        assert f"images of 96 pixels {expected} see the last 9; set clip.input_scale to 0.666667" in record.message
        Predictor(model, short_side=96)
        assert len(caplog.records) == 1
        Predictor(model, short_side=128)
        assert "images of 128 pixels become 76" in caplog.records[1].message
        caplog.clear()
        build_san(tiny(clip={"input_scale": 0.666667}))
        Predictor(build_san(tiny()), short_side=90)  # what is not seen of 96 is padding
        assert not caplog.records


def test_patches_of_14_pixels() -> None:
    arch = replace(TINY, vision=replace(TINY.vision, patch_size=14, image_size=56))
    config = tiny(clip={"input_scale": 0.5}, side_adapter={"image_size": 640})
    assert "does not see the last 12; set clip.input_scale to 0.503125," in unseen_pixels(config, arch, 640)
    for scale in (0.503125, 0.7):  # the latter is published
        assert unseen_pixels(tiny(clip={"input_scale": scale}), arch, 640) == ""


def test_a_depth_far_from_the_published_ones_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "san"):
        build_san(tiny(clip={"shallow_depth": 1}, side_adapter={"fusion": ((0, 0), (1, 1))}))
    (record,) = caplog.records
    assert "K = 1 of the 4 blocks of CLIP 'tiny'" in record.message
    assert "for 3 set clip.shallow_depth to 3 and side_adapter.fusion to ['0->0', '1->1'" in record.message
    large = replace(TINY, vision=replace(TINY.vision, depth=24))
    assert "for 18 set" in unusual_depth(variant("vit_b16"), large)
    assert unusual_depth(variant("vit_l14_336"), large) == ""
    assert unusual_depth(variant("vit_b16"), replace(large, vision=replace(large.vision, depth=12))) == ""
