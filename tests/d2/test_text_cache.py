"""Runs of the framework keep text embeddings on disk, where MODEL.CLIP.TEXT_CACHE and SAN_CACHE say."""

from __future__ import annotations

from pathlib import Path

import pytest

from san.clip.text_cache import default_folder
from san.d2.api import build_model
from san.d2.config.keys import san_cfg, text_cache_folder
from san.d2.config.yaml_file import merge_overrides, override_pairs

TINY = (
    "MODEL.CLIP.NAME tiny MODEL.CLIP.PRETRAINED '' MODEL.CLIP.SHALLOW_DEPTH 3 MODEL.SIDE_ADAPTER.EMBED_DIM 144 "
    "MODEL.SIDE_ADAPTER.IMAGE_SIZE 96 MODEL.SIDE_ADAPTER.NUM_QUERIES 10 MODEL.ATTN_BIAS.NUM_HEADS 3 "
    "MODEL.SIDE_ADAPTER.FUSION ['0->0','1->1','2->2','3->3'] MODEL.DEVICE cpu"
)


def test_the_key_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = san_cfg()
    assert text_cache_folder(cfg) == default_folder()  # SAN_CACHE of the test run, and the default beneath it
    monkeypatch.setenv("SAN_CACHE", "/x")
    assert text_cache_folder(cfg) == Path("/x/text")
    merge_overrides(cfg, [("MODEL.CLIP.TEXT_CACHE", "/y")])
    assert text_cache_folder(cfg) == Path("/y")
    merge_overrides(cfg, [("MODEL.CLIP.TEXT_CACHE", "''")])
    assert text_cache_folder(cfg) is None


def test_the_meta_architecture_uses_it(tmp_path: Path) -> None:
    cfg = san_cfg()
    merge_overrides(cfg, override_pairs([*TINY.split(), f"MODEL.CLIP.TEXT_CACHE={tmp_path / 'words'}"]))
    classifier = build_model(cfg).model.text_classifier
    classifier.embed(["cat"])
    assert len(list((tmp_path / "words").rglob("*.safetensors"))) == 1
