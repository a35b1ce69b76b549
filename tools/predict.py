#!/usr/bin/env python3
"""The command `san predict` as a script.

python tools/predict.py street.jpg --vocab "car, road, sky, person" --out predictions
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli import predict
from san.cli.main import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_tool(predict, arguments)


if __name__ == "__main__":
    sys.exit(main())
