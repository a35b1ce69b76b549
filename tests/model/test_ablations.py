"""Switches of ablations: which gradients exist, which stop, and which numbers stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.model.fusions import CrossAttentionFusion, CrossAttentionOptions
from san.model.san import SANModel, SANOutput
from san.registry import PartConfig

TINY = variant("tiny")
COUPLED = replace(TINY, bias_head=PartConfig("coupled"))


def make(config: SANConfig) -> tuple[SANModel, SANOutput]:
    """A model in training, with the same weights for the same parts, and its output for the same image."""
    torch.manual_seed(0)
    model = build_san(config).train()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model, model(images, torch.eye(3, model.arch.embed_dim))


def stopping(config: SANConfig, stop: bool = True) -> SANConfig:
    return replace(config, attn_bias=replace(config.attn_bias, stop_gradient=stop))


def reached_by_recognition(config: SANConfig) -> set[str]:
    """First names of the trained parameters that class logits give a gradient other than zero."""
    model, output = make(config)
    output.class_logits.square().sum().backward()
    found = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    return {".".join(name.split(".")[:2]) for name in found}


def test_recognition_reaches_the_side_network_unless_it_is_stopped() -> None:
    """The bias head, "no object" and CLIP's positions still learn from recognition."""
    open_, blocked = reached_by_recognition(TINY), reached_by_recognition(stopping(TINY))
    assert {"side_adapter.blocks", "side_adapter.query_embed", "side_adapter.fusions", "mask_head.query_mlp"} <= open_
    assert "mask_head.pixel_mlp" not in open_  # the bias head takes the queries alone
    assert blocked == {
        "bias_head.attn_mlp",
        "bias_head.scale",
        "bias_head.offset",
        "text_classifier.no_object_embed",
        "shallow_clip.positional_embedding",
    }
    assert reached_by_recognition(stopping(COUPLED)) == blocked - {"bias_head.attn_mlp"}
    assert "mask_head.pixel_mlp" in reached_by_recognition(COUPLED)


@pytest.mark.parametrize("config", [TINY, COUPLED], ids=["mlp", "coupled"])
def test_a_stopped_gradient_changes_no_number_and_no_gradient_of_the_masks(config: SANConfig) -> None:
    gradients = []
    for stop in (False, True):
        model, output = make(stopping(config, stop))
        output.mask_logits.square().sum().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
        gradients[-1]["class_logits"] = output.class_logits.detach()
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])  # type: ignore[arg-type]


def test_the_biases_of_a_coupled_head_are_the_masks() -> None:
    model, output = make(COUPLED)
    assert {name for name, _ in model.bias_head.named_parameters()} == {"scale", "offset"}
    assert torch.equal(output.attn_bias, output.mask_logits[:, None, None].expand_as(output.attn_bias))
    torch.nn.init.constant_(model.bias_head.scale, 3.0)
    torch.nn.init.constant_(model.bias_head.offset, -1.0)
    side, masks = model.bias_head, output.mask_logits
    assert torch.equal(side.scaled(masks), masks * 3 - 1)
    held = replace(COUPLED, attn_bias=replace(COUPLED.attn_bias, enabled=False))
    assert not make(held)[1].attn_bias.any()


def test_the_gated_fusion_starts_as_the_addition() -> None:
    """Its gate is 2 sigmoid(0) = 1; a bias of -30 closes it, which is not a fusion."""
    gated = build_san(replace(TINY, fusion=PartConfig("gated"))).eval()
    added = build_san(TINY).eval()
    added.load_state_dict({k: v for k, v in gated.state_dict().items() if ".gate." not in k})
    images, names = torch.randn(1, 3, 64, 64), torch.eye(3, gated.arch.embed_dim)
    with torch.no_grad():
        assert torch.equal(gated(images, names).mask_logits, added(images, names).mask_logits)
        for fusion in gated.side_adapter.fusions.values():
            fusion.gate.bias.fill_(-30)  # type: ignore[union-attr, operator]
        alone = build_san(replace(TINY, side_adapter=replace(TINY.side_adapter, fusion=()))).eval()
        alone.load_state_dict({k: v for k, v in gated.state_dict().items() if ".fusions." not in k})
        torch.testing.assert_close(gated(images, names).mask_logits, alone(images, names).mask_logits)


def test_cross_attention_finds_a_token_wherever_it_is() -> None:
    """With one token of CLIP the attention is fixed; the order of tokens does not matter."""
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(CrossAttentionOptions(num_heads=2), clip_width=6, embed_dim=4)
    patches, feature = torch.randn(1, 3, 4), torch.randn(1, 5, 6)
    single = fusion(patches, feature[:, :1], (1, 1), (1, 3)) - patches
    expected = fusion.proj(fusion.kv(fusion.norm(feature[:, :1]))[..., 4:])
    torch.testing.assert_close(single, expected.expand_as(single))
    shuffled = fusion(patches, feature.flip(1), (1, 5), (1, 3))
    torch.testing.assert_close(shuffled, fusion(patches, feature, (1, 5), (1, 3)))
