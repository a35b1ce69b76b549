"""Loading and prediction do not depend on the caller's settings of PyTorch, such as autocast or defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from san.clip.text_cache import TextCache
from san.hub import load_pretrained, save_pretrained
from san.inference.predictor import Predictor
from san.inference.segmentation import Segmentation
from san.model.build import build_san
from san.model.config import variant
from san.model.san import SANModel
from san.torch_defaults import torch_defaults

WORDS = "red star, blue ring, striped ground"


@contextmanager
def restored(change: Callable[[Any], object], value: Any, usual: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(usual)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return restored(torch.set_default_dtype, dtype, torch.float32)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: restored(torch.set_default_device, "meta", None),
    "device meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": lambda: restored(torch.use_deterministic_algorithms, True, False),
}
everywhere = pytest.mark.parametrize("state", STATES.values(), ids=STATES)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def drawn() -> SANModel:
    torch.manual_seed(0)
    return build_san(variant("tiny"))


def numbers(predictor: Predictor) -> list[Any]:
    """All that a prediction can be asked for, with the words embedded now."""
    predictor.model.text_classifier.embedder.forget()
    result: Segmentation = predictor.predict(picture(), WORDS)
    first = result.mask_proposals(1)[0]
    probability = np.asarray(first.probability)
    return [result.labels, result.best_scores, result.scores(), first.mask_probs(), first.attn_bias, probability]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(drawn(), tmp_path_factory.mktemp("saved") / "tiny", half=True)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(drawn(), short_side=96)


@pytest.fixture(scope="module")
def expected(predictor: Predictor) -> list[Any]:
    predictor.set_text_cache(None)
    return numbers(predictor)


@everywhere
def test_predictions_are_the_same(state: Any, predictor: Predictor, expected: list[Any]) -> None:
    with state():
        assert_same(numbers(predictor), expected)


@everywhere
@pytest.mark.parametrize("make", ["build_san", "load_pretrained"])
def test_models_are_the_same(state: Any, make: str, saved: Path) -> None:
    """Also weights of half precision; they can be trained."""
    expected = drawn() if make == "build_san" else load_pretrained(saved)
    with state():
        model = drawn() if make == "build_san" else load_pretrained(saved)
    own, usual = (
        dict(each.state_dict()) | dict(each.named_buffers()) | dict(each.named_parameters())
        for each in (model, expected)
    )
    assert own.keys() == usual.keys()
    for name, value in own.items():
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
        assert torch.equal(value, usual[name])
        assert value.requires_grad == usual[name].requires_grad
        assert not value.is_inference()


@everywhere
def test_the_text_cache_holds_the_same(state: Any, predictor: Predictor, tmp_path: Path) -> None:
    """One key and one content for every writer."""
    classifier = predictor.model.text_classifier
    entries = []
    for name, place in (("inside", state), ("outside", torch.no_grad)):
        classifier.embedder.forget()
        classifier.embedder.use_disk_cache(tmp_path / name)
        with place():
            classifier.embed(["cat", "dog"])
        (folder,) = (tmp_path / name).iterdir()
        entries.append((folder.name, TextCache(tmp_path / name, folder.name).load(["t:cat", "t:dog"])))
    classifier.embedder.use_disk_cache(None)
    assert entries[0][0] == entries[1][0]
    assert entries[0][1].keys() == {"t:cat", "t:dog"}
    assert all(torch.equal(value, entries[1][1][text]) for text, value in entries[0][1].items())


def test_products_of_lower_precision_have_their_own_embeddings(predictor: Predictor, tmp_path: Path) -> None:
    """In memory and on disk: embeddings of lower precision are not used by an exact program."""
    classifier = predictor.model.text_classifier
    classifier.embedder.forget()
    classifier.embedder.use_disk_cache(tmp_path)
    exact = classifier.embed(["cat"])
    with restored(torch.set_float32_matmul_precision, "medium", "highest"):
        assert classifier.embed(["cat"]) is not exact
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(classifier.embed(["cat"]), exact)
    classifier.embedder.use_disk_cache(None)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_made_in_inference_mode_predicts(expected: list[Any]) -> None:
    with torch.inference_mode():
        twin = SANModel(variant("tiny"), drawn().arch, drawn().text_classifier.embedder.tokenizer)
        twin.load_state_dict(drawn().state_dict())
    predictor = Predictor(twin, short_side=96)
    predictor.set_text_cache(None)
    assert_same(numbers(predictor), expected)


def test_training_keeps_the_callers_autocast() -> None:
    model = drawn()
    text_embed = model.text_classifier.embed(["cat", "dog"])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(model.stack([torch.zeros(3, 96, 96)]), text_embed)
    assert output.mask_logits.dtype == torch.bfloat16
    output.class_logits.sum().backward()


def test_defaults_are_of_this_call_alone() -> None:
    with default_dtype(torch.float64), torch.device("meta"):
        with torch_defaults():
            made = [torch.zeros(1), torch.tensor([0.5]), torch.full((1,), 0.5), torch.arange(0.0, 1.0), torch.eye(1)]
            assert {(each.dtype, each.device.type) for each in made} == {(torch.float32, "cpu")}
            assert [torch.tensor([1]).dtype, torch.arange(3).dtype, torch.full((1,), 1).dtype] == [torch.int64] * 3
            assert torch.zeros(1, dtype=torch.float16, device="meta").is_meta
            assert torch.get_default_dtype() == torch.float64  # other threads go on with it
        assert (torch.zeros(1).dtype, torch.zeros(1).is_meta) == (torch.float64, True)
