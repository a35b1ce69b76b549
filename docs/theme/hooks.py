"""What the site needs beside the pages, which stay readable on GitHub. MkDocs calls these functions.

- Links to files outside docs/ lead to a page of the site that shows the file, under repository/.
- reference.md is generated from the public names of `san`.
- Headings get the anchors that GitHub gives them; formulas become MathML, which needs no script.
"""

from __future__ import annotations

import html
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any

import san

REPO = Path(__file__).resolve().parents[2]
SHOWN = "repository"
"""Folder of the pages that show files of the repository."""

LANGUAGES = {".json": "json", ".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
_FENCE = re.compile(r"(^[ \t]*```.*?^[ \t]*```)", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Set the address of the repository and GitHub's form of anchors."""
    from pymdownx.slugs import slugify

    (source,) = re.findall(r'^Source = "(.+)"$', (REPO / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    config.repo_url, config.repo_name = source, "GitHub"
    config.edit_uri = None
    config.mdx_configs["toc"]["slugify"] = partial(slugify(case="lower"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the reference, and a page for every linked file outside docs/, also of those pages' own links."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=_reference()))
    waiting = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    for file in files.documentation_pages():
        waiting |= _outside(file.content_string, f"docs/{file.src_uri}")
    shown: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in shown or not (REPO / path).is_file():  # what is missing, MkDocs reports
            continue
        shown.add(path)
        content = (REPO / path).read_text(encoding="utf-8")
        if path.endswith(".md"):
            waiting |= _outside(content, path)
        else:
            content = f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{content}\n````\n"
        files.append(File.generated(config, _page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to pages of the site."""
    own = page.file.src_uri
    place = own.removeprefix(f"{SHOWN}/") if own.startswith(f"{SHOWN}/") else f"docs/{own}"

    def replace(found: re.Match[str]) -> str:
        opening, target, anchor, closing = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        inside = path.removeprefix("docs/") if path.startswith("docs/") else _page_of(path)
        return f"{opening}{posixpath.relpath(inside, posixpath.dirname(own))}{anchor or ''}{closing}"

    return _outside_fences(markdown, lambda text: _TARGET.sub(replace, text))


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML."""
    if 'class="arithmatex"' not in content:
        return content
    from latex2mathml.converter import convert

    def replace(found: re.Match[str]) -> str:
        kind, formula = found.groups()
        return str(convert(html.unescape(formula), display="block" if kind == "div" else "inline"))

    return _FORMULA.sub(replace, content)


def _reference() -> str:
    page = (REPO / "docs/api.md").read_text(encoding="utf-8")
    order = re.findall(r"`(\w+)`", page)  # the most important ones first
    names = sorted((name for name in san.__all__ if not name.startswith("__")), key=order.index)
    parts = [f"::: san.{name}\n" for name in names]
    head = "# API reference\n\nThe names of `san`, with shapes, units and errors. [api.md](api.md) lists all names.\n"
    return "\n".join([head, *parts])


def _page_of(path: str) -> str:
    """Return the page that shows a file of the repository."""
    return f"{SHOWN}/{path}" if path.endswith(".md") else f"{SHOWN}/{path}.md"


def _outside(text: str, place: str) -> set[str]:
    """Return the files outside docs/ to which a file of the repository links."""
    found: set[str] = set()

    def collect(part: str) -> str:
        for _, target, _, _ in _TARGET.findall(part):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
            if not path.startswith(("docs/", "..")):
                found.add(path)
        return part

    _outside_fences(text, collect)
    return found


def _outside_fences(text: str, change: Any) -> str:
    """Change a text, but not its blocks of code."""
    return "".join(part if index % 2 else change(part) for index, part in enumerate(_FENCE.split(text)))
