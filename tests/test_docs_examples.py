"""docs/examples.md does what it says: its snippet runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_every_snippet_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (repo / "docs/examples.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    scope: dict[str, object] = {}
    exec(snippet, scope)
    assert scope["learnt"].counts()["red star"] >= 1  # type: ignore[attr-defined]
    assert "red star" in scope["result"].areas()  # type: ignore[attr-defined]
