"""Renders the HTML page of an error analysis: mask errors against classification errors (docs/error_analysis.md).

The page is one file without scripts and external resources; its picture is a separate file. All names are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from san.visualize.page import facts_list, html_document, path_link, percent

_KINDS = (
    ("as predicted", "the evaluation itself"),
    ("true masks", "the model names the segments of the ground truth"),
    ("true names", "every proposal has the class that it overlaps most"),
    ("best proposals", "of each class in an image, the proposal of the highest IoU"),
)

_STYLE = """
h2{font-size:18px;margin:26px 0 6px}
p{max-width:78ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px}
th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--faint);font-weight:600}
th.text,td.text{text-align:left;white-space:normal;min-width:110px;overflow-wrap:anywhere}
td meter{width:110px;margin:0 0 0 8px}
.heat{display:block;overflow-x:auto}
.heat img{display:block;width:100%;min-width:700px;max-width:980px;height:auto;background:#fff;border-radius:6px}
@media (max-width:700px){td.text:last-child{min-width:240px}}
"""


@dataclass(frozen=True)
class ClassErrors:
    """One class of the page.

    Attributes:
        name: name of the class.
        ious: IoU in percent: as predicted, with true masks, with true names, of the best proposals.
        num_segments: number of its segments, one per image that has the class.
        shares: shares of its segments in percent: recalled at IoU 0.5 and 0.75, classified correctly.
        taken_for: class predicted for most of its wrong pixels; "" if there is none.
    """

    name: str
    ious: tuple[float, ...]
    num_segments: int
    shares: tuple[float, ...]
    taken_for: str = ""


@dataclass(frozen=True)
class ErrorPage:
    """The content of the page.

    Attributes:
        title: the data set and the part of it.
        means: "mIoU", and the mIoU of groups -> four values in percent, as in `ClassErrors.ious`.
        segments: figures over all classes, see `san.evaluation.oracle_report.oracle_figures`.
        classes: present classes, in the order shown.
        pairs: (truth, prediction, pixels, share of the truth's pixels, share of all errors, pixels with true masks).
        num_pairs: total number of pairs.
        picture: file name of the heat map; "" if there is none.
        table: file name of the table of all pairs.
    """

    title: str
    means: Mapping[str, tuple[float, ...]]
    segments: Mapping[str, Any]
    classes: Sequence[ClassErrors]
    pairs: Sequence[tuple[str, str, int, float, float, int]]
    num_pairs: int
    picture: str
    table: str


def render_error_page(page: ErrorPage) -> str:
    """Render the page as HTML."""
    title = f"Masks or names: {page.title}"
    parts = [
        f"<header><h1>{escape(title)}</h1></header>",
        f"<main><p>{escape(verdict(page.means['mIoU']))}</p>",
        _means(page.means),
        "<h2>Segments</h2>",
        "<p>A segment is all pixels of one class in one image. It is recalled where a proposal has the IoU with it; it "
        "is named right where the proposal that is most about it has its class.</p>",
        _segments(page.segments),
        "<h2>Confusions</h2>",
        _picture(page.picture),
        f"<p>The {len(page.pairs)} largest of {page.num_pairs} pairs; all are in "
        f'<a href="{path_link(page.table)}">{escape(page.table)}</a>. The last column counts the pixels that are '
        "confused with true masks, too: there the name alone is wrong.</p>",
        _pairs(page.pairs),
        "<h2>Classes</h2>",
        _zero(page.classes),
        _classes(page.classes),
        "</main>",
    ]
    return html_document(title, "\n".join(part for part in parts if part), style=_STYLE)


def verdict(means: Sequence[float]) -> str:
    """Return a sentence that says which kind of error reduces mIoU more.

    Args:
        means: mIoU in percent: as predicted, with true masks, with true names, of the best proposals.
    """
    plain, masks, names, _ = means
    if any(map(math.isnan, means)):
        return "No pixel of the ground truth is judged, so that there is nothing to compare."
    figures = (
        f"From {plain:.1f} % mIoU as predicted, true names give {names - plain:+.1f} points and true masks "
        f"{masks - plain:+.1f}."
    )
    if abs(names - masks) < 1:
        return f"{figures} Names and masks cost about the same."
    more, less = ("names", "masks") if names > masks else ("masks", "names")
    return f"{figures} Wrong {more} cost more than wrong {less}."


def _means(means: Mapping[str, tuple[float, ...]]) -> str:
    """Render the mIoU of the four kinds as rows, with groups as further columns."""
    rows = []
    for index, (kind, about) in enumerate(_KINDS):
        cells = [
            _bar(value) if mean == "mIoU" else _share(value)
            for mean, value in ((m, v[index]) for m, v in means.items())
        ]
        rows.append([escape(kind), *cells, escape(about)])
    return _table(["", *means, "what is given"], rows, text_columns={0, len(means) + 1})


def _segments(figures: Mapping[str, Any]) -> str:
    return facts_list(
        [
            ("segments", f"{figures['num_segments']['all']:,}"),
            ("recalled at IoU 0.5", _share(figures["recall_50"])),
            ("recalled at IoU 0.75", _share(figures["recall_75"])),
            ("named right", _share(figures["named_right"])),
            ("of those recalled at 0.5", _share(figures["named_right_recalled_50"])),
        ]
    )


def _picture(name: str) -> str:
    link = path_link(name)
    return f'<a class="heat" href="{link}"><img src="{link}" alt="heat map of confusions"></a>' if name else ""


def _pairs(pairs: Sequence[tuple[str, str, int, float, float, int]]) -> str:
    rows = [
        [str(rank), escape(truth), escape(other), f"{pixels:,}", _share(of_truth), _share(of_errors), f"{named:,}"]
        for rank, (truth, other, pixels, of_truth, of_errors, named) in enumerate(pairs, 1)
    ]
    heads = ["#", "ground truth", "predicted", "pixels", "of the class", "of all errors", "with true masks"]
    return _table(heads, rows, text_columns={1, 2})


def _zero(classes: Sequence[ClassErrors]) -> str:
    """Render the classes with IoU 0, and how often a proposal covers them."""
    zero = [each for each in classes if each.ious[0] == 0]
    if not zero:
        return "<p>Every class of the ground truth has an IoU above 0.</p>"
    items = "".join(
        f"<li>{escape(each.name)} <i>{_share(each.shares[0])} recalled"
        f"{f', → {escape(each.taken_for)}' if each.taken_for else ''}</i></li>"
        for each in zero
    )
    return f'<p>{len(zero)} of {len(classes)} classes have an IoU of 0:</p><ul class="chips">{items}</ul>'


def _classes(classes: Sequence[ClassErrors]) -> str:
    rows = [
        [
            escape(each.name),
            _bar(each.ious[0]),
            *map(_share, each.ious[1:]),
            f"{each.num_segments:,}",
            *map(_share, each.shares),
            escape(each.taken_for),
        ]
        for each in classes
    ]
    heads = ["class", *(f"IoU {kind}" if not index else kind for index, (kind, _) in enumerate(_KINDS))]
    heads += ["segments", "recall 0.5", "recall 0.75", "named right", "mostly taken for"]
    return _table(heads, rows, text_columns={0, len(heads) - 1})


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: set[int]) -> str:
    """Render a table that scrolls horizontally on narrow screens; its cells are HTML."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (' class="text"' if index in text_columns else "" for index in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{cell}</{tag}>" for m, cell in zip(marked, cells, strict=True)) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    head = line("th", [*map(escape, heads)])
    return f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'


def _share(value: float) -> str:
    return percent(None if math.isnan(value) else value)


def _bar(value: float) -> str:
    """Render a percentage with a bar."""
    return f'{_share(value)}<meter min="0" max="100" value="{0 if math.isnan(value) else value:.1f}"></meter>'
