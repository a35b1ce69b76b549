"""The plain module under torch's tools: the meta device, counters of operations, and torch.export of any size."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from san.clip.arch import TINY
from san.clip.loader import LoadedClip, load_clip
from san.export.graphs import proposal_graph
from san.model.build import build_san
from san.model.config import variant
from san.model.layers import _adaptive_max
from san.model.san import SANModel


def settings(model: str, **bias: Any) -> SANModel:
    """A small model with a published one's patches, scale and pooling; few blocks, as each takes time to trace."""
    patch, scale = {"vit_b16": (16, 0.5), "vit_l14_336": (14, 0.7)}[model]
    tiny = variant("tiny")
    config = replace(
        tiny,
        clip=replace(tiny.clip, input_scale=scale),
        side_adapter=replace(tiny.side_adapter, depth=2, supervised_blocks=(2,), fusion=((0, 0), (3, 1))),
        attn_bias=replace(tiny.attn_bias, **bias),
    )
    arch = replace(TINY, vision=replace(TINY.vision, patch_size=patch, image_size=4 * patch))
    torch.manual_seed(0)
    tokenizer = load_clip("tiny", None).tokenizer
    return build_san(config, clip=LoadedClip(arch, None, tokenizer, fingerprint="")).eval()


def inputs(batch: int, height: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 3, height, width), F.normalize(torch.randn(classes, TINY.embed_dim), dim=-1)


@pytest.mark.parametrize(
    ("model", "pooling"),
    [
        ("vit_l14_336", "bilinear"),
        *(
            pytest.param(model, pooling, marks=pytest.mark.slow)
            for model, pooling in (("vit_b16", "max"), ("vit_l14_336", "average"), ("vit_l14_336", "nearest"))
        ),
    ],
)
def test_an_export_takes_any_size(model: str, pooling: str) -> None:
    """Also if CLIP's grid does not divide the grids of the side network and of the positions.

    tests/export runs "vit_l14_336" with "max".
    """
    graph = proposal_graph(settings(model, pooling=pooling))
    exported = graph.trace().module()
    for size in ((2, 96, 128), (1, 160, 64), (3, 96, 96), (1, 640, 480)):
        images, _ = inputs(*size, classes=2)
        with torch.no_grad():
            found, expected = exported(images), graph.module(images)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "size"), [(6, 3), (40, 32), (7, 7), (5, 7), (1, 3), (9, 1), (100, 63)])
def test_dynamic_pooling_is_adaptive_pooling(length: int, size: int) -> None:
    x = torch.randn(2, 3, length, length + 1)
    found = _adaptive_max(_adaptive_max(x, size, dim=2), size + 1, dim=3)
    assert torch.equal(found, F.adaptive_max_pool2d(x, (size, size + 1)))


def test_the_meta_device_and_the_counters(tmp_path: Path) -> None:
    model = settings("vit_b16")
    model.text_classifier.embedder.use_disk_cache(tmp_path)  # for the model that has values
    counts = []
    for each in (model, copy.deepcopy(model).to("meta")):
        images, text_embed = each.stack([torch.zeros(3, 90, 120)]), each.text_classifier.embed(["cat", "dog"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = each(images, text_embed)
        assert output.class_logits.shape == (1, 10, 3)
        assert output.mask_logits.shape == (1, 10, 6, 8)
        assert output.mask_logits.is_meta == (each is not model)
        counts.append(counter.get_total_flops())
    assert len(list(tmp_path.iterdir())) == 1
    assert counts[0] > 1e7 and counts[1] > 1e7
    analysis = FlopCountAnalysis(model, inputs(1, 96, 128, 2))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() > 1e7
