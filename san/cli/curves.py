"""Draw the curves of a run: losses, learning rate, evaluations.

Examples:
  san curves output/san_shapes_quick
  san curves output/san_shapes_quick --output curves.png

Training draws curves.png itself at its end; this command is for a run that is still running or ended early.
"""

from __future__ import annotations

import argparse

from san.cli.options import path_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=path_option, metavar="RUN", help="folder of a run, or its metrics.json")
    parser.add_argument("--output", type=path_option, help="PNG to write (default: curves.png next to metrics.json)")


def run(args: argparse.Namespace) -> int:
    """Draw; return the exit code.

    Raises:
        FileNotFoundError, ValueError: metrics.json does not exist, or has nothing to draw.
    """
    from san.visualize import plot_curves

    metrics = args.run / "metrics.json" if args.run.is_dir() else args.run
    output = args.output or metrics.with_name("curves.png")
    plot_curves(metrics, output, title=metrics.resolve().parent.name)
    print(output)
    return 0
