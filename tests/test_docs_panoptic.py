"""docs/panoptic.md does what it says: its snippets run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from san.cli.main import main
from san.inference.segments import SEMANTIC
from san.panoptic_merge import PanopticOptions


def test_every_snippet_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (repo / "docs/panoptic.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(snippet, scope)
    segments = scope["segments"]
    assert {each.name for each in segments} >= {"white star", "black bar"}  # type: ignore[attr-defined]
    assert len(scope["panoptic"]["annotations"][0]["segments_info"]) == len(segments)  # type: ignore
    assert Image.open("scene_ids.png").size == Image.open("segments.png").size == (128, 128)


def test_thresholds_are_those_of_the_page(repo: Path) -> None:
    text = (repo / "docs/panoptic.md").read_text(encoding="utf-8")
    usual = PanopticOptions()
    assert f"`TEST.PANOPTIC.OBJECT_THRESHOLD` | {usual.object_threshold} |" in text
    assert f"`connected` | {SEMANTIC.object_threshold}, {SEMANTIC.overlap_threshold} |" in text
    assert f"`queries` | {usual.object_threshold}, {usual.overlap_threshold} |" in text


def test_the_command_of_the_readme_runs(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "scene.png")
    words = ["--vocab", "red star, striped ground", "--things", "red star"]
    assert main(["predict", str(tmp_path / "scene.png"), *words, "--out", str(tmp_path / "out"), "--quiet"]) == 0
