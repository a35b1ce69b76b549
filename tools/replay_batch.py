#!/usr/bin/env python3
"""Computes the batches again whose losses or gradients were not finite.

python tools/replay_batch.py output/run/nonfinite_0001234.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli import replay
from san.cli.main import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_tool(replay, arguments)


if __name__ == "__main__":
    sys.exit(main())
