"""The command line that all `datasets/prepare_<set>.py` share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from san.data.preparation.engine import SplitSummary, Summary, check, prepare
from san.data.preparation.sources import Options
from san.files import user_path

_MAX_LINES = 20


def build_parser(description: str | None, default_root: str) -> argparse.ArgumentParser:
    """The options of every script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(default_root),
        help="datasets root, written to and searched for the download (default: DETECTRON2_DATASETS, else datasets; "
        f"here {default_root})",
    )  # fmt: skip
    parser.add_argument(
        "--raw", type=Path, nargs="+", default=[], metavar="PATH",
        help="folders or archives of the download, looked into before the root; left unchanged",
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
        "--partial", action="store_true", help="a part of the set is meant: counts below the published ones are fine"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; read everything prepared and say whether it is right"
    )
    return parser


def main(name: str, description: str | None, arguments: Sequence[str] | None, *, default_root: str) -> int:
    """Run a script.

    Args:
        name: the set, key of `PREPARATIONS`.
        description: text of `--help`.
        arguments: the command line; None takes the process's.
        default_root: `--root` where none is given.

    Returns:
        exit status: 0 when the set is complete and right, 1 when not, 130 when interrupted.
    """
    parser = build_parser(description, default_root)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = Options(
            root=user_path(str(args.root), "--root"), raw=tuple(user_path(str(raw), "--raw") for raw in args.raw),
            workers=args.workers,
            splits=tuple(dict.fromkeys(args.splits)), link=args.link, partial=args.partial, progress=True,
        )  # fmt: skip
        summary = (check if args.check else prepare)(name, options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is written stays, run again to go on\n")
        return 130
    sys.stdout.write(report(summary, checked=args.check))
    return 0 if summary.good else 1


def report(summary: Summary, *, checked: bool) -> str:
    """The summary as text: a line a split, then notes and problems."""
    lines = [f"{summary.title} in {summary.root}"]
    for split in summary.splits:
        did = "checked" if checked else f"{split.written:,} files written, {split.present:,} there before"
        lines.append(f"  {split.registered}: {split.labels:,} of {split.expected:,} labels; {did}")
        lines += [f"    note: {note}" for note in split.notes]
        lines += _problem_lines(split)
    wrong = sum(len(split.problems) for split in summary.splits)
    lines.append("  all is well" if summary.good else f"  {wrong} problem{'s'[: wrong != 1]}")
    return "\n".join(lines) + "\n"


def _problem_lines(split: SplitSummary) -> list[str]:
    lines = [f"    problem: {problem}" for problem in split.problems[:_MAX_LINES]]
    rest = len(split.problems) - _MAX_LINES
    return [*lines, f"    … and {rest} more problems"] if rest > 0 else lines
