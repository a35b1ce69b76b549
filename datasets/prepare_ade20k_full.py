#!/usr/bin/env python3
"""Prepares ADE20K full, release 2021_17_01 (847 classes): converts the download to the registered folders.

    python datasets/prepare_ade20k_full.py --root datasets --raw ~/Downloads
    python datasets/prepare_ade20k_full.py --root datasets --check

Download: ADE20K_2021_17_01.zip, or the folder it unpacks to.
Result below the root:
    images  ADE20K_2021_17_01/images_detectron2/{training,validation}
    labels  ADE20K_2021_17_01/annotations_detectron2/{training,validation}/*.tif
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("ade20k_full", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
