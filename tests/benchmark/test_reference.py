"""The fast paths give the plain computations' numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from san import postprocess
from san.benchmark import reference
from san.benchmark.reference import (
    PlainAttention,
    PlainCriterion,
    PlainSAN,
    plain_labels,
    plain_scores,
    plain_text_embed,
)
from san.benchmark.workload import synthetic_scene
from san.losses import LabelMapTarget, LossConfig, SetCriterion, Target
from san.model.build import build_san
from san.model.config import variant
from san.model.san import SANModel
from san.postprocess import Geometry, View, semantic_labels, semantic_scores
from san.vocabulary.label_sets import load_label_set

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def tiny(device: str = "cpu", *, train_pos_embed: bool = True) -> SANModel:
    torch.manual_seed(0)
    config = variant("tiny")
    model = build_san(replace(config, clip=replace(config.clip, train_pos_embed=train_pos_embed)))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:  # biases and scales that are not all zero or one
            torch.nn.init.normal_(parameter, mean=float("weight" in name or "scale" in name), std=0.1)
    return model.to(device)


def plain_twin(model: SANModel) -> SANModel:
    """The same weights, computed plainly."""
    twin = build_san(model.config, model_class=PlainSAN)
    twin.load_state_dict(model.state_dict())
    return twin.to(model.pixel_mean.device).train(model.training)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["free", "masked", "chosen", "causal"])
def test_attention(device, dtype, how):
    """The fused kernels' results and gradients, from weights that are held in memory."""
    torch.manual_seed(0)
    drawn = [torch.randn(2, 3, 50, 40).to(device, dtype) for _ in range(3)]
    mask = torch.randn(2, 3, 50, 50).masked_fill(torch.rand(2, 3, 50, 50) < 0.2, float("-inf")).to(device, dtype)
    options = {
        "free": {},
        "masked": {"attn_mask": mask},
        "chosen": {"attn_mask": mask > -1},
        "causal": {"is_causal": True},
    }
    attention, results, kernels = torch.nn.functional.scaled_dot_product_attention, [], []
    for plain in (False, True):
        leaves = [values.clone().requires_grad_() for values in drawn]
        with PlainAttention() if plain else torch.enable_grad():
            mixed = attention(*leaves, **options[how])
        mixed.float().square().sum().backward()
        results.append([mixed, *(leaf.grad for leaf in leaves)])
        kernels.append(mixed.grad_fn.name())
    assert "ScaledDotProduct" in kernels[0]
    assert "ScaledDotProduct" not in kernels[1]
    for fused, plain in zip(*results, strict=True):
        error = (fused.float() - plain.float()).norm() / plain.float().norm()
        assert error < (1e-4 if dtype == torch.float32 else 2e-2)


def test_all_attention_of_the_plain_model_is_plain(monkeypatch):
    calls, attention = [], reference.plain_attention
    monkeypatch.setattr(
        reference, "plain_attention", lambda q, *a, **k: calls.append(q.shape[2]) or attention(q, *a, **k)
    )
    model = tiny().eval()
    with torch.no_grad():
        plain_twin(model).propose(torch.randn(1, 3, 64, 64))
    assert len(calls) == model.arch.vision.depth + model.config.side_adapter.depth
    calls.clear()
    with torch.no_grad():
        model.propose(torch.randn(1, 3, 64, 64))
    assert calls == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_image_side(device, dtype, training):
    model = tiny(device).train(training)
    images = torch.randn(2, 3, 96, 128, device=device)
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        results = [each.propose(images) for each in (model, plain_twin(model))]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert len(results[0]) == (len(model.config.side_adapter.supervised_blocks) if training else 1)
    for fast, plain in zip(*results, strict=True):
        for name in ("mask_logits", "attn_bias", "sls_embed"):
            a, b = (getattr(each, name).float() for each in (fast, plain))
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("train_pos_embed", [False, True])
def test_gradients(device, train_pos_embed):
    """Also with all of CLIP frozen: in the first deep block's attention only the bias needs a gradient."""
    gradients, fast = [], tiny(device, train_pos_embed=train_pos_embed).train()
    for model in (fast, plain_twin(fast)):
        proposals = model.propose(torch.randn(1, 3, 96, 96, generator=torch.manual_seed(1)).to(device))
        sum(
            p.sls_embed.square().sum() + (p.attn_bias * p.mask_logits[:, None, None]).mean() for p in proposals
        ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("bias_head.attn_mlp" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=3e-4 * max(1e-3, float(other.abs().max())))


def assert_alike(labels: torch.Tensor, plain: torch.Tensor, scores: torch.Tensor) -> None:
    """Two label maps (H, W) differ, if at all, where two scores (C, H, W) are equal but for rounding."""
    differing = labels != plain
    assert differing.float().mean() < 1e-3
    margin = scores.gather(0, plain[None])[0] - scores.gather(0, labels[None])[0]
    assert float(margin[differing].max() if differing.any() else 0) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_classes", [1, 5, 300])
def test_label_map(device, num_classes):
    torch.manual_seed(0)
    masks, classes = torch.randn(20, 12, 16, device=device) * 4, torch.randn(20, num_classes + 1, device=device) * 3
    geometry = Geometry((192, 256), (180, 250), (77, 131))
    scores = plain_scores(masks, classes, geometry)
    torch.testing.assert_close(semantic_scores(masks, classes, geometry), scores, rtol=1e-4, atol=1e-5)
    assert_alike(semantic_labels(masks, classes, geometry), plain_labels(masks, classes, geometry), scores)


@pytest.mark.parametrize("seed", range(3))
def test_classes_that_cannot_win_are_left_out(monkeypatch, seed):
    """Many classes can win where things meet, few elsewhere; tiles do not divide the sizes."""
    masks, classes = synthetic_scene(30, (20, 28), 500, seed=seed, num_things=6)
    geometry = Geometry((320, 448), (300, 437), (301, 405))
    ((_, _, band), *_) = postprocess.mask_bands([View(masks, classes, geometry)], 32)
    class_probs = classes.softmax(dim=-1)[:, :-1].t()
    possible = postprocess._possible_winners(band, class_probs)
    assert possible.shape == (500, 2, 26)
    winners = (class_probs @ band.flatten(1)).argmax(dim=0).view(32, 405)
    rows, columns = torch.meshgrid(torch.arange(32) // 16, torch.arange(405) // 16, indexing="ij")
    assert possible[winners, rows, columns].all()
    products, best_class = [], postprocess._best_class
    monkeypatch.setattr(
        postprocess, "_best_class", lambda c, p, n: products.append(len(c) * p.shape[1]) or best_class(c, p, n)
    )
    labels = semantic_labels(masks, classes, geometry)
    assert_alike(labels, plain_labels(masks, classes, geometry), plain_scores(masks, classes, geometry))
    assert len(labels.unique()) >= 6
    assert len(products) > 10, "crowded tiles are looked at by themselves"
    assert sum(products) < 0.1 * 500 * labels.numel()


def test_what_is_not_a_number_leaves_no_class_out():
    masks, classes = synthetic_scene(30, (20, 28), 100)
    masks[3] = float("nan")
    geometry = Geometry((320, 448), (320, 448), (320, 448))
    labels, plain = semantic_labels(masks, classes, geometry), plain_labels(masks, classes, geometry)
    assert torch.equal(labels, plain)


def test_text():
    model = tiny()
    names = load_label_set("ade20k_150").classes[:12]
    torch.testing.assert_close(
        model.text_classifier.embed(names), plain_text_embed(model.text_classifier, names), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_at_the_same_points(device, dtype):
    """One image, one layer: there both draw the same points; ignored pixels and a class at the border among them."""
    label_map = torch.tensor([[3, 3, 255], [0, 5, 5], [255, 0, 3]]).repeat_interleave(20, 0).repeat_interleave(20, 1)
    labels = torch.tensor([0, 3, 5])
    given = (LabelMapTarget(labels, label_map), Target(labels.to(device), (label_map == labels[:, None, None])))
    config, results = LossConfig(num_points=500), []
    for criterion, target in zip((SetCriterion(config), PlainCriterion(config)), given, strict=True):
        torch.manual_seed(0)
        leaves = [torch.randn(1, 10, *shape).to(device, dtype).requires_grad_() for shape in ((7,), (15, 15))]
        losses = criterion(dict(zip(("pred_logits", "pred_masks"), leaves, strict=True)), [target])
        sum(losses.values()).backward()
        results.append((losses, [leaf.grad for leaf in leaves]))
    rounding = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(results[0], results[1], **rounding)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1])


def test_losses():
    """With many points, both draw different ones and still agree."""
    torch.manual_seed(0)
    label_maps = [torch.randint(0, 6, (6, 8)).repeat_interleave(16, 0).repeat_interleave(16, 1) for _ in range(2)]
    outputs = {"pred_logits": torch.randn(2, 10, 7), "pred_masks": torch.randn(2, 10, 24, 32)}
    outputs = {**outputs, "aux_outputs": [{name: value.flip(1) for name, value in outputs.items()}]}
    labels = [label_map.unique() for label_map in label_maps]
    config = LossConfig(num_points=40_000)
    fast = SetCriterion(config)(outputs, [LabelMapTarget(*each) for each in zip(labels, label_maps, strict=True)])
    masks = [label_map == own[:, None, None] for own, label_map in zip(labels, label_maps, strict=True)]
    plain = PlainCriterion(config)(outputs, [Target(*each) for each in zip(labels, masks, strict=True)])
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        assert float(value) == pytest.approx(float(plain[name]), rel=0.01), name
    assert float(fast["loss_ce"]) == pytest.approx(float(plain["loss_ce"]), rel=1e-5)
