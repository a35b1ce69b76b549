"""Compare two evaluations of one data set on an HTML page, the largest change first.

A and B are folders of `san visualize predictions`; the page links to their pictures.

Example:
  san visualize compare pictures_before pictures_after --out compare.html
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.cli.options import path_option
from san.cli.visualize_images import FORMAT
from san.cli.visualize_predictions import COLUMNS, SCORES_FILE, check_page
from san.io.files import check_file_size, write_whole
from san.record import parse_json, read_record
from san.visualize.page import Page, Row, Strip, render_page

SavedEntry = dict[str, Any]


@dataclass(frozen=True)
class ScoredImage:
    """An image in the file of scores."""

    name: str
    stem: str
    miou: float | None
    accuracy: float | None
    thumb_size: tuple[int, int] | None
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ScoresFile:
    """The file of scores of `san visualize predictions`."""

    format: int
    dataset: str
    classes: tuple[str, ...]
    images: tuple[ScoredImage, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("a", type=path_option, metavar="A", help="folder of the first evaluation")
    parser.add_argument("b", type=path_option, metavar="B", help="folder of the other")
    parser.add_argument(
        "--out",
        type=path_option,
        default=Path("compare.html"),
        metavar="FILE",
        help="page to write (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    a, b = _read(args.a), _read(args.b)
    if (a["dataset"], a["classes"]) != (b["dataset"], b["classes"]):
        raise ValueError(f"{args.a} is of {a['dataset']} and {args.b} of {b['dataset']}; compare runs on one data set")
    images_b = {entry["name"]: entry for entry in b["images"]}
    pairs = [(entry, images_b[entry["name"]]) for entry in a["images"] if entry["name"] in images_b]
    if not pairs:
        raise ValueError(f"{args.a} and {args.b} have no image in common")
    check_page(args.out)
    rows = [_row(first, second, args, a["classes"]) for first, second in pairs]
    rows.sort(key=lambda row: (-abs(row.delta or 0), row.name))
    deltas = [row.delta for row in rows if row.delta is not None]
    facts = [
        ("images in both", str(len(rows))),
        ("mean of the images' mIoU, A → B", f"{_mean(pairs, 0)} → {_mean(pairs, 1)}"),
        ("better in B", str(sum(delta > 0.05 for delta in deltas))),
        ("worse in B", str(sum(delta < -0.05 for delta in deltas))),
    ]
    title = f"{a['dataset']}: A {args.a.name}, B {args.b.name}"
    write_whole(args.out, render_page(Page(title, facts, COLUMNS, rows, "change")))
    print(f"{title}: {', '.join(f'{key} {value}' for key, value in facts)} -> {args.out}")
    return 0


_MAX_BYTES = 500_000_000  # of a file of scores


def _read(folder: Path) -> dict[str, Any]:
    """Read the scores of a folder."""
    path = folder / SCORES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make the folder with `san visualize predictions --out {folder}`"
        )
    check_file_size(path, _MAX_BYTES)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged; make the folder again with `san visualize predictions`") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is of another version; make the folder again with `san visualize predictions`")
    try:
        read_record(ScoresFile, content)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); make the folder again with `san visualize predictions`"
        ) from None
    return content


def _row(first: SavedEntry, second: SavedEntry, args: argparse.Namespace, classes: list[str]) -> Row:
    """Return the row of an image; its score is that of B."""
    before, after = first["miou"], second["miou"]
    delta = None if before is None or after is None else after - before
    strips = tuple(
        _strip(letter, folder, entry, args.out.parent)
        for letter, folder, entry in (("A", args.a, first), ("B", args.b, second))
        if entry["thumb_size"] is not None
    )
    indices = sorted({*first["classes"], *second["classes"]})
    return Row(first["name"], after, second["accuracy"], strips, (), tuple(classes[i] for i in indices), delta)


def _strip(letter: str, folder: Path, entry: SavedEntry, start: Path) -> Strip:
    base = Path(os.path.relpath(folder, start)).as_posix()
    miou = "–" if entry["miou"] is None else f"{entry['miou']:.1f} %"
    stem, size = entry["stem"], entry["thumb_size"]
    caption = f"{letter}: mIoU {miou}"
    return Strip(f"{base}/thumbs/{stem}.jpg", f"{base}/panels/{stem}.jpg", (size[0], size[1]), caption)


def _mean(pairs: list[tuple[SavedEntry, SavedEntry]], which: int) -> str:
    values = [pair[which]["miou"] for pair in pairs if pair[0]["miou"] is not None and pair[1]["miou"] is not None]
    return f"{sum(values) / len(values):.1f} %" if values else "–"
