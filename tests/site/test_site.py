"""The documentation as a site: complete, without broken links, and readable on a desktop and on a phone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import san

REPO = Path(__file__).resolve().parents[2]
CONFIG = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
GENERATED = {"reference.md", "repository/CHANGELOG.md", "repository/CONTRIBUTING.md", "repository/SECURITY.md"}


def pages_in(nav: Any) -> list[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for each in nav for page in pages_in(list(each.values()) if isinstance(each, dict) else each)]


def navigation() -> list[str]:
    return pages_in(yaml.safe_load(CONFIG.replace("!ENV", ""))["nav"])


def test_every_page_of_docs_is_in_the_navigation() -> None:
    listed = navigation()
    there = {path.relative_to(REPO / "docs").as_posix() for path in (REPO / "docs").rglob("*.md")}
    missing, unknown = sorted(there - set(listed)), sorted(set(listed) - there - GENERATED)
    assert missing == [], f"`nav` in mkdocs.yml does not list {', '.join(missing)}"
    assert unknown == [], f"`nav` in mkdocs.yml lists {', '.join(unknown)}, which docs/ does not have"
    assert len(listed) == len(set(listed))


class _Page(HTMLParser):
    """Links, pictures and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if "canonical" not in given.get("rel", ""):
            self.targets += [given[name] for name in ("href", "src") if name in given]


def test_every_link_of_the_site_leads_to_a_file_and_a_heading(site: Path) -> None:
    """Also of pictures, of raw HTML and of the theme, which MkDocs does not check."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    broken, checked = [], 0
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//") or target in ("#", ""):
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            other = other / "index.html" if other.is_dir() else other
            checked += 1
            if not other.is_file() or (parts.fragment and unquote(parts.fragment) not in pages[other].anchors):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert not broken
    assert checked > 3000


def test_the_reference_has_every_public_name_with_its_parameters(site: Path) -> None:
    text = (site / "reference/index.html").read_text(encoding="utf-8")
    page = _Page(text)
    for name in san.__all__:
        if not name.startswith("__"):
            assert {each for each in page.anchors if re.fullmatch(rf"san\.(\w+\.)*{name}", each)}, name
    for words in ("from_pretrained", "none_of_these", "short_sides", "to_coco_rle"):
        assert words in text
    assert "Returns:" in text


def test_files_that_pages_link_to_are_shown_and_formulas_are_mathml(site: Path) -> None:
    shown = (site / "repository/configs/eval/vit_b16/ade20k_150.yaml/index.html").read_text(encoding="utf-8")
    assert "configs/eval/vit_b16/ade20k_150.yaml" in shown
    formulas = (site / "video/index.html").read_text(encoding="utf-8")
    assert formulas.count("<math ") > 10
    assert 'class="arithmatex"' not in formulas
    assert not list(site.rglob("hooks*"))


def test_pages_load_nothing_from_other_sites(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)', text)
        assert not loaded, path


SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
LOOKED_AT = (
    "index.html",
    *(f"{name}/index.html" for name in ("tutorials", "reference", "training", "results", "label")),
)
SMALL_TEXTS = """return [...document.querySelectorAll('article p, article li')]
    .filter(each => parseFloat(getComputedStyle(each).fontSize) < 12).length"""
MISSING_PICTURES = (
    "return [...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
)


def test_pages_are_readable_on_a_desktop_and_on_a_phone(site: Path, tmp_path: Path) -> None:
    """No page is wider than the screen: wide tables and code scroll by themselves."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from tests.demo.browser import BROWSER, DRIVER, browser

    if not (BROWSER and DRIVER):
        pytest.skip("no Chromium and chromedriver here")
    with browser(tmp_path) as driver:
        for size, (width, height, mobile) in SIZES.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            for name in LOOKED_AT:
                driver.get((site / name).as_uri())
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width, (size, name)
                assert not driver.execute_script(SMALL_TEXTS), (size, name)
                assert driver.execute_script(MISSING_PICTURES) == [], (size, name)
