#!/usr/bin/env python3
"""Prepares ADE20K SceneParse150 (150 classes): converts the download to the registered folders.

    python datasets/prepare_ade20k.py --root datasets --raw ~/Downloads
    python datasets/prepare_ade20k.py --root datasets --check

Download: ADEChallengeData2016.zip.
Result below the root:
    images  ADEChallengeData2016/images/{training,validation}
    labels  ADEChallengeData2016/annotations_detectron2/{training,validation}/*.png
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("ade20k", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
