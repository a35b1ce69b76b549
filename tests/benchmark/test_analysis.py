"""Parameters and multiply-adds part by part, against counts by hand and by other counters."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from san.benchmark.analysis import (
    NETWORK,
    AnalysisInput,
    count_multiply_adds,
    count_parameters,
    count_text,
    measure_time,
    names_for,
    on_meta,
)
from san.benchmark.reference import PlainSAN
from san.clip.loader import load_clip
from san.model.build import build_outline, build_san, freeze
from san.model.config import SANConfig, variant
from san.model.fusions import AddFusion
from san.model.parts import BIAS_HEADS, FUSIONS, BiasHead
from san.model.san import SANModel

PIECE = AnalysisInput(96, 64, 5)
D, S, E, C, Q, HEADS = 96, 144, 64, 32, 10, 3  # of the tiny model: CLIP, side, joint and head channels
CLIP_PATCHES, SIDE_PATCHES = 3 * 2, 6 * 4
T, N = 1 + CLIP_PATCHES, Q + SIDE_PATCHES
BLOCK = 12  # multiply-adds of a block's linear layers, in squares of its width per token: 3 + 1 + 4 + 4


def outlined(config: SANConfig) -> SANModel:
    model = build_outline(config, load_clip(config.clip.name, None))
    freeze(model)
    return model


@pytest.fixture(scope="module")
def tiny() -> SANModel:
    torch.manual_seed(0)
    return build_san(variant("tiny")).eval()


def test_every_part_of_the_tiny_model_by_hand(tiny):
    hidden = S * C + C * C  # of a head's MLP, per token
    expected = {
        "input": 0,
        "shallow CLIP": CLIP_PATCHES * 3 * 16**2 * D + 3 * (BLOCK * T * D**2 + 2 * T**2 * D),
        "side network": SIDE_PATCHES * 3 * 16**2 * S + 8 * (BLOCK * N * S**2 + 2 * N**2 * S),
        "fusion": 4 * CLIP_PATCHES * D * S,
        "mask head": N * (hidden + C * C) + Q * SIDE_PATCHES * C,
        "bias head": SIDE_PATCHES * hidden + Q * HEADS * (C * C + C) + HEADS * Q * SIDE_PATCHES * C,
        # the one deep block: of class and patch tokens queries, keys and values only
        "deep CLIP": 3 * T * D**2 + BLOCK * Q * D**2 + 2 * Q * CLIP_PATCHES * D + Q * D * E,
        "classification": Q * 6 * E,
    }
    counts = count_multiply_adds(tiny, PIECE)
    assert counts is not None
    counts.pop("label map")
    assert counts == expected


def test_the_method_as_written_by_hand(tiny):
    counts, written = count_multiply_adds(tiny, PIECE), count_multiply_adds(tiny, PIECE, as_written=True)
    assert counts is not None
    assert written is not None
    embeddings = SIDE_PATCHES * (S * C + C * C + C * C * HEADS)
    assert written["bias head"] == embeddings + HEADS * Q * SIDE_PATCHES * C
    tokens = Q + T
    assert written["deep CLIP"] == BLOCK * tokens * D**2 + 2 * tokens**2 * D + Q * D * E
    assert written["label map"] == Q * 5 * 96 * 64
    for part in ("shallow CLIP", "side network", "fusion", "mask head", "classification"):
        assert written[part] == counts[part]


def test_the_text_tower_by_hand(tiny):
    width, depth, tokens, prompts = 64, 2, 77, 3 * 14
    layers = depth * (BLOCK * tokens * width**2 + 2 * tokens**2 * width)
    names = ["cat", "dog", "traffic light"]
    assert count_text(tiny, names, as_written=True) == prompts * (layers + width * E)
    assert 0 < count_text(tiny, names) < count_text(tiny, names, as_written=True) / 5


def test_torch_counts_the_same_of_a_real_forward(tiny):
    """Attention in its plain form, as which kernels torch knows depends on its release."""
    batch, text_embed = tiny.stack([torch.zeros(3, 96, 64)]), torch.randn(5, E)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tiny(batch, text_embed)
    counts = count_multiply_adds(tiny, PIECE)
    assert counts is not None
    assert counter.get_total_flops() == 2 * sum(counts[part] for part in NETWORK)


class Outputs(nn.Module):
    """A model as fvcore can trace it."""

    def __init__(self, model: SANModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, text_embed):
        output = self.model(images, text_embed)
        return output.mask_logits, output.class_logits


def test_fvcore_counts_the_same_of_the_method_as_written(tiny):
    from fvcore.nn import FlopCountAnalysis

    batch, text_embed = tiny.stack([torch.zeros(3, 96, 64)]), torch.randn(5, E)
    plain = build_san(tiny.config, model_class=PlainSAN).eval()
    with torch.no_grad():
        found = FlopCountAnalysis(Outputs(plain), (batch, text_embed))
        by_operator = found.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    written = count_multiply_adds(tiny, PIECE, as_written=True)
    assert written is not None
    products = sum(by_operator[name] for name in ("conv", "linear", "matmul", "einsum"))
    assert products == sum(written[part] for part in NETWORK)


def test_figures_of_the_published_model():
    """The figures of docs/analyze.md."""
    model = outlined(variant("vit_b16", pretrained=None))
    parameters = count_parameters(model)
    assert sum(trained for _, trained in parameters.values()) == 8_370_866  # published: 8.37 M
    assert sum(total for total, _ in parameters.values()) == sum(each.numel() for each in model.parameters())
    piece = AnalysisInput(640, 640, 171)
    counts, written = (count_multiply_adds(model, piece, as_written=plain) for plain in (False, True))
    assert counts is not None
    assert written is not None
    assert sum(counts[part] for part in NETWORK) == 59_468_366_336
    assert sum(written[part] for part in NETWORK) == 63_254_693_888


def test_a_part_of_the_users_own_is_counted_and_timed(tiny):
    @FUSIONS.register("counted")
    class Twice(AddFusion):
        def __init__(self, options, clip_width, embed_dim):
            super().__init__(options, clip_width, embed_dim)
            self.more = nn.Linear(embed_dim, embed_dim, bias=False)

        def forward(self, patches, feature, grid, side_grid):
            return self.more(super().forward(patches, feature, grid, side_grid))

    @BIAS_HEADS.register("none")
    class NoBias(BiasHead):
        def forward(self, features, masks):
            return masks.logits[:, None, None].expand(-1, 1, HEADS, -1, -1, -1) * 0

    try:
        config = replace(variant("tiny"), fusion=replace(variant("tiny").fusion, name="counted"))
        config = replace(config, bias_head=replace(config.bias_head, name="none"))
        model = build_san(config).eval()
        counts, before = count_multiply_adds(model, PIECE), count_multiply_adds(tiny, PIECE)
        assert counts is not None
        assert before is not None
        assert counts["fusion"] == before["fusion"] + 4 * SIDE_PATCHES * S**2
        assert counts["bias head"] == 0
        assert {part: counts[part] for part in NETWORK if part not in ("fusion", "bias head")} == {
            part: before[part] for part in NETWORK if part not in ("fusion", "bias head")
        }
        assert count_multiply_adds(model, PIECE, as_written=True) is None
        held, own = count_parameters(model), count_parameters(tiny)
        assert held["fusion"] == tuple(each + 4 * S**2 for each in own["fusion"])
        assert "bias head" not in held
        timing = measure_time(model, PIECE, dtype=torch.float32, runs=2)
        assert set(timing.parts) == {*NETWORK, "label map"}
        assert all(seconds > 0 for seconds in timing.parts.values())
        assert timing.peak_bytes > 0
    finally:
        FUSIONS._entries.pop("counted")
        BIAS_HEADS._entries.pop("none")


def test_a_part_that_reads_values_is_an_error(tiny):
    class Reads(AddFusion):
        def forward(self, patches, feature, grid, side_grid):
            return patches * patches.sum().item()

    model = build_san(variant("tiny"))
    model.side_adapter.fusions["0"] = Reads(None, D, S)
    with pytest.raises(ValueError, match=r"reads the values of tensors .*without \.item"):
        count_multiply_adds(model, PIECE)


def test_counting_leaves_the_model_as_it_was(tiny):
    before = {name: each.clone() for name, each in tiny.state_dict().items()}
    bare = on_meta(tiny)
    assert all(each.is_meta for each in [*bare.parameters(), *bare.buffers()])
    assert [each.requires_grad for each in bare.parameters()] == [each.requires_grad for each in tiny.parameters()]
    count_multiply_adds(tiny, PIECE)
    assert all(torch.equal(each, before[name]) for name, each in tiny.state_dict().items())
    assert not tiny.shallow_clip._forward_hooks


def test_names_to_embed(tiny):
    assert names_for(tiny, 171)[0] == "person"
    assert len(names_for(tiny, 20)) == 20
    assert len(names_for(tiny, 333)) == 333
    assert names_for(tiny, 848) is None
    with pytest.raises(ValueError, match="1 or more"):
        AnalysisInput(0, 1, 1)


def test_rounded_weights_have_the_same_counts(tiny):
    """Prediction in bfloat16 rounds the weights."""
    counts = count_multiply_adds(tiny, PIECE)
    assert count_multiply_adds(copy.deepcopy(tiny).bfloat16(), PIECE) == counts
