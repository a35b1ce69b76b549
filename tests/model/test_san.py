"""Invariants of the model for any weights. Comparisons with the published code are in tests/test_golden.py."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from san.clip.visual import sls_attention
from san.model.build import build_san
from san.model.config import variant
from san.model.san import MaskProposals, SANModel


@pytest.fixture(scope="module")
def model() -> SANModel:
    torch.manual_seed(1)
    model = build_san(variant("tiny")).eval()
    torch.nn.init.constant_(model.bias_head.scale, 5.0)
    return model


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 3])
def test_sls_attention_equals_the_masked_softmax(heads: int) -> None:
    """Plain form: one softmax over the token itself and the patches; values and gradients agree."""
    q, k_self, v_self = (draw(2, 3, 5, 8, seed=s) for s in range(3))
    k, v = draw(2, 3, 7, 8, seed=4), draw(2, 3, 7, 8, seed=5)
    bias = (3 * draw(2, heads, 5, 7, seed=6)).requires_grad_()
    patch_logits = q @ k.transpose(-1, -2) / 8**0.5 + bias
    logits = torch.cat([(q * k_self).sum(-1, keepdim=True) / 8**0.5, patch_logits], dim=-1)
    probs = logits.softmax(dim=-1)
    expected = probs[..., :1] * v_self + probs[..., 1:] @ v
    ours = sls_attention(q, k_self, v_self, k, v, bias)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    cotangent = draw(*expected.shape, seed=7)
    (wanted,) = torch.autograd.grad((expected * cotangent).sum(), bias)
    (found,) = torch.autograd.grad((ours * cotangent).sum(), bias)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_patch_tokens_never_see_sls_tokens(model: SANModel) -> None:
    """For any number of [SLS] tokens and any bias, the embedding of each is the same as alone."""
    clip = model.shallow_clip(draw(1, 3, 32, 48))
    sls = draw(1, 4, 96, seed=1)
    bias = draw(1, 1, 3, 4, 6, seed=2)
    args = (clip.class_tokens[-1], clip.patch_tokens[-1])
    together = model.deep_clip(*args, sls, bias)
    alone = torch.cat([model.deep_clip(*args, sls[:, i : i + 1], bias[:, :, :, i : i + 1]) for i in range(4)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_class_token_with_plain_attention_is_clip(model: SANModel) -> None:
    """An [SLS] token that is the class token, without bias, sees what the class token sees: CLIP's image embedding."""
    images = draw(2, 3, 64, 64)
    clip = model.shallow_clip(images)
    x = torch.cat([clip.class_tokens[-1], clip.patch_tokens[-1]], dim=1)
    for block in model.deep_clip.resblocks:
        x = block(x)
    expected = F.normalize(model.deep_clip.ln_post(x[:, 0]) @ model.deep_clip.proj, dim=-1)
    no_bias = torch.zeros(2, 1, 1, 1, clip.patch_tokens[-1].shape[1])
    ours = model.deep_clip(clip.class_tokens[-1], clip.patch_tokens[-1], clip.class_tokens[-1], no_bias)
    torch.testing.assert_close(ours[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_batch_equals_single_images(model: SANModel) -> None:
    images = draw(2, 3, 64, 96)
    text = model.text_classifier.embed(["cat", "dog"])
    with torch.no_grad():
        both = model(images, text)
        singles = [model(images[i : i + 1], text) for i in range(2)]
    for name in ("mask_logits", "class_logits", "attn_bias"):
        torch.testing.assert_close(
            getattr(both, name), torch.cat([getattr(s, name) for s in singles]), atol=1e-4, rtol=1e-4
        )


def test_permuting_names_permutes_logits(model: SANModel) -> None:
    images, names = draw(1, 3, 64, 64), ["cat", "dog", "grass"]
    with torch.no_grad():
        forward = model(images, model.text_classifier.embed(names)).class_logits
        backward = model(images, model.text_classifier.embed(names[::-1])).class_logits
    torch.testing.assert_close(forward, backward[..., [2, 1, 0, 3]])


def test_without_biases_every_mask_gets_the_same_name(model: SANModel) -> None:
    config = replace(model.config, attn_bias=replace(model.config.attn_bias, enabled=False))
    blind = build_san(config).eval()
    blind.load_state_dict(model.state_dict())
    images, text = draw(1, 3, 64, 64), torch.eye(3, 64)
    with torch.no_grad():
        seeing, blinded = model(images, text), blind(images, text)
    torch.testing.assert_close(blinded.class_logits, blinded.class_logits[:, :1].expand_as(blinded.class_logits))
    assert not torch.allclose(seeing.class_logits, blinded.class_logits, atol=1e-3)
    torch.testing.assert_close(seeing.mask_logits, blinded.mask_logits)


@pytest.mark.parametrize("size", [(32, 32), (32, 160), (96, 64)])
def test_any_padded_size(model: SANModel, size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = model(draw(1, 3, *size), torch.eye(1, 64))
    assert output.mask_logits.shape == (1, 10, size[0] // 16, size[1] // 16)
    assert output.mask_logits.isfinite().all()


def test_image_smaller_than_a_patch_is_refused(model: SANModel) -> None:
    with pytest.raises(ValueError, match="smaller than its patch of 16.*clip.input_scale"):
        model(draw(1, 3, 16, 64), torch.eye(1, 64))


def test_eval_supervises_the_last_block_only(model: SANModel) -> None:
    assert model(draw(1, 3, 32, 32), torch.eye(1, 64)).aux == ()
    training = build_san(variant("tiny")).train()(draw(1, 3, 32, 32), torch.eye(1, 64))
    assert set(training.as_dict()) == {"pred_logits", "pred_masks", "sls_embed", "aux_outputs"}
    assert len(training.aux) == 1


def test_aux_layers_in_one_pass_equal_each_alone() -> None:
    """All supervised layers go through CLIP's deep blocks together; block 7 gives what it gives as the only one."""
    torch.manual_seed(0)
    whole = build_san(variant("tiny")).train()
    config = replace(whole.config, side_adapter=replace(whole.config.side_adapter, depth=7, supervised_blocks=(7,)))
    cut = build_san(config).train()
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("side_adapter.blocks.7.")}
    cut.load_state_dict(state)
    images, text = draw(1, 3, 64, 64), torch.eye(3, 64)
    torch.testing.assert_close(whole(images, text).aux[0].class_logits, cut(images, text).class_logits)


class Doubling(SANModel):
    """A model of a user's own."""

    def propose(self, images: torch.Tensor) -> list[MaskProposals]:
        return [each._replace(mask_logits=2 * each.mask_logits) for each in super().propose(images)]


def test_the_image_side_is_compiled_whole_as_a_subclass_overrides_it_and_copies_are_not() -> None:
    config = variant("tiny")
    few_blocks = replace(config.side_adapter, depth=2, supervised_blocks=(2,), fusion=((0, 0), (2, 1)))
    torch.manual_seed(0)
    model = build_san(replace(config, side_adapter=few_blocks), model_class=Doubling).eval()
    keys, images, text = list(model.state_dict()), draw(1, 3, 64, 96), F.normalize(draw(4, model.arch.embed_dim))
    expected = model(images, text)
    graphs: list[Any] = []
    model.image_side.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    with torch.no_grad():
        for compiled in (model, copy.copy(model)):
            torch.testing.assert_close(compiled(images, text)[:4], expected[:4])
        assert len(graphs) == 1
        torch.testing.assert_close(copy.deepcopy(model)(images, text)[:4], expected[:4])
        copy.deepcopy(model)(draw(1, 3, 96, 64), text)
    assert len(graphs) == 1
    assert list(model.state_dict()) == keys
    assert not any("image_side" in key for key in keys)


def test_overfits_two_images() -> None:
    """Learning at all: masks and classes of two images, left and right half, within 150 steps."""
    from san.losses import LossConfig, SetCriterion

    torch.manual_seed(0)
    model = build_san(variant("tiny")).train()
    criterion = SetCriterion(LossConfig(num_points=256))
    halves = torch.zeros(2, 64, 64, dtype=torch.bool)
    halves[0, :, :32] = halves[1, :, 32:] = True
    targets = [{"labels": torch.tensor([0, 1]), "masks": halves}, {"labels": torch.tensor([1, 2]), "masks": halves}]
    images, text = draw(2, 3, 64, 64), model.text_classifier.embed(["cat", "dog", "grass"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    totals = []
    for _ in range(150):
        losses = criterion(model(images, text).as_dict(), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.3 * totals[0], (totals[0], totals[-1])
