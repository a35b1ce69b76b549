"""Draw the results of a model: of an evaluation, of two evaluations compared, and attention biases of an image.

Examples:
  san visualize predictions --predictions output/shapes_quick/inference/shapes_sem_seg_val_mixed --out pictures
  san visualize compare pictures_a pictures_b --out compare.html
  san visualize attention street.jpg --vocab "car, road, sky" --out attention.png

Exit codes: 0 all done, 1 error or some images left out, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib

KINDS = {
    "predictions": "panels and an HTML page of an evaluation's predictions, worst image first",
    "compare": "an HTML page of two such evaluations, the largest change first",
    "attention": "mask proposals of one image with their attention biases, head by head",
}
"""Kinds of pictures, each a module san/cli/visualize_<kind>.py."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command per kind of picture."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, what in KINDS.items():
        module = importlib.import_module(f"san.cli.visualize_{kind}")
        part = kinds.add_parser(
            kind, help=what, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(part)


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    code: int = importlib.import_module(f"san.cli.visualize_{args.kind}").run(args)
    return code
