#!/usr/bin/env python3
"""Trains or evaluates SAN: the command `san train` as a script.

    python tools/train_net.py --config-file configs/shapes/san_shapes_quick.yaml
    python tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml --eval-only MODEL.WEIGHTS san_vit_b16.pth
    python tools/train_net.py --config-file configs/custom/finetune_vit_b16.yaml --dataset my_data/dataset.yaml
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml

See docs/training.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from san.cli import train
from san.cli.main import exit_on_user_error, guarded, make_parser
from san.cli.train import worker

__all__ = ["main", "parse_arguments", "worker"]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line: Detectron2's options, ``--data-root``, ``--dataset`` and ``--traceback``."""
    return make_parser(train).parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and the configuration, and start the workers."""
    args = parse_arguments(arguments)
    with exit_on_user_error(show_traceback=args.traceback):
        train.start(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
