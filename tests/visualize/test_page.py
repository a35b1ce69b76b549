"""The HTML page of an evaluation, read as a browser would."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote

from san.visualize.page import ClassLine, Page, Row, Strip, render_page

EVIL = "<script>alert(1)</script>\"'>&amp;/<img src=x onerror=alert(2)>#?%41.jpg"
VOID = {"meta", "img", "input", "option"}


class Reader(HTMLParser):
    """All elements with their attributes, and the texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.script = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.script += data
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_page(name: str = "0001.jpg", **changes: object) -> Page:
    strip = Strip(f"thumbs/{name}", f"panels/{name}", (400, 100), "A: mIoU 3 %")
    rows = [
        Row(name, 12.5, 80.0, (strip,), (ClassLine(name, 0.0, f"→ {name}"),), (name, "cat")),
        Row("b", None, None, ()),
    ]
    values = {"title": name, "facts": [(name, name)], "columns": ["image", "truth"], "rows": rows,
              "classes": [ClassLine(name, 3.0)], "problems": [(name, name)]}  # fmt: skip
    return Page(**(values | changes))  # type: ignore[arg-type]


def test_names_are_text_and_nothing_else() -> None:
    good, evil = Reader(render_page(make_page())), Reader(render_page(make_page(EVIL)))
    assert evil.open == []
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in good.elements]  # no element comes out of a name
    assert [set(attributes) for _, attributes in evil.elements] == [set(attributes) for _, attributes in good.elements]
    assert EVIL in evil.texts
    assert evil.script == good.script
    assert unquote(evil.all("img")[0]["src"] or "") == f"./thumbs/{EVIL}"
    assert not re.search(r"[<>\"'#?\s]", evil.all("a")[0]["href"] or "")


def test_a_path_is_never_taken_for_a_scheme() -> None:
    page = Reader(render_page(make_page(rows=[Row("a", 1.0, 1.0, (Strip("javascript:1", "data:x", (1, 1)),))])))
    assert page.all("img")[0]["src"] == "./javascript%3A1"
    assert page.all("a")[0]["href"] == "./data%3Ax"


def test_nothing_comes_from_outside_and_only_our_script_runs() -> None:
    text = render_page(make_page())
    page = Reader(text)
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http:" not in text and "https:" not in text
    assert not page.all("link")
    assert all(image.get("loading") == "lazy" and image["width"] for image in page.all("img") if image.get("src"))


def test_what_a_row_carries() -> None:
    page = Reader(render_page(make_page(sort="best")))
    first, second = page.all("article")
    assert first["data-miou"] == "12.500000"
    assert first["data-search"] == "0001.jpg\n0001.jpg\ncat"
    assert "data-miou" not in second
    assert [option["value"] for option in page.all("option") if "selected" in option] == ["best"]
    assert "change" not in [option["value"] for option in page.all("option")]
    compared = Reader(render_page(make_page(rows=[Row("a", 1.0, 1.0, (), delta=-3.0)], sort="change")))
    assert [option["value"] for option in compared.all("option") if "selected" in option] == ["change"]
    assert "-3.0" in compared.texts
