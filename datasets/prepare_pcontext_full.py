#!/usr/bin/env python3
"""Prepares PASCAL Context (459 classes): converts the download to the registered folders.

    python datasets/prepare_pcontext_full.py --root datasets --raw ~/Downloads
    python datasets/prepare_pcontext_full.py --root datasets --check

Download: VOCtrainval_03-May-2010.tar, trainval.tar.gz, trainval_merged.json (for the splits).
Result below the root:
    images  pcontext_full/{train,val}/image
    labels  pcontext_full/{train,val}/label/*.tif
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("pcontext_full", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
