"""Data read from open_clip without its import equal those of open_clip itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from san.clip import open_clip_adapter
from san.clip.tokenizer import VOCAB_SIZE, BpeTokenizer, compact_tokenizer, tokenizer_identity

UNUSED = """
import gc, sys
from san.cli.main import main
picture, folder = sys.argv[1:]
cache = ["--text-cache", folder + "/text"]
assert main(["predict", picture, "--vocab", "red star, striped ground", "--out", folder, "--quiet", *cache]) == 0
assert gc.get_freeze_count() and gc.isenabled()
from san import variant
from san.model.build import build_san
model = build_san(variant("tiny"), clip_weights=False)
from san.clip.loader import load_clip
assert load_clip("ViT-L-14-336", "openai", weights=False).arch.quick_gelu
heavy = {"open_clip", "torchvision", "timm", "torch._dynamo", "sympy", "scipy", "matplotlib", "wandb"}
sys.exit(", ".join(heavy & {*sys.modules}) or 0)
"""


def test_models_are_built_and_pictures_segmented_without_heavy_imports(tmp_path: Path) -> None:
    """Each of these packages would take longer than the prediction; words are tokenised, as none are cached."""
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", UNUSED, tmp_path / "a.png", tmp_path], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("loader", [None, "missing.py"])
def test_the_tokenizer_by_itself_is_open_clips(loader: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its file cannot be loaded by itself."""
    texts = ["a photo of a cat", "Vélo 12x &amp; <end_of_text>", "long " * 80]
    monkeypatch.delitem(sys.modules, "open_clip")
    if loader:
        monkeypatch.setattr(open_clip_adapter, "_TOKENIZER_FILE", loader)
    open_clip_adapter._tokenizer_module.cache_clear()
    try:
        found = open_clip_adapter.tokenize(texts, 77)
        assert open_clip_adapter._tokenizer_module().__name__ == ("open_clip" if loader else "open_clip_tokenizer")
    finally:
        open_clip_adapter._tokenizer_module.cache_clear()
    assert torch.equal(found, open_clip.tokenize(texts, 77))


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
