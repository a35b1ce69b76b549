"""Limits that no linter holds: lengths of files and functions (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FILES = [path for folder in ("san", "tools", "datasets") for path in sorted((REPO / folder).rglob("*.py"))]


ONE_IN_EACH_MODULE = {"add_arguments", "run", "main", "plan", "part", "make_workload", "count_run"}
"""What modules of a kind share: commands, preparations, benchmarks."""


def test_one_name_means_one_thing() -> None:
    """Outside the stand-in, whose names are Detectron2's."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        name = path.relative_to(REPO).as_posix()
        if not name.startswith("san/") or name.startswith("san/d2/standin/"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{name}:{node.lineno}")
    repeated = {name: found for name, found in places.items() if len(found) > 1 and name not in ONE_IN_EACH_MODULE}
    assert not repeated, "give each its own name, which says what it is"


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
