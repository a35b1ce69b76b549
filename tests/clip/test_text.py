"""The text classifier: caching, templates, bad vocabularies."""

from __future__ import annotations

import pytest
import torch

from san.clip.templates import load_templates
from san.clip.text import TextClassifier
from san.model.build import build_san
from san.model.config import variant


@pytest.fixture
def classifier() -> TextClassifier:
    torch.manual_seed(0)
    return build_san(variant("tiny")).text_classifier


@pytest.fixture
def passes(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of prompts in every pass of the text tower."""
    counted: list[int] = []
    original = classifier.encode_text

    def count(tokens: torch.Tensor) -> torch.Tensor:
        counted.append(len(tokens))
        return original(tokens)

    monkeypatch.setattr(classifier, "encode_text", count)
    return counted


def test_unit_length_and_averaged_over_templates(classifier: TextClassifier) -> None:
    prompts = [template.format("cat") for template in load_templates("vild")]
    with torch.no_grad():
        each = torch.nn.functional.normalize(classifier.encode_text(classifier._tokenizer(prompts)), dim=-1)
    expected = torch.nn.functional.normalize(each.mean(dim=0), dim=-1)
    torch.testing.assert_close(classifier.embed(["cat"])[0], expected)


def test_a_name_is_embedded_once(classifier: TextClassifier, passes: list[int]) -> None:
    first = classifier.embed(["cat", "dog", "cat"])
    assert passes == [28]
    again = classifier.embed(["dog", " cat "])
    assert passes == [28]
    torch.testing.assert_close(again, first[[1, 0]])


def test_chunks_do_not_change_the_numbers(classifier: TextClassifier, passes: list[int]) -> None:
    whole = classifier.embed(["cat", "dog", "grass"])
    classifier._cache.clear()
    classifier._chunk_size = 10
    torch.testing.assert_close(classifier.embed(["cat", "dog", "grass"]), whole)
    assert passes == [42, 10, 10, 10, 10, 2]


def test_cache_is_never_shared_or_stale(classifier: TextClassifier, passes: list[int]) -> None:
    before = classifier.embed(["cat"])
    torch.manual_seed(1)
    other = build_san(variant("tiny")).text_classifier
    assert not torch.allclose(other.embed(["cat"]), before)
    classifier.load_state_dict(other.state_dict())
    torch.testing.assert_close(classifier.embed(["cat"]), other.embed(["cat"]))
    assert len(passes) == 2


@pytest.mark.parametrize("names", [[], ["cat", "  "]])
def test_blank_vocabulary_is_refused(classifier: TextClassifier, names: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one name"):
        classifier.embed(names)


def test_mixed_precision_leaves_text_and_logits_in_float32(classifier: TextClassifier) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = classifier.embed(["cat", "dog"])
        logits = classifier.logits(torch.eye(64)[None].bfloat16(), mixed)
    assert logits.dtype == torch.float32
    classifier._cache.clear()
    torch.testing.assert_close(classifier.embed(["cat", "dog"]), mixed, atol=0, rtol=0)
