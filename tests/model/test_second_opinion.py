"""The scorer second_opinion: what it computes, that training and other scorers do not see it, and where it runs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from san.benchmark.reference import PlainSAN
from san.clip.visual import pooled_tokens
from san.d2.config.keys import load_config, san_config
from san.export.folder import export_model
from san.hub import SHAPES_CHECKPOINT
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.model.layers import mask_shares
from san.model.recognition import SecondOpinionOptions, SecondOpinionScorer
from san.model.san import SANModel
from san.registry import PartConfig
from san.shapes.render import render
from san.shapes.world import NAMES, THINGS, SceneStyle, scene_at
from san.video.predictor import VideoOptions, VideoPredictor

NAMES_SEEN = "cat, dog"


def config(base: SANConfig, **options: Any) -> SANConfig:
    return replace(base, scorer=PartConfig("second_opinion", options))


def tiny(**options: Any) -> SANModel:
    torch.manual_seed(0)
    return build_san(config(variant("tiny"), **options)).eval()


def predictor(**options: Any) -> Predictor:
    return Predictor.from_pretrained(SHAPES_CHECKPOINT, config(variant("shapes"), **options))


@pytest.fixture(scope="module")
def opinionated() -> Predictor:
    return predictor()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray[Any, Any]:
    images, _ = render([scene_at(5, index, THINGS, SceneStyle()) for index in range(2)], 128)
    return images


def embeds(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(1, 4, count, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def model() -> SANModel:
    return tiny()


def score(model: SANModel, weights: dict[str, Any], text: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Probabilities (1, 4, C + 1) of [SLS] tokens alone, of pooled patches alone, and of both."""
    scorer = SecondOpinionScorer(SecondOpinionOptions(**weights), model.config).eval()
    sls, pooled, classifier = embeds(64, 1), embeds(64, 2), model.text_classifier
    first, second = classifier.logits(sls, text), classifier.logits(pooled, text)
    return tuple(each.softmax(dim=-1) for each in (first, second, scorer(sls, text, classifier, pooled)))


@torch.no_grad()
def test_classes_get_the_weighted_geometric_mean_and_no_object_keeps_its_probability(model: SANModel) -> None:
    text = model.text_classifier.embed(["cat", "dog", "grass"])
    first, second, both = score(model, {"seen": NAMES_SEEN, "seen_weight": 0.25, "novel_weight": 0.75}, text)
    torch.testing.assert_close(both[..., -1], first[..., -1])
    first, second = (each[..., :-1] / each[..., :-1].sum(dim=-1, keepdim=True) for each in (first, second))
    weight = torch.tensor([0.25, 0.25, 0.75])
    mean = first ** (1 - weight) * second**weight
    mean *= (1 - both[..., -1:]) / mean.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(both[..., :-1], mean)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_at_the_ends_one_of_the_two_decides(model: SANModel, weight: float) -> None:
    text = model.text_classifier.embed(["cat", "dog", "grass"])
    *alone, both = score(model, {"seen_weight": weight, "novel_weight": weight}, text)
    chosen, both = (each[..., :-1] / each[..., :-1].sum(dim=-1, keepdim=True) for each in (alone[int(weight)], both))
    torch.testing.assert_close(both, chosen)


def test_shares_of_a_mask_sum_to_one_also_of_an_empty_mask() -> None:
    logits = torch.full((1, 2, 4, 4), -30.0)
    logits[0, 0, :2, :2] = 30
    shares = mask_shares(logits, (2, 2))
    torch.testing.assert_close(shares[0], torch.tensor([[1.0, 0, 0, 0], [0.25] * 4]), atol=1e-6, rtol=0)
    assert mask_shares(logits - 1000, (2, 2)).isfinite().all()


@torch.no_grad()
def test_pooling_before_the_projection_equals_pooling_after_it(model: SANModel) -> None:
    block = model.deep_clip.resblocks[-1]
    tokens, shares = torch.randn(2, 6, model.arch.vision.width), torch.rand(2, 3, 6).softmax(dim=-1)
    _, _, values = block.attn.project(block.ln_1(tokens))
    found = pooled_tokens(block, tokens, values, shares)
    torch.testing.assert_close(found, shares @ (tokens + block.attn.merge(values)))


@torch.no_grad()
def test_the_plain_model_computes_the_same(model: SANModel) -> None:
    plain = PlainSAN(model.config, model.arch, model.text_classifier.embedder.tokenizer).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 96, generator=torch.manual_seed(3))
    for fast, slow in zip(*(each.propose(images)[-1] for each in (model, plain)), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4 * max(1.0, float(slow.abs().max())))


def test_training_is_that_of_sls() -> None:
    """The pooled embeddings are not computed, and class logits are the same bit for bit."""
    outputs = []
    for each in (variant("tiny"), config(variant("tiny"))):
        torch.manual_seed(0)
        model = build_san(each).train()
        images = torch.randn(1, 3, 64, 64, generator=torch.manual_seed(1))
        assert all(proposals.pooled_embed.shape == (0,) for proposals in model.propose(images))
        outputs.append(model(images, torch.eye(3, 64)).class_logits)
    assert torch.equal(*outputs)


@torch.no_grad()
def test_evaluation_adds_embeddings_and_changes_no_other_number(model: SANModel) -> None:
    other = build_san(variant("tiny")).eval()
    other.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    (ours,), (sls,) = model.propose(images), other.propose(images)
    assert sls.pooled_embed.shape == (0,)
    assert ours.pooled_embed.shape == ours.sls_embed.shape
    torch.testing.assert_close(ours.pooled_embed.norm(dim=-1), torch.ones(2, 10))
    for name in ("mask_logits", "attn_bias", "sls_embed"):
        torch.testing.assert_close(getattr(ours, name), getattr(sls, name))
    with pytest.raises(ValueError, match="'second_opinion' needs pooled_embed, which the proposals lack; encode"):
        model.classify(sls, torch.eye(2, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seen_weight": 0.1}, "scorer.options.seen is empty, but seen_weight 0.1 and novel_weight 0.2 differ"),
        ({"seen_weight": 1.5}, "scorer.options.seen_weight is 1.5; set it within 0..1"),
        ({"seen": "coco_stuff_17"}, "scorer.options.seen does not list names: .*did you mean 'coco_stuff_171'"),
        ({"seen": ", ,"}, "scorer.options.seen does not list names"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_configuration_keys() -> None:
    name = ["MODEL.DEVICE", "cpu", "MODEL.SCORER.NAME", "second_opinion"]
    weights = ["MODEL.SCORER.OPTIONS.SEEN_WEIGHT", "0", "MODEL.SCORER.OPTIONS.SEEN", "coco_stuff_171"]
    found = san_config(load_config("", [*name, *weights])).scorer
    assert found == PartConfig("second_opinion", {"seen_weight": 0, "seen": "coco_stuff_171"})
    with pytest.raises(ValueError, match="MODEL.SCORER.OPTIONS.SEEN is empty"):
        load_config("", [*name, *weights[:2]])


def test_one_encoding_serves_vocabularies_batches_copies_and_mirror_images(
    opinionated: Predictor, pictures: np.ndarray[Any, Any]
) -> None:
    one = opinionated.predict(pictures[0], list(NAMES))
    both = opinionated.predict_batch(list(pictures), list(NAMES))
    assert (both[0].labels == one.labels).mean() > 0.999
    words = ["red star", "plain ground"]
    encoded = opinionated.encode(pictures[0])
    assert (opinionated.segment(words, encoded=encoded).labels == opinionated.predict(pictures[0], words).labels).all()
    copy = pickle.loads(pickle.dumps(encoded))
    assert (opinionated.segment(words, encoded=copy).labels == opinionated.segment(words, encoded=encoded).labels).all()
    several = Predictor(opinionated.model, short_sides=(128, 160), flip=True).predict(pictures[0], list(NAMES))
    assert (several.labels == one.labels).mean() > 0.7
    plain = Predictor.from_pretrained("shapes")
    ensemble = Predictor.ensemble([opinionated, plain]).predict(pictures[0], list(NAMES))
    assert ensemble.labels.shape == one.labels.shape
    logits = [each.segment(list(NAMES), encoded=each.encode(pictures[0])).evidence for each in (opinionated, plain)]
    assert not torch.allclose(logits[0].class_logits, logits[1].class_logits, atol=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_half_precision_agrees(dtype: str, opinionated: Predictor, pictures: np.ndarray[Any, Any]) -> None:
    found = Predictor.from_pretrained(SHAPES_CHECKPOINT, opinionated.model.config, dtype=dtype)
    proposals = [each.encode(pictures[0]).proposals for each in (found, opinionated)]
    assert F.cosine_similarity(*(each.pooled_embed for each in proposals), dim=-1).min() > 0.98
    labels = [each.predict(pictures[0], list(NAMES)).labels for each in (found, opinionated)]
    assert (labels[0] == labels[1]).mean() > 0.9


def test_videos(opinionated: Predictor, pictures: np.ndarray[Any, Any]) -> None:
    for shared in (True, False):
        video = VideoPredictor(opinionated, VideoOptions(shared=shared, chunk=2, overlap=0))
        assert len([*video.segment(pictures, list(NAMES))]) == 2


def test_an_export_is_refused(opinionated: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the scorer 'second_opinion' also needs pooled_embed; load the model with"):
        export_model(opinionated, tmp_path / "out", formats=["pt2"])
    assert not (tmp_path / "out").exists()
