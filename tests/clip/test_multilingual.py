"""Multilingual text towers: MetaCLIP 2's and XLM-RoBERTa, with a small tokenizer of the `tokenizers` library."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn

from san.clip import loader, open_clip_adapter
from san.clip.arch import TextArch
from san.clip.tokenizer import HuggingFaceTokenizer, fitting_tokenizer, text_ends
from san.model.build import build_san
from san.model.config import variant_for_clip
from san.registry import PartConfig
from tests.clip.small_clips import (
    TEXT,
    WORDS,
    check_files,
    check_parity,
    check_training,
    close,
    make_pair,
    make_san,
    write_tokenizer,
)

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VISION = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the tokenizer's name is a folder: transformers reads it without the hub."""
    write_tokenizer(tmp_path / "small/words")
    write_tokenizer(tmp_path / "small/words-without-start", start=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_metaclip_2_reads_at_its_own_end_of_text(hub: Path, tmp_path: Path) -> None:
    """The id of end-of-text is not the largest. A folder, a slim file and a predictor work with any language."""
    text = TEXT | {"hf_tokenizer_name": "small/words", "vocab_size": 64, "pool_type": "eos", "eos_id": 2}
    reference, clip = make_pair(VISION, text, 40)
    model = make_san(clip)
    check_parity(reference, model)
    ids = clip.tokenizer(["猫", "a photo of the katze", "unknownword"])
    assert ids[0, :4].tolist() == [0, 4 + WORDS.index("猫"), 2, 1]
    assert text_ends(clip.tokenizer, ids).tolist() == [2, 6, 2]
    words = ["猫", "γάτα", "قطة", "बिल्ली", "고양이", "red car"]
    with torch.no_grad():
        prompts = [prompt for word in words for prompt in model.text_classifier.embedder.prompts(word)]
        each = reference.encode_text(clip.tokenizer(prompts), normalize=True).unflatten(0, (len(words), -1))
        close(model.text_classifier.embed(words), nn.functional.normalize(each.mean(dim=1), dim=-1))
    check_files(model, clip, tmp_path)
    check_training(model)


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta"])
def test_towers_of_transformers_equal_open_clip(kind: str, hub: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(open_clip_config_models(), "small/model", (kind, 32, 24, 2, 3))
    config = {"xlm-roberta": transformers.XLMRobertaConfig, "roberta": transformers.RobertaConfig}[kind](
        vocab_size=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    tower = HFTextEncoder("small", 40, config=config, pooler_type="mean_pooler", proj_type="mlp").eval()
    tower.transformer.pooler = None  # open_clip builds it only for a configuration that is given
    text = {"hf_model_name": "small/model", "hf_tokenizer_name": "small/words", "hf_pooler_type": "mean_pooler"}
    reference, clip = make_pair(VISION, text, 40, tower)
    model = make_san(clip)
    check_parity(reference, model)
    check_files(model, clip, tmp_path)
    model.train()  # has no dropout
    with torch.no_grad():
        ids = clip.tokenizer(["a cat", "a photo of the rot car"])
        close(model.text_classifier.encode_text(ids), reference.encode_text(ids))
    check_training(model)


def open_clip_config_models() -> dict[str, Any]:
    """The text towers of transformers that SAN knows."""
    from san.clip import open_clip_config

    return open_clip_config._MODELS


def test_long_texts_are_reported_in_any_language(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = TEXT | {"hf_tokenizer_name": "small/words", "vocab_size": 64, "pool_type": "eos", "context_length": 9}
    model = make_san(make_pair(VISION, text, 40)[1])
    with caplog.at_level(logging.WARNING, "san"):
        model.text_classifier.embed(["猫 " * 12])
    assert "is longer than the 9 tokens CLIP reads" in caplog.text


def test_a_tokenizer_without_a_start_token_counts_its_own(hub: Path) -> None:
    tokenizer = HuggingFaceTokenizer(TextArch(tokenizer="small/words-without-start", context_length=5))
    ids = tokenizer(["red car", "red car red car red car"])
    assert ids[0].tolist() == [4 + WORDS.index("red"), 4 + WORDS.index("car"), 2, 1, 1]
    assert text_ends(tokenizer, ids).tolist() == [2, 4]
    assert tokenizer.identity != HuggingFaceTokenizer(TextArch(tokenizer="small/words", context_length=5)).identity


def refuse(*args: object, **kwargs: object) -> None:
    """There is no network."""
    raise socket.gaierror("Name or service not known")


def test_what_cannot_work_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    missing = HuggingFaceTokenizer(TextArch(tokenizer="nobody/nothing"))
    with pytest.raises(FileNotFoundError, match="'nobody/nothing'.*hf download nobody/nothing"):
        missing(["a"])
    with pytest.raises(ValueError, match="vocab_size is 8, but the tokenizer 'small/words' gives the id 10"):
        HuggingFaceTokenizer(TextArch(tokenizer="small/words", vocab_size=8))(["катze قطة"])
    with pytest.raises(ValueError, match=r"clip_token_ids\) is of CLIP's tokenizer"):
        fitting_tokenizer(TextArch(tokenizer="small/words"), [320])
    for name in ("/etc/words", "../words", "a/b/c", "hf-hub:x"):
        with pytest.raises(ValueError, match=r"clip_arch.text.tokenizer is .*; give a name on the Hugging Face hub"):
            TextArch(tokenizer=name)
    clip = make_pair(VISION, TEXT | {"hf_tokenizer_name": "small/words", "vocab_size": 64, "pool_type": "eos"}, 40)[1]
    config = replace(variant_for_clip("small", None), prompts=PartConfig("learnt_context"))
    with pytest.raises(ValueError, match="need CLIP's own tokenizer.*set prompts.name to templates"):
        build_san(config, clip=clip)


def test_the_installed_release_has_or_lacks_multilingual_models() -> None:
    """MetaCLIP 2 is in open_clip since 3.1."""
    models = open_clip_adapter.models_and_tags()
    base = loader.load_clip("xlm-roberta-base-ViT-B-32", None)
    assert (base.arch.text.width, base.arch.text.vocab_size, base.arch.text.model) == (768, 250002, "xlm-roberta")
    if "ViT-H-14-worldwide" not in models:
        with pytest.raises(ValueError, match="knows no model 'ViT-H-14-worldwide'; .*open_clip_torch>=3.1"):
            loader.load_clip("ViT-H-14-worldwide", None)
        pytest.skip("this release of open_clip has no MetaCLIP 2")
    arch = loader.load_clip("ViT-H-14-worldwide", None).arch
    assert (arch.text.pool, arch.text.eos_id, arch.text.tokenizer) == ("eos", 2, "facebook/xlm-v-base")
    with pytest.raises(ValueError, match="hf_model_name='facebook/nllb-200-distilled-600M'"):
        loader.load_clip("nllb-clip-base", None)
