#!/usr/bin/env python3
"""Prepares COCO-Stuff-164k (171 classes): from the download to what the registration reads.

    python datasets/prepare_coco_stuff.py --root datasets --raw ~/Downloads
    python datasets/prepare_coco_stuff.py --root datasets --check

Download: train2017.zip, val2017.zip, stuffthingmaps_trainval2017.zip.
Result below the root:
    images  coco/{train2017,val2017}
    labels  coco/stuffthingmaps_detectron2/{train2017,val2017}/*.png
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
    return command("coco_stuff", __doc__, arguments, default_root=root)


if __name__ == "__main__":
    sys.exit(guarded(main))
