"""Prompts as a registered part: a custom kind gives the same embeddings as an equal list of templates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from san.clip.templates import PROMPTS
from san.model.build import build_san
from san.model.config import variant
from san.record import Options, option
from san.registry import PartConfig


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
