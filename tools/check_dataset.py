#!/usr/bin/env python3
"""Reads every pair of registered data sets and says what is wrong with them: `san check` under its own name.

python tools/check_dataset.py voc_sem_seg_val ade20k_sem_seg_val --data-root datasets --workers 4
python tools/check_dataset.py --dataset my_set.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    # Not at the top: the reading processes import this file, and need nothing of it.
    from san.cli import check
    from san.cli.main import run_tool

    return run_tool(check, arguments)


if __name__ == "__main__":
    sys.exit(main())
