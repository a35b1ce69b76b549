#!/usr/bin/env python3
"""Prepares ADE20K panoptic (100 things, 50 stuff classes): makes segments from class maps and instances.

    python datasets/prepare_ade20k_panoptic.py --root datasets --raw ~/Downloads
    python datasets/prepare_ade20k_panoptic.py --root datasets --check

Download: ADEChallengeData2016.zip, annotations_instance.tar.
Result below the root:
    images  ADEChallengeData2016/images/{training,validation}
    labels  ADEChallengeData2016/ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/*.png
Repeat the command to resume a stopped run. See datasets/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from san.cli.main import guarded
from san.cli.prepare import run_script


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_script("ade20k_panoptic", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(guarded(main))
