"""A predictor, its images and its results can be copied, pickled and sent to a process that was spawned."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from san.inference.predictor import EncodedImage, Predictor, Segmentation
from san.model.build import build_san
from san.model.config import variant

WORDS = "cat, dog, grass"
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
by_any_means = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def picture(shift: int = 0) -> np.ndarray:
    return np.roll(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8), shift)


def used(**options: Any) -> Predictor:
    """One that remembers an image and words."""
    torch.manual_seed(0)
    predictor = Predictor(build_san(variant("tiny")), short_side=96, **options)
    predictor.predict(picture(), WORDS)
    return predictor


def assert_same(found: Segmentation, expected: Segmentation, rounding: float = 0.0) -> None:
    assert np.array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores(), expected.scores(), rtol=rounding, atol=0)
    assert np.array_equal(found.image, expected.image)


@by_any_means
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_copies_give_the_same(copied: Callable[[Any], Any], dtype: str) -> None:
    predictor = used(dtype=dtype)
    expected, encoded = predictor.predict(picture(7), WORDS), predictor.encode(picture(7))
    twin = copied(predictor)
    assert_same(twin.segment(WORDS), expected)  # of the remembered image
    assert_same(twin.predict(picture(7), WORDS), expected)
    assert_same(twin.segment(WORDS, encoded=copied(encoded)), expected)
    assert_same(copied(expected), expected)
    assert copied(expected).mask_proposals(1)[0].mask().shape == (50, 70)


def test_a_copy_forgets_the_embeddings_of_other_weights() -> None:
    predictor = used()
    twin = copy.deepcopy(predictor)
    with torch.no_grad():
        twin.model.text_classifier.text_projection.neg_()
    expected = predictor.segment(WORDS).evidence.class_logits
    assert not torch.equal(twin.segment(WORDS).evidence.class_logits, expected)
    assert torch.equal(predictor.segment(WORDS).evidence.class_logits, expected)


def test_an_image_of_replaced_weights_is_refused() -> None:
    predictor = used()
    predictor.model.load_state_dict(predictor.model.state_dict())
    with pytest.raises(ValueError, match="encoded by another model"):
        predictor.segment(WORDS)


@by_any_means
def test_a_copy_compiles_for_itself(copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or functools.partial(function))
    predictor = used(compiled=True)
    twin = copied(predictor)
    assert_same(twin.predict(picture(), WORDS), predictor.predict(picture(), WORDS))
    assert [function.__self__ for function in compiled] == [predictor.model.image_side, twin.model.image_side]


def answer(predictor: Predictor, encoded: EncodedImage, answers: Any, received: Any) -> None:
    answers.put([predictor.segment(WORDS, encoded=encoded), predictor.predict(picture(7), WORDS)])
    received.wait()  # PyTorch hands tensors over while their sender lives


def test_a_spawned_process_gives_the_same() -> None:
    predictor = used()
    context = multiprocessing.get_context("spawn")
    answers, received = context.Queue(), context.Event()
    process = context.Process(target=answer, args=(predictor, predictor.encode(picture(7)), answers, received))
    process.start()
    try:
        for found in answers.get(timeout=600):
            # earlier tests may have left this process another number of threads
            assert_same(found, predictor.predict(picture(7), WORDS), rounding=1e-5)
    finally:
        received.set()
        process.join(timeout=60)
        process.kill()
