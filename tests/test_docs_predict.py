"""docs/predict.md and docs/predict.ipynb do what they say: every snippet and every cell runs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in one scope, as the page says."""
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / "predict.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(snippets) >= 7
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, scope)
    assert scope["words"].num_context == 35
    assert 0 < scope["strict"].none_area() < 1
    assert all(path.is_file() for path in scope["files"].values())
    assert scope["predictor"].text_cache == Path("words")


def test_the_notebook_runs_and_shows_what_it_stores(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = DOCS / "predict.ipynb"
    assert path.stat().st_size < 300_000
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(DOCS.parent), *sys.path])}
    client = nbclient.NotebookClient(
        fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    for before, after in zip(stored.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            assert text_of(after) == text_of(before), f"the stored output of {before.source!r} is out of date"
            assert pictures_of(after) == pictures_of(before)


def text_of(cell: Any) -> str:
    """The printed output of a cell."""
    return "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")


def pictures_of(cell: Any) -> int:
    """The number of pictures of a cell."""
    return sum("image/jpeg" in output.get("data", {}) for output in cell.outputs)
