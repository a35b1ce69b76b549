#!/usr/bin/env python3
"""Prepares PASCAL Context (59 classes): from the download to what the registration reads.

    python datasets/prepare_pcontext.py --root datasets --raw ~/Downloads
    python datasets/prepare_pcontext.py --root datasets --check

Download: VOCtrainval_03-May-2010.tar, trainval_merged.json.
Result below the root:
    images  pcontext/{train,val}/image
    labels  pcontext/{train,val}/label/*.png
A run that was stopped goes on where it was when started again. See datasets/README.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.data.preparation.command import main as command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    return command("pcontext", __doc__, arguments, default_root=root)


if __name__ == "__main__":
    sys.exit(guarded(main))
