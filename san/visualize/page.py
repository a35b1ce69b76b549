"""Renders an evaluation as an HTML page: one row per image with its score, pictures and worst classes.

The page is one file without external resources, works from `file://`, and escapes every name. Its pictures are
separate files, which are loaded when they come into view.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from san.visualize.page_assets import SCRIPT, STYLE

GENERATOR = "san visualize"
"""Marks the pages of this module, so that no other page is overwritten."""


@dataclass(frozen=True)
class Strip:
    """A strip of small pictures that links to a large picture.

    Attributes:
        thumb, picture: paths relative to the page, with slashes.
        size: width and height of `thumb` in pixels.
        caption: text below it, such as the name of the run.
    """

    thumb: str
    picture: str
    size: tuple[int, int]
    caption: str = ""


@dataclass(frozen=True)
class ClassLine:
    """One class of an image or of a data set.

    Attributes:
        name: class name.
        iou: in percent; None if the class is not in the ground truth.
        note: remark, such as the class it is confused with.
        color: its colour in the pictures: red, green, blue in 0..255.
    """

    name: str
    iou: float | None
    note: str = ""
    color: tuple[int, int, int] = (128, 128, 128)


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        name: name of the image, shown and searched.
        miou, accuracy: in percent; None if no pixel is labelled.
        strips: its pictures.
        worst: classes to list, worst first.
        classes: names of all its classes, which are searched.
        delta: mIoU of run B minus run A, if two runs are compared.
    """

    name: str
    miou: float | None
    accuracy: float | None
    strips: tuple[Strip, ...]
    worst: tuple[ClassLine, ...] = ()
    classes: tuple[str, ...] = ()
    delta: float | None = None


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: heading.
        facts: (name, value) pairs below the heading.
        columns: headings of the small pictures of a strip, in order.
        rows: the images in the initial order.
        sort: the initial order: worst, best, name or change.
        classes: IoU of each class over the whole data set.
        problems: (file, problem) of the omitted images.
        links: (text, path relative to the page) of pages beside it.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    columns: Sequence[str]
    rows: Sequence[Row]
    sort: str = "worst"
    classes: Sequence[ClassLine] = ()
    problems: Sequence[tuple[str, str]] = field(default=())
    links: Sequence[tuple[str, str]] = field(default=())


def html_document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Render a page that loads nothing from other places and runs no script except the given one.

    Args:
        title: title of the window.
        body: HTML, all texts escaped.
        style: CSS rules in addition to the shared ones.
        script: the script, placed at the end.
    """
    policy = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body += f"\n<script>{script}</script>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="{GENERATOR}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def render_page(page: Page) -> str:
    """Render the page as HTML."""
    orders = {"worst": "worst first", "best": "best first", "name": "by name"}
    if any(row.delta is not None for row in page.rows):
        orders = {"change": "largest change first", **orders}
    options = "".join(
        f'<option value="{key}"{" selected" if key == page.sort else ""}>{text}</option>'
        for key, text in orders.items()
    )
    links = "".join(f'<p><a href="{path_link(path)}">{escape(text)}</a></p>\n' for text, path in page.links)
    body = "\n".join(_row(row, rank) for rank, row in enumerate(page.rows, 1))
    names = sorted({name for row in page.rows for name in row.classes}, key=str.lower)
    content = f"""<header>
<div class="top"><h1>{escape(page.title)}</h1><button id="theme" type="button" hidden>dark / light</button></div>
{facts_list(page.facts)}
{links}{_problems(page.problems)}{_classes(page.classes)}
</header>
<form id="tools" role="search" hidden>
<label>Filter <input id="filter" type="search" list="names" autocomplete="off" placeholder="class or file name"></label>
<datalist id="names">{"".join(f'<option value="{escape(name)}">' for name in names)}</datalist>
<label>Sort <select id="sort">{options}</select></label>
<output id="count"></output>
</form>
<div class="columns" aria-hidden="true">{"".join(f"<span>{escape(column)}</span>" for column in page.columns)}</div>
<main id="rows">
{body}
</main>
<dialog id="viewer"><form method="dialog"><span id="viewer-name"></span>
<span class="hint">← → next image · Esc closes</span><button aria-label="close">×</button></form>
<img id="viewer-image" alt=""></dialog>"""
    return html_document(page.title, content, script=SCRIPT)


def facts_list(facts: Iterable[tuple[str, str]]) -> str:
    """Render (name, value) pairs as HTML."""
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    return f'<dl class="facts">{items}</dl>'


def _row(row: Row, rank: int) -> str:
    """Render one image."""
    search = "\n".join([row.name, *row.classes]).lower()
    strips = "".join(_strip(strip, row.name) for strip in row.strips)
    numbers = "".join(
        f' data-{key}="{value:.6f}"' for key, value in (("miou", row.miou), ("delta", row.delta)) if value is not None
    )
    delta = "" if row.delta is None else f'<span class="{_sign(row.delta)}">{row.delta:+.1f}</span>'
    return (
        f'<article data-name="{escape(row.name)}" data-search="{escape(search)}"{numbers}>\n'
        f'<div class="score"><span class="rank">{rank}</span><b>{percent(row.miou)}</b>{delta}<small>mIoU</small>'
        f'<meter min="0" max="100" value="{row.miou or 0:.1f}"></meter>'
        f"<small>{percent(row.accuracy)} of pixels right</small></div>\n"
        f'<div class="pictures"><div class="name">{escape(row.name)}</div>{strips}{_chips(row.worst)}</div>\n</article>'
    )


def _strip(strip: Strip, name: str) -> str:
    """Render the small pictures of an image as a link to the large one."""
    width, height = strip.size
    caption = f"<small>{escape(strip.caption)}</small>" if strip.caption else ""
    return (
        f'<a class="strip" href="{path_link(strip.picture)}"><img loading="lazy" decoding="async" '
        f'src="{path_link(strip.thumb)}" width="{width}" height="{height}" alt="{escape(name)}">{caption}</a>'
    )


def _chips(lines: Iterable[ClassLine]) -> str:
    chips = "".join(f"<li>{_swatch(line.color)}{escape(line.name)} <b>{percent(line.iou)}</b>"
                    f"{f' <i>{escape(line.note)}</i>' if line.note else ''}</li>" for line in lines)  # fmt: skip
    return f'<ul class="chips">{chips}</ul>' if chips else ""


def _classes(lines: Sequence[ClassLine]) -> str:
    """Render the IoU per class over the data set as a collapsible list."""
    if not lines:
        return ""
    items = "".join(
        f'<li><button type="button" data-class="{escape(line.name)}">{_swatch(line.color)}{escape(line.name)}</button>'
        f"<b>{percent(line.iou)}</b></li>"
        for line in lines
    )
    return (
        f"<details><summary>IoU of the {len(lines)} classes over all images, worst first "
        f'(a click filters)</summary><ol class="classes">{items}</ol></details>'
    )


def _problems(problems: Sequence[tuple[str, str]]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li><code>{escape(name)}</code> {escape(what)}</li>" for name, what in problems)
    return f'<details class="problems" open><summary>{len(problems)} left out</summary><ul>{items}</ul></details>'


def _swatch(color: tuple[int, int, int]) -> str:
    red, green, blue = color
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def path_link(path: str) -> str:
    """Return a relative path as a fully escaped URL that cannot be read as `scheme:`."""
    return escape(quote(path if path.startswith(".") else f"./{path}", errors="surrogateescape"))


def percent(value: float | None) -> str:
    """Format a percentage for all pages; None is a dash."""
    return "–" if value is None else f"{value:.1f} %"


def _sign(value: float) -> str:
    return "up" if value > 0.05 else "down" if value < -0.05 else "same"
