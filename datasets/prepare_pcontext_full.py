#!/usr/bin/env python3
"""Prepares PASCAL Context (459 classes): from the download to what the registration reads.

    python datasets/prepare_pcontext_full.py --root datasets --raw ~/Downloads
    python datasets/prepare_pcontext_full.py --root datasets --check

Download: VOCtrainval_03-May-2010.tar, trainval.tar.gz, trainval_merged.json (for the splits).
Result below the root:
    images  pcontext_full/{train,val}/image
    labels  pcontext_full/{train,val}/label/*.tif
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
    return command("pcontext_full", __doc__, arguments, default_root=root)


if __name__ == "__main__":
    sys.exit(guarded(main))
