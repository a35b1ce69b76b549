#!/usr/bin/env python3
"""Prepares PASCAL VOC 2012 (20 classes): from the download to what the registration reads.

    python datasets/prepare_voc.py --root datasets --raw ~/Downloads
    python datasets/prepare_voc.py --root datasets --check

Download: VOCtrainval_11-May-2012.tar, SegmentationClassAug.zip, trainaug.txt (10,582 ids).
Result below the root:
    images  VOC2012/JPEGImages
    labels  VOC2012/annotations_detectron2/{train,val}/*.png
A run that was stopped continues when the command is repeated. See datasets/README.md.
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
