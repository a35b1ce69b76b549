"""The mask heads: fine masks have the logits of their patch, in the place of each cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.model.heads import FineMaskHead, MLPMaskHead
from san.model.parts import MASK_HEADS, SideFeatures
from san.registry import PartConfig
from tests.model.test_options import tiny


def fine_config(factor: int) -> SANConfig:
    return replace(variant("tiny"), mask_head=PartConfig("fine", {"factor": factor}))


def fine_head(factor: int) -> FineMaskHead:
    torch.manual_seed(1)
    config = fine_config(factor)
    head = MASK_HEADS.build(config.mask_head, config)
    assert isinstance(head, FineMaskHead)
    return head


def features() -> SideFeatures:
    generator = torch.Generator().manual_seed(0)
    width = variant("tiny").side_adapter.embed_dim
    queries, patches = (torch.randn(2, count, width, generator=generator) for count in (5, 12))
    return SideFeatures(queries, patches, (3, 4))


def test_one_cell_per_patch_is_the_plain_head() -> None:
    fine = fine_head(1)
    plain = MLPMaskHead(None, fine_config(1))
    plain.load_state_dict(fine.state_dict())
    given, expected = fine(features()), plain(features())
    torch.testing.assert_close(given.logits, expected.logits)
    assert torch.equal(given.queries, expected.queries)


def test_each_cell_has_the_product_of_its_own_embedding() -> None:
    head, side = fine_head(2), features()
    found = head(side).logits
    assert found.shape == (2, 5, 6, 8)
    queries, pixels = head.query_mlp(side.queries), head.pixel_mlp(side.patch_tokens)
    channels = queries.shape[2]
    for row, column in ((0, 0), (3, 2), (5, 7)):
        cell = 2 * (row % 2) + column % 2
        embed = pixels[:, (row // 2) * 4 + column // 2, cell * channels : (cell + 1) * channels]
        expected = (queries * embed[:, None]).sum(dim=2)
        torch.testing.assert_close(found[:, :, row, column], expected)


def test_a_model_with_fine_masks_predicts_with_a_second_opinion_and_several_scales() -> None:
    torch.manual_seed(0)
    config = replace(fine_config(2), scorer=PartConfig("second_opinion", {}))
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    predictor = Predictor(build_san(config), short_sides=(96, 64), text_cache=None)
    result = predictor.predict(picture, ["cat", "dog"])
    assert result.evidence is not None
    side = result.evidence.attn_bias.shape[-2:]
    assert result.evidence.mask_logits.shape[-2:] == (2 * side[0], 2 * side[1])
    assert len(result.evidence.views) == 2 and result.labels.shape == (70, 90)


def test_the_coupled_head_takes_fine_masks() -> None:
    config = replace(tiny(), mask_head=PartConfig("fine", {"factor": 2}), bias_head=PartConfig("coupled"))
    model = build_san(config).eval()
    output = model(torch.zeros(1, 3, 64, 64), model.text_classifier.embed(["cat"]))
    assert output.attn_bias.shape[-2:] == output.mask_logits.shape[-2:] == (8, 8)
