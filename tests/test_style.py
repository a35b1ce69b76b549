"""Limits that no linter holds: lengths of files and functions (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FILES = [path for folder in ("san", "tools", "datasets") for path in sorted((REPO / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_lengths(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400, "a file has at most 400 lines; split it by idea"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            length = (node.end_lineno or 0) - node.lineno + 1
            if docstring is not None:
                length -= (docstring.end_lineno or 0) - docstring.lineno + 1
            assert length <= 60, f"{node.name} (line {node.lineno}) has {length} lines, docstring aside; at most 60"
