#!/usr/bin/env python3
"""The command `san benchmark` as a script.

python tools/benchmark.py --quick
python tools/benchmark.py --bars --plain --runs 9
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli import benchmark
from san.cli.main import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_tool(benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())
