"""Docstrings cite sections that exist, and the pages on method and architecture name code that exists."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from san.d2.config.schema import KEYS

REPO = Path(__file__).resolve().parent.parent
PAGES = ["docs/method.md", "docs/architecture.md"]
FILES = sorted(path for folder in ("san", "tools", "datasets", "tests") for path in (REPO / folder).rglob("*.py"))
CITED = re.compile(r"(docs/\w+\.md)((?:(?:,| and| to)?\s*#[\w.]*\w)+)")


@cache
def anchors(page: str) -> frozenset[str]:
    return frozenset(re.findall(r'<a id="([^"]+)"></a>', (REPO / page).read_text(encoding="utf-8")))


def citations(text: str) -> list[tuple[str, str]]:
    """Pages and anchors that a text names, as in "docs/method.md#2, #4.1 and #5"."""
    return [(page, anchor) for page, marks in CITED.findall(text) for anchor in re.findall(r"#([\w.]*\w)", marks)]


def test_all_forms_of_citation_are_read() -> None:
    text = "Source: docs/method.md#2 to #5.1, #7 and\n #8. See (docs/architecture.md#rooms)."
    assert [anchor for _, anchor in citations(text)] == ["2", "5.1", "7", "8", "rooms"]


def test_cited_sections_exist() -> None:
    cited = [(path, *each) for path in FILES for each in citations(path.read_text(encoding="utf-8"))]
    assert len(cited) > 30
    own = Path(__file__).resolve()
    missing = [
        f"{path}: {page}#{anchor}" for path, page, anchor in cited if path != own and anchor not in anchors(page)
    ]
    assert not missing


def test_every_source_is_the_paper_or_a_section() -> None:
    sources = []
    for path in sorted((REPO / "san").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        sources += [(path, text[start : start + 120]) for start in (m.end() for m in re.finditer("Source:", text))]
    assert len(sources) > 15
    for path, text in sources:
        assert citations(text) or re.match(r"\s*arXiv 2302\.12242, section \d", text), f"{path}: {text}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_code_that_exists(page: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", (REPO / page).read_text(encoding="utf-8"))
    paths = [name for name in quoted if re.fullmatch(r"(san|tests|configs|tools|datasets)/[\w./]*", name)]
    assert paths
    assert not [name for name in paths if not (REPO / name).exists()]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPO / "san").rglob("*.py"))
    defined = set(re.findall(r"^ *(?:class|def) (\w+)|^    (\w+): ", code, re.M))
    defined = {name for pair in defined for name in pair} | {path.stem for path in (REPO / "san").rglob("*.py")}
    names = [name for name in quoted if re.fullmatch(r"[A-Za-z_]+(\.\w+)?", name) and re.search("[A-Z].*[a-z]|_", name)]
    own = [name for name in names if name.split(".")[-1] not in KNOWN_ELSEWHERE]
    assert not [name for name in own if name not in KEYS and name.split(".")[-1] not in defined]


KNOWN_ELSEWHERE = {
    "align_corners", "kaiming_uniform", "linear_sum_assignment", "logit_scale", "loss_ce", "loss_mask", "loss_dice",
    "ln_post", "ln_pre", "block_i", "_0", "image_files", "torch_defaults", "META_ARCHITECTURE", "meta_arch",
}  # fmt: skip
"""Names of PyTorch, of tensors and of modules on the pages."""


@pytest.mark.parametrize("page", PAGES)
def test_links_to_sections_lead_there(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w./]*)#([\w.]+)\)", text)
    assert all(anchor in anchors(f"docs/{target}" if target else page) for target, anchor in links)


@pytest.mark.parametrize("module", ["san", "san.losses", "san.evaluation", "san.visualize", "san.d2"])
def test_the_public_names_are_those_of_the_page(module: str) -> None:
    page = (REPO / "docs/api.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## `{re.escape(module)}`\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = re.findall(r"`(\w+)`", " ".join(cells))
    public = importlib.import_module(module).__all__
    assert sorted(listed) == sorted(name for name in public if not name.startswith("__"))
