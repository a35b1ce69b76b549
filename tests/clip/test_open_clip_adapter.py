"""Data read from open_clip without its import equal those of open_clip itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import open_clip
import pytest

from san.clip import open_clip_adapter
from san.clip.tokenizer import VOCAB_SIZE, BpeTokenizer, compact_tokenizer, tokenizer_identity

UNUSED = """
import sys
from san import variant
from san.model.build import build_san
model = build_san(variant("tiny"), clip_weights=False)
from san.clip.loader import load_clip
assert load_clip("ViT-L-14-336", "openai", weights=False).arch.quick_gelu
sys.exit("open_clip" in sys.modules)
"""


def test_a_model_is_built_without_importing_open_clip() -> None:
    assert subprocess.run([sys.executable, "-c", UNUSED], check=False).returncode == 0


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14-336", "ViT-B-32-quickgelu"])
def test_packaged_configurations_are_open_clips(name: str) -> None:
    assert open_clip_adapter._packaged_config(name) == open_clip.get_model_config(name)
    assert open_clip_adapter._packaged_config("ViT-B-17") is None


def test_openais_models_are_known_with_their_statistics() -> None:
    ours = {name: open_clip_adapter.trained_as(name, "openai") for name in open_clip_adapter.OPENAI_MODELS}
    for name, found in ours.items():
        theirs = open_clip_adapter.tag_record(name, "openai")
        assert found == {key: theirs[key] for key in ("quick_gelu", "mean", "std")}
    published = {name for name in open_clip.list_pretrained_models_by_tag("openai") if name.startswith("ViT-")}
    assert {name for name in published if not name.endswith("quickgelu")} == set(open_clip_adapter.OPENAI_MODELS)
    with pytest.raises(ValueError, match="no weights 'openai' for 'ViT-H-14'"):
        open_clip_adapter.trained_as("ViT-H-14", "openai")


def test_the_vocabulary_has_the_size_that_is_stated() -> None:
    assert open_clip.SimpleTokenizer().vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("ids", [[], [3, 2], [2, 2], [-1], ["2"], None])
def test_a_compact_vocabulary_is_sorted_distinct_ids(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"compact vocabulary \(clip_token_ids\) are .*sorted, and one at least"):
        compact_tokenizer(ids, 32)


def test_tokenizers_have_different_identities() -> None:
    identities = {
        tokenizer_identity(tokenizer, ["a"])
        for tokenizer in (
            BpeTokenizer(77),
            BpeTokenizer(32),
            compact_tokenizer([320, 49406, 49407], 32),
            compact_tokenizer([321, 49406, 49407], 32),
            lambda texts: BpeTokenizer(77)(texts),
        )
    }
    assert len(identities) == 5
    assert tokenizer_identity(BpeTokenizer(77), ["a"]) == tokenizer_identity(BpeTokenizer(77), ["b"])


def test_another_ftfy_is_another_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """ftfy changes texts before they become ids, so embeddings of its releases are cached separately."""
    before = BpeTokenizer(77).identity
    monkeypatch.setattr("san.clip.tokenizer.version", lambda package: "0.0")
    assert BpeTokenizer(77).identity != before
