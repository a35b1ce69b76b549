"""Averages over scales, mirror images and models: by hand on fixed outputs, and within memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from san import postprocess
from san.hub import SHAPES_CHECKPOINT
from san.inference.ensemble import Ensemble, read_ensemble
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.postprocess import Geometry, View, labels_and_scores, mean_labels, mean_scores, semantic_scores
from san.shapes.render import render
from san.shapes.world import scene_at
from tests.test_postprocess import Largest

FIRST = Geometry((96, 128), (75, 101), (45, 60))
SECOND = Geometry((128, 160), (100, 135), (45, 60))
WORDS = "red star, blue ring, striped ground, plain ground"


def drawn(seed: int, geometry: Geometry, *, num_queries: int = 7, num_classes: int = 5, **options: Any) -> View:
    generator = torch.Generator().manual_seed(seed)
    masks = 4 * torch.randn(num_queries, 6 + seed, 8, generator=generator)
    return View(masks, 3 * torch.randn(num_queries, num_classes + 1, generator=generator), geometry, **options)


def alone(view: View) -> Tensor:
    scores = semantic_scores(view.mask_logits, view.class_logits, view.geometry)
    return scores.flip(2) if view.mirrored else scores


@pytest.mark.parametrize("num_classes", [5, 60])  # 60: tiles leave classes out
@pytest.mark.parametrize("block_side", [8192, 50])
def test_the_mean_of_views_is_that_of_their_scores(
    monkeypatch: pytest.MonkeyPatch, num_classes: int, block_side: int
) -> None:
    """Two scales, one of them mirrored, with weights, in blocks of any width."""
    monkeypatch.setattr(postprocess, "_BLOCK_SIDE", block_side)
    first = drawn(0, FIRST, num_classes=num_classes, weight=3.0)
    second = drawn(1, SECOND, num_queries=4, num_classes=num_classes, mirrored=True)
    expected = (3 * alone(first) + alone(second)) / 4
    torch.testing.assert_close(mean_scores([first, second]), expected)
    labels, best = mean_labels([first, second])
    torch.testing.assert_close(best, expected.amax(0))
    assert torch.equal(labels, expected.argmax(0))
    assert not torch.equal(labels, alone(first).argmax(0))


def test_no_object_is_averaged_too() -> None:
    """A pixel gets no class if the mean of "no object" exceeds that of every class."""
    views = [drawn(0, FIRST), drawn(1, SECOND, mirrored=True)]
    moved = [replace(view, class_logits=view.class_logits.roll(1, dims=1)) for view in views]  # it is class 0 there
    background, best = mean_scores(moved)[0], mean_scores(views).amax(0)
    labels, _ = mean_labels(views, none_of_these=True, threshold=0.2)
    assert torch.equal(labels == -1, (background > best) | (best < 0.2))
    assert 0 < (labels == -1).float().mean() < 1


def test_a_weight_of_zero_leaves_a_view_out() -> None:
    first, second = drawn(0, FIRST, weight=1.0), drawn(1, SECOND, weight=0.0)
    torch.testing.assert_close(mean_scores([first, second]), alone(first))


def test_one_view_is_what_it_was_before_there_were_several() -> None:
    """Bit for bit, for any weight."""
    view = drawn(0, FIRST, weight=0.7)
    for found, expected in zip(
        mean_labels([view]), labels_and_scores(view.mask_logits, view.class_logits, FIRST), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, r"weights are \[1.0, -1.0\]; give numbers of 0 or more"),
        ({"weight": float("nan")}, "weights are"),
        ({"weight": float("inf")}, "weights are"),
        ({"class_logits": torch.zeros(7, 4)}, r"views have \[3, 5\] classes; give all of them one vocabulary"),
        ({"geometry": replace(SECOND, output_size=(4, 4))}, r"output sizes \[\(45, 60\), \(4, 4\)\]"),
    ],
)
def test_views_that_cannot_be_averaged(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_scores([drawn(0, FIRST), replace(drawn(1, SECOND), **changes)])
    with pytest.raises(ValueError, match="there is no view"):
        mean_labels([])


@pytest.mark.parametrize("num_queries", [2, 30])
def test_the_label_map_of_many_views_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch, num_queries: int) -> None:
    """With 12 views and 847 classes: all scores would be 400 million values, those of one view 34 million."""
    monkeypatch.setattr(postprocess, "_BLOCK_SIDE", 1024)
    geometry = replace(FIRST, output_size=(200, 200))
    views = [
        drawn(seed, geometry, num_queries=num_queries, num_classes=847, mirrored=seed % 2 == 1) for seed in range(12)
    ]
    with Largest() as largest:
        labels, _ = mean_labels(views)
    assert labels.shape == (200, 200)
    assert largest.numel <= postprocess._CACHED_VALUES + 2 * 32 * 1024 * num_queries


@pytest.fixture(scope="module")
def shapes() -> Predictor:
    return Predictor.from_pretrained("shapes")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render([scene_at(5, 0)])[0][0][:100]


def test_scales_and_mirror_images_are_averaged(shapes: Predictor, scene: np.ndarray) -> None:
    together = Predictor(shapes.model, short_sides=(96, 128), flip=True)
    parts = []
    for side in (96, 128):
        single = Predictor(shapes.model, short_side=side)
        parts.append(single.predict(scene, WORDS).scores())
        turned = np.ascontiguousarray(scene[:, ::-1])
        parts.append(single.predict(turned, WORDS).scores()[:, :, ::-1])
    expected = np.mean(parts, axis=0)
    result = together.predict(scene, WORDS)
    np.testing.assert_allclose(result.scores(), expected, atol=2e-3)  # the mirrored resize rounds to 8 bits elsewhere
    assert (result.labels == expected.argmax(0)).mean() > 0.999
    np.testing.assert_allclose(result.best_scores, result.scores().max(0), rtol=1e-5)
    assert "short sides 96 128 and mirrored" in repr(together)
    batch = together.predict_batch([scene, scene[:64]], WORDS)
    np.testing.assert_allclose(batch[0].scores(), result.scores(), atol=1e-5)


def test_further_views_keep_no_attention_biases(shapes: Predictor, scene: np.ndarray) -> None:
    """Which are most of an encoded image; the first one's serve the pictures of attention."""
    encoded = Predictor(shapes.model, short_sides=(96, 128, 160), flip=True).encode(scene)
    assert [each.mirrored for each in encoded.others] == [True, False, True, False, True]
    assert encoded.proposals.attn_bias.numel() > 0
    for each in encoded.others:
        assert each.proposals.attn_bias.untyped_storage().nbytes() == 0
    assert Predictor(shapes.model).encode(scene).others == ()


@pytest.mark.parametrize("sides", [(0,), (128.0,), (128, 128), "128"])
def test_short_sides_that_are_none(shapes: Predictor, sides: Any) -> None:
    with pytest.raises(ValueError, match="short sides are"):
        Predictor(shapes.model, short_sides=sides)


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    """Another CLIP and another size."""
    torch.manual_seed(0)
    return Predictor(build_san(variant("tiny")), short_side=64)


def test_two_models_are_averaged_by_hand(shapes: Predictor, tiny: Predictor, scene: np.ndarray) -> None:
    one, two = (each.predict(scene, WORDS).scores() for each in (shapes, tiny))
    result = Predictor.ensemble([shapes, tiny], weights=[3, 1]).predict(scene, WORDS)
    np.testing.assert_allclose(result.scores(), (3 * one + two) / 4, atol=1e-5)
    assert np.array_equal(result.labels, ((3 * one + two) / 4).argmax(0))
    assert len(result.mask_proposals()) == shapes.model.config.side_adapter.num_queries


def test_weights_of_models_do_not_depend_on_their_scales(shapes: Predictor, tiny: Predictor, scene: np.ndarray) -> None:
    """Four views of one model weigh as much as the single one of the other."""
    many = Predictor(shapes.model, short_sides=(96, 128), flip=True)
    result = Ensemble([many, tiny]).predict(scene, WORDS)
    expected = (many.predict(scene, WORDS).scores() + tiny.predict(scene, WORDS).scores()) / 2
    np.testing.assert_allclose(result.scores(), expected, atol=1e-5)


def test_a_model_with_itself_is_the_model(shapes: Predictor, scene: np.ndarray, tmp_path: Path) -> None:
    """Also from a file, and through the methods of a predictor."""
    (tmp_path / "twice.yaml").write_text(
        f"models:\n- {{model: shapes, weight: 0.5}}\n- {{model: {SHAPES_CHECKPOINT}, config: shapes}}\n"
    )
    ensemble, expected = Predictor.ensemble(tmp_path / "twice.yaml"), shapes.predict(scene, WORDS)
    assert ensemble.weights == (0.5, 1.0)
    ensemble.set_text_cache(None)
    ensemble.set_image(scene)
    for found in (ensemble.segment(WORDS), *ensemble.predict_batch([scene], WORDS)):
        assert np.array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.best_scores, expected.best_scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "1 weights for 2 models"),
        ([1, 0], r"weights are \[1.0, 0.0\]; give numbers above 0, or leave the model out"),
        ([1, -2], "weights are"),
        ([1, float("nan")], "weights are"),
    ],
)
def test_weights_that_make_no_sense(shapes: Predictor, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor.ensemble([shapes, shapes], weights)


def test_misuse_of_an_ensemble(shapes: Predictor, scene: np.ndarray) -> None:
    ensemble = Predictor.ensemble([shapes, shapes])
    with pytest.raises(ValueError, match="encoded by another model"):
        ensemble.segment(WORDS, encoded=shapes.encode(scene))
    encoded, classifier = ensemble.encode(scene), shapes.model.text_classifier
    text = classifier.embedder.embed(classifier, ["red star"])
    with pytest.raises(ValueError, match="leave text out"):
        ensemble.segment("red star", encoded=encoded, text=text)
    with pytest.raises(ValueError, match="no models"):
        Predictor.ensemble([])
    with pytest.raises(ValueError, match="use Predictor.ensemble"):
        Predictor.from_pretrained("ensemble.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: []", "give a list such as"),
        ("model: a.pth", "unknown key 'model' in ensemble .*; did you mean 'models'"),
        ("models: [{weight: 1.0}]", r"missing fields models\[0\].model"),
        ("models: [{model: shapes}, {model: shapes, weight: 0}]", r"models\[1\].weight is 0; set it above 0"),
        ("models: [{model: shapes, weight: -1.5}]", r"models\[0\].weight is -1.5"),
        ("models: [{model: shapes, weight: much}]", r"models\[0\].weight is 'much'; give float"),
        ("models: [{model: shapes, vocab: cat}]", "unknown field .*all models get the words of the command"),
        ("models: [{model: shapes, short_sides: [0]}]", r"models\[0\].short_sides"),
    ],
)
def test_files_that_list_no_ensemble(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ensemble(tmp_path / "e.yaml")


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("models: [{model: shapes}, {model: gone.pth, config: tiny}]")
    with pytest.raises(FileNotFoundError, match=r"e.yaml, models\[1\] \('gone.pth'\): unknown model 'gone.pth'"):
        Predictor.ensemble(tmp_path / "e.yaml")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Predictor.ensemble(tmp_path / "none.yaml")
