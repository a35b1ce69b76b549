"""The README is correct: its snippet runs, its commands name existing files, its links are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docker/README.md")]
PAGES += sorted((REPO / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_snippet_runs(tmp_path, monkeypatch):
    """As written, on a picture in the same folder."""
    (snippet,) = blocks(REPO / "README.md", "python")
    Image.fromarray(np.full((128, 160, 3), 200, dtype=np.uint8)).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    result = scope["result"]
    assert result.labels.shape == (128, 160)
    assert result.labels.max() < 3
    assert sum(result.areas().values()) == pytest.approx(1)
    assert (tmp_path / "panel.png").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_commands_name_existing_files(page):
    text = "\n".join(blocks(page, "bash"))
    folders, endings = "tools|configs|docker|examples|tests|datasets", "py|yaml|sh|sbatch|json"
    for path in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\.(?:{endings})", text):
        assert (REPO / path).is_file(), f"{page.name} names {path}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "#")):
            continue
        path = page.parent / target.split("#")[0]
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
