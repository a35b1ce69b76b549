"""Segmenting videos: one frame is an image, shared queries are shared, chunks are joined, memory is bounded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from san.inference.examples import BankOptions, ClassExample, learn_classes
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.model.san import MaskProposals, SANModel
from san.postprocess import labels_and_scores
from san.record import FieldError
from san.shapes.clips import MotionStyle, clip_at, render_clip
from san.video.predictor import FrameFeatures, VideoOptions, VideoPredictor
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary

WORDS = "shapes_36"


@pytest.fixture(scope="module")
def shapes() -> Predictor:
    return Predictor.from_pretrained("shapes")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Seven frames of a shapes video."""
    return render_clip(clip_at(3, 0, motion=MotionStyle(num_frames=7)))[0]


def tiny(**options: Any) -> Predictor:
    torch.manual_seed(0)
    return Predictor(build_san(variant("tiny"), **options), short_side=32)


def test_one_frame_with_a_centre_per_query_is_the_image(shapes: Predictor, clip: np.ndarray) -> None:
    """The queries are the same but for their order: so are masks, classes and labels."""
    video = VideoPredictor(shapes)
    (feature,) = video._features_of([clip[0]])
    queries, share = video._shared_queries([feature])
    order = share.argmax(dim=1)
    assert sorted(order.tolist()) == list(range(shapes.model.config.side_adapter.num_queries))
    assert torch.equal(queries[0], feature.side.queries[0, order])
    text = shapes.model.text_classifier.embed_with_bank(["red star", "plain ground"])
    (masks,), logits = video._outputs([feature], text, slice(0, 1), first=0)
    plain = shapes.segment(["red star", "plain ground"], encoded=shapes.encode(clip[0])).evidence
    assert plain is not None
    torch.testing.assert_close(masks, plain.mask_logits[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, plain.class_logits[order], rtol=1e-4, atol=1e-4)
    (result,) = video.segment([clip[0]], WORDS)
    expected = shapes.predict(clip[0], WORDS)
    assert (result.labels == expected.labels).mean() > 0.999
    assert result.best_scores is not None
    np.testing.assert_allclose(result.best_scores, expected.best_scores, atol=1e-4)
    assert np.array_equal(result.image, clip[0])


def test_a_bank_of_examples_works_in_a_video(shapes: Predictor, clip: np.ndarray) -> None:
    classes = [ClassText(each) for each in ("red star", "plain ground", "striped ground")]
    examples = [ClassExample("red star", clip[0]), ClassExample("striped ground", clip[3])]
    learnt = learn_classes(shapes, classes, examples, word_share=1, bank=BankOptions(weight=0.9))
    words = Vocabulary(learnt.classes)
    (found,) = VideoPredictor(shapes).segment(clip[:1], words)
    expected, plain = shapes.predict(clip[0], words), shapes.predict(clip[0], Vocabulary(tuple(classes)))
    assert found.best_scores is not None and plain.best_scores is not None
    np.testing.assert_allclose(found.best_scores, expected.best_scores, atol=1e-4)
    assert not np.allclose(found.best_scores, plain.best_scores, atol=0.01)


@pytest.mark.parametrize("sls_init", ["learnt", "learnt_plus_class_token"])
def test_sls_tokens_of_an_index_go_with_their_queries(sls_init: str) -> None:
    from dataclasses import replace

    config = variant("tiny")
    torch.manual_seed(0)
    model = build_san(replace(config, clip=replace(config.clip, sls_init=replace(config.clip.sls_init, name=sls_init))))
    predictor = Predictor(model, short_side=96)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    video = VideoPredictor(predictor)
    (feature,) = video._features_of([image])
    order = video._shared_queries([feature])[1].argmax(dim=1)
    text = model.text_classifier.embed_with_bank(["cat", "dog"])
    _, logits = video._outputs([feature], text, slice(0, 1), first=0)
    plain = predictor.predict(image, "cat, dog").evidence
    assert plain is not None
    torch.testing.assert_close(logits, plain.class_logits[order], rtol=1e-4, atol=1e-4)


def test_shared_queries_are_centres_and_classes_are_means_over_frames(shapes: Predictor, clip: np.ndarray) -> None:
    """The definition of docs/video.md, step by step with the model's own parts."""
    model, frames = shapes.model, list(clip[:3])
    with torch.inference_mode():
        batch = model.stack([torch.from_numpy(each).permute(2, 0, 1) for each in frames])
        features, (side,) = model.features(batch)
    video = VideoPredictor(shapes, VideoOptions(clusters=20))
    chunk = video._features_of(frames)
    queries, share = video._shared_queries(chunk)
    assert queries.shape == (1, 20, side.queries.shape[-1])
    assert torch.allclose(share.sum(dim=1), torch.ones(20))
    with torch.inference_mode():
        shared = type(side)(queries.expand(3, -1, -1), side.patch_tokens, side.grid)
        masks = model.mask_head(shared)
        bias = model.bias_head(shared, masks)
        token = features.class_tokens[-1].expand(-1, 20, -1)  # the model starts [SLS] tokens as class tokens
        grid = model.bias_head.to_grid(bias, features.grid)
        embed = model.deep_clip(features.class_tokens[-1], features.patch_tokens[-1], token, grid)
        names = shapes_names()
        logits = model.text_classifier.logits(embed, model.text_classifier.embed(names)).mean(dim=0)
        for index, result in enumerate(video.segment(frames, WORDS)):
            labels, _ = labels_and_scores(masks.logits[index], logits, video._geometry(frames[index]))
            assert (labels.numpy() == result.labels).mean() > 0.999


def shapes_names() -> list[str]:
    from san.shapes.world import NAMES

    return list(NAMES)


def test_frame_by_frame_is_the_image_prediction(shapes: Predictor, clip: np.ndarray) -> None:
    results = list(VideoPredictor(shapes, VideoOptions(shared=False, batch_size=3)).segment(list(clip), WORDS))
    expected = shapes.predict_batch(list(clip), WORDS, batch_size=3)
    assert len(results) == len(clip)
    for result, plain in zip(results, expected, strict=True):
        assert np.array_equal(result.labels, plain.labels)
        assert np.array_equal(result.best_scores, plain.best_scores)


def test_a_chunk_is_what_its_frames_alone_give(shapes: Predictor, clip: np.ndarray) -> None:
    """Frames 0 to 2 belong to the first chunk, 0 to 3; 3 and 4 to the second, 2 to 5; the others to the third."""
    options = VideoOptions(chunk=4, overlap=2, batch_size=1)
    results = list(VideoPredictor(shapes, options).segment(list(clip), WORDS))
    whole = VideoOptions(chunk=4, overlap=0, batch_size=1)
    parts = [list(VideoPredictor(shapes, whole).segment(list(clip[a : a + 4]), WORDS)) for a in (0, 2, 4)]
    expected = [*parts[0][:3], *parts[1][1:3], *parts[2][1:]]
    assert len(results) == len(expected) == 7
    for number, (result, part) in enumerate(zip(results, expected, strict=True)):
        assert np.array_equal(result.labels, part.labels), number


def test_frames_are_taken_as_they_are_needed_and_let_go() -> None:
    """For an endless stream, only a chunk and a batch are in memory."""
    taken = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((32, 32, 3), taken % 256, np.uint8)

    results = VideoPredictor(tiny(), VideoOptions(chunk=4, overlap=1, batch_size=2, clusters=5)).segment(
        frames(), "cat"
    )
    held = []
    gc.freeze()  # else all that earlier tests have imported is looked through each time
    try:
        for _ in range(30):
            next(results)
            held.append(sum(type(each) is FrameFeatures for each in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert taken <= 30 + 8
    assert max(held) <= 8


def test_the_same_seed_is_the_same_video(shapes: Predictor, clip: np.ndarray) -> None:
    def labels(seed: int) -> np.ndarray:
        video = VideoPredictor(shapes, VideoOptions(clusters=8, seed=seed))
        return np.stack([each.labels for each in video.segment(list(clip[:3]), WORDS)])

    assert np.array_equal(labels(0), labels(0))
    assert any(not np.array_equal(labels(0), labels(seed)) for seed in (1, 2, 3))


def test_frames_of_other_sizes_are_refused(shapes: Predictor, clip: np.ndarray) -> None:
    for shared in (True, False):
        video = VideoPredictor(shapes, VideoOptions(shared=shared, batch_size=1))
        with pytest.raises(ValueError, match="frame 2 has 64 x 128 pixels, those before it 128 x 128"):
            list(video.segment([clip[0], clip[1], clip[2][:64]], WORDS))


def test_a_broken_network_names_the_frame(clip: np.ndarray) -> None:
    predictor = tiny()
    calls = 0
    head = predictor.model.mask_head.forward

    def broken(features: Any) -> Any:
        nonlocal calls
        calls += 1
        found = head(features)
        return type(found)(found.logits * torch.nan, found.queries) if calls == 4 else found

    predictor.model.mask_head.forward = broken  # type: ignore[method-assign]
    for shared in (True, False):
        calls = 0
        video = VideoPredictor(predictor, VideoOptions(shared=shared, batch_size=1))
        with pytest.raises(ValueError, match="outputs for frame 3 are NaN"):
            list(video.segment(list(clip[:5]), "cat"))


def test_options_and_words_that_make_no_sense_are_refused_at_once(shapes: Predictor) -> None:
    with pytest.raises(FieldError, match="overlap is 8 of a chunk of 8"):
        VideoOptions(chunk=8)
    with pytest.raises(FieldError, match="clusters is 0"):
        VideoOptions(clusters=0)
    video = VideoPredictor(shapes)
    with pytest.raises(ValueError, match="vocabulary is empty"):
        video.segment([], "")
    with pytest.raises(ValueError, match="threshold is -1"):
        video.segment([], "cat", threshold=-1)
    assert list(video.segment([], "cat")) == []


class OtherProposals(SANModel):
    """A user's model that proposes in its own way."""

    def propose(self, images: torch.Tensor) -> list[MaskProposals]:
        return super().propose(images)


def test_models_that_cannot_share_queries_are_refused(shapes: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny(model_class=OtherProposals)
    with pytest.raises(ValueError, match="OtherProposals overrides `propose`"):
        VideoPredictor(other)
    VideoPredictor(other, VideoOptions(shared=False))
    monkeypatch.setattr(shapes, "compiled", True)
    with pytest.raises(ValueError, match="--frame-by-frame"):
        VideoPredictor(shapes)


def test_half_precision_sees_much_the_same(shapes: Predictor, clip: np.ndarray) -> None:
    half = Predictor.from_pretrained("shapes", dtype="bfloat16")
    full = [each.labels for each in VideoPredictor(shapes).segment(list(clip[:2]), WORDS)]
    rounded = [each.labels for each in VideoPredictor(half).segment(list(clip[:2]), WORDS)]
    assert np.mean(np.stack(full) == np.stack(rounded)) > 0.9
