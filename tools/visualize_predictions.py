#!/usr/bin/env python3
"""Panels and an HTML page of an evaluation's predictions: `san visualize predictions`."""

from __future__ import annotations

import sys

from san.cli import visualize_predictions
from san.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(visualize_predictions))
