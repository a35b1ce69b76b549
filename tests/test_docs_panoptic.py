"""docs/panoptic.md does what it says: its snippets run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_every_snippet_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(
        r"^```python\n(.*?)^```", (repo / "docs/panoptic.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert snippets
    scope: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, scope)
