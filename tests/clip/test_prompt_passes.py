"""Encoding of prompts with shared beginnings: the same numbers as with whole rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from san.benchmark.clocks import counting
from san.benchmark.reference import plain_text_embed
from san.clip import prompt_passes
from san.clip.prompt_passes import shared_lengths
from san.clip.text_classifier import TextClassifier
from san.clip.text_tower import TextTower
from san.model.build import build_san
from san.model.config import variant
from san.vocabulary.classes import ClassText

NAMES = ["cat", "a very long name of many words that takes many tokens " * 3, "road, route", "sky", "cat flap", "x"]
ALWAYS, NEVER = 1, 10**9
"""Tokens that sharing must save."""


def make_classifier(device: str = "cpu") -> TextClassifier:
    torch.manual_seed(0)
    model = build_san(variant("tiny"))
    for name, parameter in model.text_classifier.named_parameters():
        if parameter.dim() < 2:  # biases and scales that are not all zero or one
            torch.nn.init.normal_(parameter, mean=float("weight" in name or "scale" in name), std=0.1)
    return model.to(device).text_classifier


@pytest.fixture
def classifier() -> TextClassifier:
    return make_classifier()


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Prompts and tokens of each of every pass that ends prompts."""
    found: list[tuple[int, int]] = []
    original = prompt_passes._finish

    def watch(tower: TextTower, tokens: torch.Tensor, kinds: torch.Tensor, ends: torch.Tensor, begun: object):
        found.append((len(tokens), int((ends + 1 - begun.lengths[kinds]).max())))
        return original(tower, tokens, kinds, ends, begun)

    monkeypatch.setattr(prompt_passes, "_finish", watch)
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.015)])
@pytest.mark.parametrize("tokens_per_pass", [20, 10_000])
@pytest.mark.parametrize("sharing", [ALWAYS, NEVER])
def test_the_numbers_of_77_tokens(device, dtype, tolerance, tokens_per_pass, sharing, monkeypatch) -> None:
    """In bfloat16 sums are rounded differently; unit vectors of 64 numbers differ by less than 0.015 in each."""
    monkeypatch.setattr(prompt_passes, "_WORTH_SHARING", sharing)
    classifier = make_classifier(device).to(dtype)
    classifier.embedder.tokens_per_pass = tokens_per_pass
    found, plain = classifier.embed(NAMES), plain_text_embed(classifier, NAMES)
    torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)
    assert float((plain[0] - plain[3]).abs().max()) > 3 * tolerance, "words that differ, differ by more than that"


def test_each_prompt_by_itself(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each embedding, not only means over templates; also of plain prompts among templates, in any order and kind."""
    monkeypatch.setattr(prompt_passes, "_WORTH_SHARING", ALWAYS)
    embedder = classifier.embedder
    tokens = embedder.tokenizer([f"{start} {name}" for name in NAMES for start in ("a photo of a", "one", "")])
    with torch.no_grad():
        plain = classifier.encode_text(tokens)
        for kinds in (torch.arange(len(tokens)) % 3, torch.arange(len(tokens)), torch.full((len(tokens),), 4)):
            found = embedder._encode_prompts(classifier, tokens, kinds)
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    mixed = classifier.embed(["cat", ClassText("own", prompts=("one cat", "a photo of a sky")), "sky"])
    torch.testing.assert_close(mixed[[0, 2]], classifier.embed(["cat", "sky"]), rtol=0, atol=1e-5)


def test_what_is_shared() -> None:
    """Start 8, end 9; kind 0 shares three tokens, kind 2 is a prompt and its own beginning; kind 1 is missing."""
    rows = [[8, 1, 2, 3, 9, 0], [8, 1, 2, 4, 5, 9], [8, 1, 9, 0, 0, 0], [8, 1, 2, 9, 0, 0]]
    tokens, kinds = torch.tensor(rows), torch.tensor([0, 0, 2, 2])
    many = torch.arange(4).repeat_interleave(torch.tensor([600, 600, 600, 600]))
    assert shared_lengths(tokens[many], tokens[many].argmax(-1), kinds[many]).tolist() == [3, 0, 2]
    assert shared_lengths(tokens, tokens.argmax(-1), kinds).tolist() == [0, 0, 0], "not worth a pass"
    same = tokens[2:3].repeat(600, 1)
    assert shared_lengths(same, same.argmax(-1), torch.zeros(600, dtype=torch.long)).tolist() == [2], "but for its end"


def test_multiply_adds_are_those_of_the_tokens_that_are_needed(classifier: TextClassifier) -> None:
    """Per block 12 D² of a token's linear maps, of the last block 10 D² only of the token that is read."""
    names = [f"thing {number}" for number in range(200)]
    embedder = classifier.embedder
    tokens = embedder.tokenizer([prompt for name in names for prompt in embedder.prompts(name)])
    kinds = torch.arange(len(tokens)) % len(embedder.prompts(""))
    ends = tokens.argmax(dim=-1)
    shared = shared_lengths(tokens, ends, kinds)
    assert int(shared.min()) >= 4
    needed = int((ends + 1 - shared[kinds]).sum() + shared.sum())
    width, depth = classifier.ln_final.normalized_shape[0], len(classifier.transformer.resblocks)
    linear = needed * (12 * depth - 10) * width**2 + len(tokens) * (10 * width**2 + width * 64)
    meta = classifier.to("meta")
    with counting() as recorder_of, torch.no_grad():
        recorder = recorder_of()
        meta.embedder._encode_prompts(meta, tokens, kinds)
        recorder.mark("all")
    assert linear < recorder.parts()["all"] < 1.15 * linear, "the rest is attention and a little padding"


def test_passes_are_sorted_and_bounded(classifier: TextClassifier, widths: list[tuple[int, int]]) -> None:
    classifier.embedder.tokens_per_pass = 100
    classifier.embed(NAMES)
    assert [width for _, width in widths] == sorted(width for _, width in widths)
    assert sum(count for count, _ in widths) == 14 * len(NAMES)
    assert all(count == 1 or count * width <= 100 for count, width in widths)
    assert len(widths) > 3


def test_a_prompt_as_long_as_clip_reads(classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_passes, "_WORTH_SHARING", ALWAYS)
    embedder, kinds = classifier.embedder, torch.zeros(3, dtype=torch.long)
    tokens = embedder.tokenizer(["cat " * 200, "cat", "cat " * 75])
    assert tokens.argmax(dim=-1).tolist()[0] == tokens.shape[1] - 1
    with torch.no_grad():
        found = F.normalize(embedder._encode_prompts(classifier, tokens, kinds), dim=-1)
        plain = F.normalize(classifier.encode_text(tokens), dim=-1)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
