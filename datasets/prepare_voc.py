#!/usr/bin/env python3
"""Prepares PASCAL VOC 2012 (20 classes): converts the download to the registered folders.

    python datasets/prepare_voc.py --root datasets --raw ~/Downloads
    python datasets/prepare_voc.py --root datasets --check

Download: VOCtrainval_11-May-2012.tar, SegmentationClassAug.zip, trainaug.txt (10,582 ids).
Result below the root:
    images  VOC2012/JPEGImages
    labels  VOC2012/annotations_detectron2/{train,val}/*.png
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("voc", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
