"""Prepare a benchmark: from its publisher's download to the files of training and evaluation.

Examples:
  san prepare voc --root datasets --raw ~/Downloads
  san prepare voc --root datasets --check

datasets/README.md and the help of datasets/prepare_<set>.py, which is the same command, name the downloads of each set.
A stopped run continues when the command is repeated.

Exit codes: 0 the set is complete and correct, 1 it is not, or an error, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from san.cli.main import guarded
from san.cli.options import path_option
from san.io.errors import INTERRUPTED

if TYPE_CHECKING:
    from san.preparation import SplitSummary, Summary

_MAX_LINES = 20
_SETS = (
    "ade20k",
    "ade20k_full",
    "ade20k_panoptic",
    "coco_panoptic",
    "coco_stuff",
    "pcontext",
    "pcontext_full",
    "voc",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("name", choices=_SETS, metavar="SET", help=f"one of {', '.join(_SETS)}")
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    parser.add_argument(
        "--root", type=path_option, default=root,
        help="datasets root, written to and searched for the download (default: DETECTRON2_DATASETS, else datasets; "
        f"here {root})",
    )  # fmt: skip
    parser.add_argument(
        "--raw", type=path_option, nargs="+", default=[], metavar="PATH",
        help="folders or archives of the download, searched before the root; left unchanged",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes (default: %(default)s, one a core)"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val"), default=["train", "val"],
        help="what to prepare; val alone needs no training download (default: train val)",
    )  # fmt: skip
    parser.add_argument("--link", action="store_true", help="symbolic links to the images instead of copies")
    parser.add_argument(
        "--partial", action="store_true", help="prepare only a part of the set: fewer files than published are accepted"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; read all prepared files and report errors"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare or check a set; return the exit code.

    Raises:
        ValueError, OSError: the download is missing or damaged, or the root cannot be written.
    """
    from san.data.checking import format_report
    from san.preparation import PreparationOptions, check, prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = PreparationOptions(
        root=args.root,
        raw=tuple(args.raw),
        workers=args.workers,
        splits=tuple(dict.fromkeys(args.splits)),
        link=args.link,
        partial=args.partial,
        progress=True,
    )
    if args.check:
        reports = check(args.name, options)
        for report in reports:
            print(f"{report.target.name}\n{format_report(report, file=None)}")
        return 0 if all(report.ok for report in reports) else 1
    try:
        summary = prepare(args.name, options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; written files stay, repeat the command to continue\n")
        return INTERRUPTED
    sys.stdout.write(summary_text(summary))
    return 0 if summary.good else 1


def run_script(name: str, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Run datasets/prepare_<set>.py; return the exit code.

    Args:
        name: the set.
        description: text of `--help`.
        arguments: the command line without the program's name; by default the process's.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_options(parser)
    args = parser.parse_args(arguments, argparse.Namespace(name=name))
    return guarded(lambda: run(args))


def summary_text(summary: Summary) -> str:
    """Return the summary as text: a line per split, then notes and problems."""
    lines = [f"{summary.title} in {summary.root}"]
    for split in summary.splits:
        made = f"{split.written:,} files written, {split.present:,} there before"
        lines.append(f"  {split.registered}: {split.labels:,} of {split.expected:,} labels; {made}")
        lines += [f"    note: {note}" for note in split.notes]
        lines += _problem_lines(split)
    wrong = sum(len(split.problems) for split in summary.splits)
    lines.append("  all is well" if summary.good else f"  {wrong} problem{'' if wrong == 1 else 's'}")
    return "\n".join(lines) + "\n"


def _problem_lines(split: SplitSummary) -> list[str]:
    lines = [f"    problem: {problem}" for problem in split.problems[:_MAX_LINES]]
    rest = len(split.problems) - _MAX_LINES
    return [*lines, f"    … and {rest} more problems"] if rest > 0 else lines
