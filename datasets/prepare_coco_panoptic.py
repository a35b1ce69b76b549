#!/usr/bin/env python3
"""Prepares COCO panoptic (80 things, 53 stuff classes): unpacks and checks the download.

    python datasets/prepare_coco_panoptic.py --root datasets --raw ~/Downloads
    python datasets/prepare_coco_panoptic.py --root datasets --check

Download: train2017.zip, val2017.zip, panoptic_annotations_trainval2017.zip.
Result below the root:
    images  coco/{train2017,val2017}
    labels  coco/annotations/panoptic_{train2017,val2017}.json, coco/panoptic_{train2017,val2017}/*.png
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("coco_panoptic", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
