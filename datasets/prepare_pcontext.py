#!/usr/bin/env python3
"""Prepares PASCAL Context (59 classes): converts the download to the registered folders.

    python datasets/prepare_pcontext.py --root datasets --raw ~/Downloads
    python datasets/prepare_pcontext.py --root datasets --check

Download: VOCtrainval_03-May-2010.tar, trainval_merged.json.
Result below the root:
    images  pcontext/{train,val}/image
    labels  pcontext/{train,val}/label/*.png
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("pcontext", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
