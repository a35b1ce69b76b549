#!/usr/bin/env python3
"""The web demo: the command `san demo` as a script.

python tools/demo.py --model shapes
"""

from __future__ import annotations

import sys

from san.cli import demo
from san.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(demo))
