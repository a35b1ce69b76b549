"""Optimiser, schedule and clipping; tests/test_golden.py compares them with the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from san.d2.solver import (
    SolverConfig,
    build_lr_scheduler,
    build_optimizer,
    clip_gradient,
    poly_factor,
    schedule_factor,
)
from san.model.build import build_san
from san.model.config import variant
from san.model.san import SANModel
from san.part import ParamRule


@pytest.fixture(scope="module")
def vit_b16() -> SANModel:
    with torch.device("meta"):
        return build_san(variant("vit_b16", pretrained=None))


def test_optimizer_holds_every_trained_tensor_once(vit_b16: SANModel) -> None:
    optimizer = build_optimizer(vit_b16, SolverConfig(base_lr=3e-4))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in vit_b16.parameters() if parameter.requires_grad]
    assert len(held) == len(set(held)) and set(held) == set(trained)
    assert sum(p.numel() for p in vit_b16.parameters() if p.requires_grad) == 8_370_866
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(3e-4, 0.0), (3e-4, 1e-4)}


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trained parameter"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), SolverConfig())


def test_scheduler_follows_the_schedule_and_resumes() -> None:
    config = SolverConfig(base_lr=0.1, max_iter=10, power=2.0)

    def make() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.base_lr)
        return optimizer, build_lr_scheduler(optimizer, config)

    optimizer, scheduler = make()
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if len(rates) == 5:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = make()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
    assert rates == pytest.approx([0.1 * (1 - i / 10) ** 2 for i in range(10)])
    assert optimizer.param_groups[0]["lr"] == 0


def rates_of(config: SolverConfig, made: object = None) -> list[float]:
    """The learning rate of each iteration, by our scheduler or by one of Detectron2's that `made` builds."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.base_lr)
    scheduler = made(optimizer) if callable(made) else build_lr_scheduler(optimizer, config)
    rates = []
    for _ in range(config.max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_cosine_falls_to_0() -> None:
    config = SolverConfig(base_lr=0.1, max_iter=8, lr_scheduler_name="WarmupCosineLR")
    assert rates_of(config) == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])


def test_a_warm_up_rises_linearly_into_the_schedule() -> None:
    plain = rates_of(SolverConfig(base_lr=0.1, max_iter=10))
    warm = rates_of(SolverConfig(base_lr=0.1, max_iter=10, warmup_iters=4, warmup_factor=0.2))
    rise = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]
    assert warm == pytest.approx([share * rate for share, rate in zip(rise, plain, strict=True)])
    assert warm[4:] == plain[4:]


def test_without_warm_up_the_schedule_is_the_published_one_bit_by_bit() -> None:
    config = SolverConfig(max_iter=60000)
    for iteration in (0, 1, 7, 29999, 59999, 60000):
        assert schedule_factor(config)(iteration) == poly_factor(config)(iteration)


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupCosineLR"])
def test_schedules_are_those_of_detectron2_of_the_same_name(name: str) -> None:
    if name == "WarmupPolyLR":
        from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR as Theirs
    else:
        from detectron2.solver.lr_scheduler import WarmupCosineLR as Theirs
    config = SolverConfig(base_lr=0.1, max_iter=30, warmup_iters=7, warmup_factor=0.01, lr_scheduler_name=name)
    options = {"power": config.power} if name == "WarmupPolyLR" else {}
    theirs = rates_of(config, lambda optimizer: Theirs(optimizer, 30, warmup_factor=0.01, warmup_iters=7, **options))
    assert rates_of(config) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("limit", "expected"), [(0.01, 0.01), (100.0, 5.0), (0.0, 5.0)])
def test_the_whole_models_gradient_is_clipped(limit: float, expected: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    assert clip_gradient(optimizer, SolverConfig(clip_norm=limit)).item() == pytest.approx(5.0)
    assert torch.cat([p.grad for p in parameters]).norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"base_lr": 0.0}, {"base_lr": math.inf}, {"max_iter": 0}, {"clip_norm": -1.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="; set it "):
        SolverConfig(**wrong)


def test_the_fused_optimizer_steps_like_the_plain_one() -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.Linear(60, 7))
        optimizer = build_optimizer(layers, SolverConfig(base_lr=1e-2))
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            layers(torch.randn(8, 40)).square().sum().backward()
            optimizer.step()
        results.append([parameter.detach() for parameter in layers.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def groups_of(model: nn.Module, config: SolverConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each trained tensor, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


def test_rules_set_rates_decays_and_what_is_trained() -> None:
    before = groups_of(build_san(variant("tiny")), SolverConfig(base_lr=0.1, weight_decay=0.2))
    rules = (
        {"MATCH": "deep_clip.resblocks.0.*", "FROZEN": False, "LR_MULTIPLIER": 0.1},
        {"MATCH": "deep_clip.resblocks.0.ln_1.*", "WEIGHT_DECAY": 0.5},  # a later rule wins, with its own multiplier
        {"MATCH": "side_adapter.pos_embed", "FROZEN": True},
    )
    after = groups_of(build_san(variant("tiny")), SolverConfig(base_lr=0.1, weight_decay=0.2, param_rules=rules))
    new = {name for name in after if name not in before}
    names = [name for name, _ in build_san(variant("tiny")).named_parameters()]
    assert new == {name for name in names if "deep_clip.resblocks.0." in name}
    assert before.keys() - after.keys() == {"side_adapter.pos_embed"}
    assert after["deep_clip.resblocks.0.attn.in_proj_weight"] == pytest.approx((0.01, 0.2))
    assert after["deep_clip.resblocks.0.ln_1.weight"] == pytest.approx((0.1, 0.5))
    assert after["deep_clip.resblocks.0.ln_2.weight"] == pytest.approx((0.01, 0.0))  # a LayerNorm, as without rules
    assert {name: value for name, value in after.items() if name in before} == {
        name: value for name, value in before.items() if name in after
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"MATCH": "nothing.*"}, "matches no parameter with 'nothing"),
        ({"MATCH": "text_classifier.*", "FROZEN": False}, "trains text_classifier.* text embeddings are computed once"),
        ({"FROZEN": True}, r"missing fields solver.param_rules\[0\].match"),
        ({"MATCH": "*", "FROZEN": "yes"}, r"solver.param_rules\[0\].frozen is 'yes'; give bool"),
        ({"MATCH": "*", "LR_MULTIPLIER": float("nan")}, r"lr_multiplier is nan"),
        ({"MATCH": "*", "FROZEN": True}, "no trained parameter"),
        ({"MATCH": "deep_clip*out_proj*", "PROJECTIONS": "qv"}, "'qv' of deep_clip.*out_proj.weight .*; correct MATCH"),
        ({"MATCH": "*in_proj*", "PROJECTIONS": "vq"}, r"projections is 'vq'; set it to one of '', q, k, v, qk, qv, kv"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(build_san(variant("tiny")), SolverConfig(param_rules=(rule,)))


def test_a_part_brings_rules_for_its_own_parameters() -> None:
    model = build_san(variant("tiny"))
    model.mask_head.param_rules = (ParamRule("pixel_mlp.*", lr_multiplier=3.0), ParamRule("query_mlp.*", frozen=True))
    found = groups_of(model, SolverConfig(base_lr=0.1))
    assert not any(name.startswith("mask_head.query_mlp") for name in found)
    assert found["mask_head.pixel_mlp.layers.0.weight"] == pytest.approx((0.3, 1e-4))
    rules = ({"MATCH": "*pixel_mlp*", "LR_MULTIPLIER": 1.0},)  # the configuration's win
    found = groups_of(model, SolverConfig(base_lr=0.1, param_rules=rules))
    assert found["mask_head.pixel_mlp.layers.0.weight"] == pytest.approx((0.1, 1e-4))


@pytest.mark.parametrize("clip_norm", [0.01, 0.0])
def test_only_the_named_projections_of_clip_train(clip_norm: float) -> None:
    """Queries and values move, keys stay to the bit, also under weight decay and clipping."""
    torch.manual_seed(0)
    model = build_san(variant("tiny"))
    rule = {"MATCH": "deep_clip.*.attn.in_proj_*", "FROZEN": False, "PROJECTIONS": "qv", "LR_MULTIPLIER": 0.1}
    config = SolverConfig(base_lr=0.1, weight_decay=0.5, clip_norm=clip_norm, param_rules=(rule,))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    found = groups_of(model, config)
    trained = {name for name in found if name.startswith("deep_clip.")}
    assert trained == {"deep_clip.resblocks.0.attn.in_proj_weight", "deep_clip.resblocks.0.attn.in_proj_bias"}
    assert all(found[name] == pytest.approx((0.01, 0.0)) for name in trained)
    images, names = torch.randn(2, 3, 64, 64), torch.eye(3, model.arch.embed_dim)
    for _ in range(2):
        optimizer.zero_grad()
        model(images, names).class_logits.square().sum().backward()
        clip_gradient(optimizer, config)
        optimizer.step()
    after = dict(model.named_parameters())
    for name in trained:
        moved = [not torch.equal(*pair) for pair in zip(before[name].chunk(3), after[name].chunk(3), strict=True)]
        assert moved == [True, False, True], name
    assert torch.equal(before["deep_clip.proj"], after["deep_clip.proj"])
