"""Prompts as a registered part: a kind of your own, and a learnt context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from san.benchmark.reference import plain_text_embed
from san.checkpoint import fitting_tensors, trained_names
from san.clip.templates import PROMPTS
from san.model.build import build_san
from san.model.config import variant
from san.model.san import SANModel
from san.record import Options, option
from san.registry import PartConfig
from san.vocabulary.classes import ClassText


@dataclass(frozen=True)
class SeasonOptions(Options):
    season: str = option("summer", "that a prompt speaks of")


class SeasonPrompts:
    Options = SeasonOptions

    def __init__(self, options: SeasonOptions, templates: tuple[str, ...]) -> None:
        self.texts = [f"{text} in {options.season}" for text in templates]
        self.identity = f"season {self.texts}"

    def __call__(self, name: str) -> list[str]:
        return [text.format(name) for text in self.texts]


def test_prompts_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROMPTS, "_entries", dict(PROMPTS._entries))
    PROMPTS.register("season")(SeasonPrompts)
    config = variant("tiny")
    config = replace(config, clip=replace(config.clip, templates=("a {}", "the {}")))
    torch.manual_seed(0)
    plain = build_san(config)
    own = build_san(replace(config, prompts=PartConfig("season", {"season": "autumn"})))
    own.load_state_dict(plain.state_dict())
    texts = replace(config, clip=replace(config.clip, templates=("a {} in autumn", "the {} in autumn")))
    expected = build_san(texts)
    expected.load_state_dict(plain.state_dict())
    names = ["cat", "dog"]
    found = own.text_classifier.embed(names)
    torch.testing.assert_close(found, expected.text_classifier.embed(names), rtol=0, atol=0)
    assert not torch.equal(found, plain.text_classifier.embed(names))


def with_context(*templates: str) -> tuple[SANModel, SANModel]:
    """A model with fixed templates, and one of the same weights that learns their words."""
    config = variant("tiny")
    config = replace(config, clip=replace(config.clip, templates=templates))
    torch.manual_seed(0)
    fixed, learnt = build_san(config), build_san(replace(config, prompts=PartConfig("learnt_context")))
    learnt.load_state_dict(fitting_tensors(learnt, fixed.state_dict(), "the file"))
    return fixed, learnt


CLASSES = ["cat", ClassText("dog", synonyms=("dog", "puppy")), ClassText("own", prompts=("a photo of a red star.",))]


def offset_of(model: SANModel) -> torch.nn.Parameter:
    assert model.text_classifier.context_offset is not None
    return model.text_classifier.context_offset


def test_a_learnt_context_starts_as_its_template_and_gets_a_gradient(caplog: pytest.LogCaptureFixture) -> None:
    fixed, learnt = with_context("a photo of a {}.", "the {}")
    assert "it starts as the words of clip.templates" in caplog.text  # the file holds none
    found = learnt.train().text_classifier.embed(CLASSES)
    assert torch.equal(found, fixed.text_classifier.embed(CLASSES))
    assert [name for name, each in learnt.text_classifier.named_parameters() if each.requires_grad] == [
        "no_object_embed",
        "context_offset",
    ]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    learnt(images, found).class_logits.square().sum().backward()
    gradient = offset_of(learnt).grad
    assert gradient is not None
    assert gradient.norm(dim=-1).bool().tolist() == [[True] * 4, [True, False, False, False]]  # tokens before the name
    assert all(each.grad is None for name, each in learnt.text_classifier.named_parameters() if "." in name)
    assert not learnt.eval().text_classifier.embed(CLASSES).requires_grad


def test_a_trained_context_is_seen_at_once_and_changes_no_own_prompt(tmp_path: Path) -> None:
    _, learnt = with_context("a photo of a {}.", "the {}")
    learnt.eval()
    learnt.text_classifier.embedder.disk_cache = tmp_path
    before = learnt.text_classifier.embed(CLASSES).clone()
    with torch.no_grad():
        offset_of(learnt).add_(torch.randn(offset_of(learnt).shape, generator=torch.Generator().manual_seed(2)))
    after = learnt.text_classifier.embed(CLASSES)
    assert torch.equal(after[2], before[2])
    assert (after[:2] - before[:2]).abs().amax(dim=1).min() > 0.01
    names = ["cat", "dog"]
    plain = plain_text_embed(learnt.text_classifier, names)  # whole rows, nothing shared, no cache
    torch.testing.assert_close(learnt.text_classifier.embed(names), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(learnt.train().text_classifier.embed(names), plain, rtol=0, atol=1e-5)
    again = build_san(learnt.config)
    again.load_state_dict(learnt.state_dict())
    again.text_classifier.embedder.disk_cache = tmp_path  # holds those of before, under another fingerprint
    assert torch.equal(again.eval().text_classifier.embed(CLASSES), after)


def test_a_learnt_context_is_part_of_a_slim_file() -> None:
    _, learnt = with_context("a photo of a {}.")
    assert "text_classifier.context_offset" in trained_names(learnt)
    assert trained_names(learnt) - trained_names(with_context("a {}")[0]) == {"text_classifier.context_offset"}


@pytest.mark.parametrize("template", ["{}", " {}", "un{}"])
def test_a_template_without_words_to_learn_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"clip.templates holds .*'a photo of a \{\}\.'"):
        with_context(template)
