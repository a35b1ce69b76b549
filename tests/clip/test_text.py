"""The text classifier: caching, templates, bad vocabularies."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from san.clip.templates import load_templates
from san.clip.text_cache import TextCache
from san.clip.text_classifier import TextClassifier
from san.clip.text_tower import TextTower
from san.hub import load_pretrained, save_pretrained
from san.model.build import build_san
from san.model.config import variant
from san.vocabulary.classes import ClassText


@pytest.fixture
def classifier() -> TextClassifier:
    torch.manual_seed(0)
    return build_san(variant("tiny")).text_classifier


@pytest.fixture
def passes(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of prompts whenever some go into the text tower."""
    counted: list[int] = []
    original = classifier.embedder._encode_prompts

    def count(tower: TextTower, tokens: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        counted.append(len(tokens))
        return original(tower, tokens, kinds)

    monkeypatch.setattr(classifier.embedder, "_encode_prompts", count)
    return counted


def test_unit_length_and_averaged_over_templates(classifier: TextClassifier) -> None:
    prompts = [template.format("cat") for template in load_templates("vild")]
    with torch.no_grad():
        each = torch.nn.functional.normalize(classifier.encode_text(classifier.embedder.tokenizer(prompts)), dim=-1)
    expected = torch.nn.functional.normalize(each.mean(dim=0), dim=-1)
    torch.testing.assert_close(classifier.embed(["cat"])[0], expected)


def test_a_name_is_embedded_once(classifier: TextClassifier, passes: list[int]) -> None:
    first = classifier.embed(["cat", "dog", "cat"])
    assert passes == [28]
    again = classifier.embed(["dog", " cat "])
    assert passes == [28]
    torch.testing.assert_close(again, first[[1, 0]])


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
    with pytest.raises(ValueError, match="none of them blank|which is blank"):
        classifier.embed(names)


def test_mixed_precision_leaves_text_and_logits_in_float32(classifier: TextClassifier) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = classifier.embed(["cat", "dog"])
        logits = classifier.logits(torch.eye(64)[None].bfloat16(), mixed)
    assert logits.dtype == torch.float32
    classifier.embedder.forget()
    torch.testing.assert_close(classifier.embed(["cat", "dog"]), mixed, atol=0, rtol=0)


def test_synonyms_are_averaged(classifier: TextClassifier) -> None:
    sofa, couch, both = classifier.embed(["sofa", "couch", ClassText("seat", ("sofa", "couch"))])
    torch.testing.assert_close(both, torch.nn.functional.normalize((sofa + couch) / 2, dim=0))
    assert torch.equal(classifier.embed([ClassText("shown", ("sofa",))])[0], sofa)


def test_prompts_take_the_place_of_templates(classifier: TextClassifier, passes: list[int]) -> None:
    prompts = tuple(template.format("cat") for template in load_templates("vild"))
    own = classifier.embed([ClassText("anything", prompts=prompts)])
    assert passes == [14]
    torch.testing.assert_close(own, classifier.embed(["cat"]))
    assert not torch.allclose(classifier.embed([ClassText("cat", prompts=("cat",))]), own, atol=1e-3)


def test_what_clip_does_not_read_is_said_once(classifier: TextClassifier, caplog: pytest.LogCaptureFixture) -> None:
    """A name of 300 words: which, how much of it is read, and where it stops."""
    words = [f"w{number}" for number in range(300)]
    with caplog.at_level(logging.WARNING):
        first = classifier.embed(["cat", " ".join(words)])
        classifier.embed([" ".join(words), "road, route"])
    (record,) = caplog.records
    message = record.getMessage()
    assert "'w0 w1 w2" in message
    assert "77 tokens" in message
    last = int(message.split("up to '")[1].split("'")[0].split()[-1].removeprefix("w"))
    assert f"from 'w{last + 1} " in message
    for position, is_read in ((last, True), (last + 10, False)):  # +10: shorter templates leave room for more words
        other = " ".join([*words[:position], "cat", *words[position + 1 :]])
        assert torch.equal(classifier.embed([other])[0], first[1]) != is_read


def test_many_long_names_are_one_warning(classifier: TextClassifier, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        classifier.embed([f"name {number} " + "very " * 90 + "long" for number in range(30)])
    (record,) = caplog.records
    assert record.getMessage().startswith("'name 0 very")
    assert record.getMessage().endswith("use fewer words (and 29 more such names)")


def test_a_name_that_just_fits_is_no_matter(classifier: TextClassifier, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        classifier.embed([ClassText("fits", prompts=(" ".join(["cat"] * 75),))])
        assert not caplog.records
        classifier.embed([ClassText("one more", prompts=(" ".join(["cat"] * 76),))])
    assert "of its prompt's 76 words the first 75 are read" in caplog.text


def test_remarks_are_data(caplog: pytest.LogCaptureFixture) -> None:
    """The embeddings contain remarks on cut and unknown texts; only `TextClassifier.embed` logs them, once."""
    classifier = load_pretrained("shapes").text_classifier
    names = ["red star", "zebra", ClassText("long", ("star " * 40, "red zebra"))]
    found = classifier.embedder.embed(classifier, names)
    assert found.unknown == ("zebra",)
    assert list(found.cut) == [("star " * 40).strip()]
    assert "longer than the 32 tokens CLIP reads" in found.cut[("star " * 40).strip()]
    assert classifier.embedder.embed(classifier, tuple(names)) is found
    assert (classifier.embedder.embed(classifier, ["red star"]).cut, repr(found)[:15]) == ({}, "TextEmbeddings(")
    assert not caplog.records
    for _ in range(2):
        assert classifier.embed(names) is found.vectors
        classifier.embed(["a yak"])
    assert [record.getMessage()[:32] for record in caplog.records] == [
        "the small CLIP does not know 'ze",
        "'star star star star star star s",
        "the small CLIP does not know 'ya",
    ]


def test_words_that_are_not_to_be_kept(classifier: TextClassifier, tmp_path: Path) -> None:
    classifier.embedder.use_disk_cache(tmp_path / "words")
    private = classifier.embedder.embed(classifier, ["cat"], store=False)
    assert not (tmp_path / "words").exists()
    assert torch.equal(classifier.embed(["cat", "dog"])[:1], private.vectors)
    (folder,) = (tmp_path / "words").iterdir()
    assert TextCache(tmp_path / "words", folder.name).load(["t:cat", "t:dog"]).keys() == {"t:dog"}


def test_other_prompts(classifier: TextClassifier) -> None:
    """Any object that makes prompts of a name will do; it decides the key on disk."""

    class Backwards:
        identity = "backwards"

        def __call__(self, name: str) -> list[str]:
            return [name[::-1], f"no {name[::-1]}"]

    before, key = classifier.embed(["cat"]), classifier.embedder.fingerprint(classifier)
    classifier.embedder.prompts = Backwards()
    expected = classifier.embed([ClassText("cat", prompts=("tac", "no tac"))])
    torch.testing.assert_close(classifier.embed(["cat"]), expected)
    assert not torch.allclose(before, expected)
    assert classifier.embedder.fingerprint(classifier) != key


def test_a_model_is_freed_at_once() -> None:
    """The weights are freed without a garbage collection of reference cycles."""
    model = build_san(variant("tiny"))
    model.text_classifier.embed(["cat"])
    gone = weakref.ref(model.text_classifier)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_embeddings_made_in_inference_mode_serve_training(classifier: TextClassifier) -> None:
    with torch.inference_mode():
        classifier.embed(["cat"])
    weight = torch.ones(64, requires_grad=True)
    (classifier.embed(["cat"]) * weight).sum().backward()
    assert weight.grad is not None


def test_the_memory_is_bounded(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("san.clip.text_embedder._MAX_CACHED", 2)
    assert len(classifier.embed(["a", "b", "c", "d"])) == 4
    assert len(classifier.embedder._cache) == 2
    for name in ("e", "f", "g"):
        classifier.embed([name])
    assert sum(len(each.vectors) for each in classifier.embedder._vocabularies.values()) <= 2


def test_a_vocabulary_that_comes_again_costs_nothing(classifier: TextClassifier, passes: list[int]) -> None:
    """The same tensor for each batch; another one once a weight has changed, or when asked to forget."""
    names = ["cat", ClassText("seat", ("sofa", "couch"))]
    first = classifier.embed(names)
    assert classifier.embed(tuple(names)) is first
    assert classifier.embed(names[::-1]) is not first
    torch.testing.assert_close(classifier.embed(names[::-1]), first.flip(0), atol=0, rtol=0)
    with torch.no_grad():
        classifier.text_projection.mul_(-1)
    torch.testing.assert_close(classifier.embed(names), -first)
    classifier.embedder.forget()
    classifier.embed(names)
    assert passes == [3 * 14] * 3
    for wrong in ([["cat"]], [1]):
        with pytest.raises(ValueError, match="give text"):
            classifier.embed(wrong)  # type: ignore[list-item]


def test_custom_templates_are_used_and_cached_separately(classifier: TextClassifier, tmp_path: Path) -> None:
    own = ("a {} from above", "{}!")
    tiny = variant("tiny")
    model = build_san(replace(tiny, clip=replace(tiny.clip, templates=list(own))))
    model.text_classifier.load_state_dict(classifier.state_dict())
    with torch.no_grad():
        tokens = classifier.embedder.tokenizer(["a cat from above", "cat!"])
        each = torch.nn.functional.normalize(classifier.encode_text(tokens), dim=-1)
    expected = torch.nn.functional.normalize(each.mean(dim=0), dim=-1)
    torch.testing.assert_close(model.text_classifier.embed(["cat"])[0], expected)
    one, other = (each.embedder.fingerprint(each) for each in (model.text_classifier, classifier))
    assert one != other, "a cache on disk would mix them up"
    folder = save_pretrained(model, tmp_path / "model")
    assert load_pretrained(folder).config.clip.templates == own
    assert "2 own templates" in (folder / "README.md").read_text()
