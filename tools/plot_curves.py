#!/usr/bin/env python3
"""Draws the curves of a run: losses, learning rate, evaluations.

    python tools/plot_curves.py output/san_shapes_quick
    python tools/plot_curves.py output/san_shapes_quick --output curves.png

Training draws them itself at its end, as `curves.png` in its folder; this is for a run that is under way or has ended
early.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.options import path_option
from san.visualize import plot_curves


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_option, help="folder of a run, or its metrics.json")
    parser.add_argument("--output", type=path_option, help="PNG to write (default: curves.png beside metrics.json)")
    args = parser.parse_args(arguments)
    metrics = args.run / "metrics.json" if args.run.is_dir() else args.run
    output = args.output or metrics.with_name("curves.png")
    try:
        plot_curves(metrics, output, title=metrics.resolve().parent.name)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(output)


if __name__ == "__main__":
    sys.exit(guarded(main))
