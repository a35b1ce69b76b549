"""Writes a `CheckReport` as text for the terminal, CSV and JSON."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path

import numpy as np

from san.data.checking.pair import Finding
from san.data.checking.report import HEADLINES, CheckReport
from san.io.errors import listed
from san.io.files import write_text

_MAX_ROWS = 60  # classes in the printed table; above, the most and the least frequent
_HEAD, _TAIL = 40, 10
_NAME_WIDTH, _BAR_WIDTH = 34, 24
_WIDTH = 110
_MAX_SHOWN = 5  # findings of a kind in the printed report
_MAX_SHOWN_ALONE = 20  # where no file has all
_MAX_SHORT = 30  # findings of a kind where they are class names
_ONCE = ("no_data", "wrong_count", "image_without_label")  # kinds with at most one finding


def format_report(report: CheckReport, *, seconds: float | None = None, file: str | None = "report.json") -> str:
    """Format a report: counts, then errors, then notes.

    Args:
        report: report of one data set.
        seconds: duration of the check.
        file: file that contains all findings; None if none is written, in which case more findings are listed here.
    """
    target = report.target
    published = "" if target.num_pairs is None else f" (published: {target.num_pairs:,})"
    took = "" if seconds is None else f" in {seconds:.1f} s, {report.num_checked / max(seconds, 1e-9):.0f} per second"
    lines = [f"pairs    {report.num_listed:,}{published}, {report.num_checked:,} read{took}"]
    if report.smallest and report.largest:
        low, high = ("x".join(map(str, size)) for size in (report.smallest, report.largest))
        lines.append(f"images   {low} to {high} (height x width)")
    lines.append(f"pixels   {_shares(report)}")
    lines.append(f"classes  {int((report.class_pixels > 0).sum()):,} of {len(target.classes):,} occur")
    for kind, wrong, findings in report.kinds():
        lines.append(f"{'WRONG' if wrong else 'note '}  {_heading(kind, findings)}")
        lines += _finding_lines(findings, file)
    lines.append("ok" if report.ok else "NOT OK")
    return "\n".join(lines)


def format_classes(report: CheckReport) -> str:
    """Format the per-class histogram, most pixels first; of more than 60 classes the first 40 and the last 10.

    The length of a bar is relative to the largest class. Classes that never occur are omitted.
    """
    pixels = report.class_pixels
    order = [index for index in np.argsort(-pixels, kind="stable").tolist() if pixels[index]]
    total, most = max(1, int(pixels.sum())), max(1, int(pixels.max(initial=0)))
    rows = [f"{'index':>5}  {'class':<{_NAME_WIDTH}} {'pixels':>15} {'share':>8} {'images':>8}"]
    for rank, index in enumerate(order):
        if len(order) > _MAX_ROWS and _HEAD <= rank < len(order) - _TAIL:
            if rank == _HEAD:
                rows.append(f"{'…':>5}  {len(order) - _HEAD - _TAIL} more classes, all of them in classes.csv")
            continue
        name, count = report.target.classes[index], int(pixels[index])
        name = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
        bar = "█" * max(1, round(_BAR_WIDTH * count / most))
        images = int(report.class_images[index])
        rows.append(
            f"{index:>5}  {name:<{_NAME_WIDTH}} {count:>15,} {count / total:>8.3%} {images:>8,}  {bar}".rstrip()
        )
    return "\n".join(rows)


def write_classes(report: CheckReport, path: str | Path) -> None:
    """Write the per-class histogram as CSV in the order of the classes; missing folders are created.

    Columns: index, class, pixels, share (of the labelled pixels, 0..1), images.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    total = max(1, int(report.class_pixels.sum()))
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "class", "pixels", "share", "images"])
        for index, name in enumerate(report.target.classes):
            pixels = int(report.class_pixels[index])
            writer.writerow([index, name, pixels, f"{pixels / total:.8f}", int(report.class_images[index])])


def write_check_report(report: CheckReport, path: str | Path) -> None:
    """Write the whole report with every finding; missing folders are created."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")


def _shares(report: CheckReport) -> str:
    labelled = int(report.class_pixels.sum())
    total = labelled + report.ignored_pixels + report.outside_pixels
    if not total:
        return "none"
    outside = f", {report.outside_pixels / total:.2%} outside the label set" if report.outside_pixels else ""
    ignored = f"{report.ignored_pixels / total:.1%} ignored (value {report.target.ignore_label})"
    return f"{total:,}: {labelled / total:.1%} with a class, {ignored}{outside}"


def _heading(kind: str, findings: list[Finding]) -> str:
    """Return the kind's name, with the number of findings if there can be several."""
    return HEADLINES[kind] if kind in _ONCE else f"{HEADLINES[kind]}: {len(findings):,}"


def _finding_lines(findings: list[Finding], file: str | None) -> list[str]:
    """Format the first findings; those without a file (class names) share one line."""
    indent = " " * 9
    if all(finding.file is None for finding in findings):
        text = listed((finding.message for finding in findings), _MAX_SHORT, "; ")
        return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False,
                             break_long_words=False)  # fmt: skip
    shown = _MAX_SHOWN if file else _MAX_SHOWN_ALONE
    lines = [f"{indent}{finding.file}: {finding.message}" for finding in findings[:shown]]
    if len(findings) > shown:
        lines.append(f"{indent}and {len(findings) - shown:,} more{f', all of them in {file}' if file else ''}")
    return lines
