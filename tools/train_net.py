#!/usr/bin/env python3
"""Trains or evaluates SAN.

    python tools/train_net.py --config-file configs/shapes/san_shapes_quick.yaml
    python tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml --eval-only MODEL.WEIGHTS san_vit_b16.pth
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/san_clip_vit_b16_coco.yaml

See docs/training.md.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from torch.multiprocessing.spawn import ProcessExitedException

from san.d2.api import CfgNode, default_argument_parser
from san.d2.config import load_config
from san.d2.launcher import start_workers
from san.d2.run import run

USER_ERRORS = (ValueError, OSError, FloatingPointError, KeyboardInterrupt)
"""What wrong input raises: told in one line. Anything else is a defect of ours and shows its stack trace."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: Detectron2's, and ``--traceback``."""
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train or evaluate SAN. Without GPUs, --num-gpus N starts N processes on the CPU."
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised (put it before KEYs)")
    return parser.parse_args(arguments)


def worker(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What every worker process does."""
    guarded(lambda: run(cfg, eval_only=args.eval_only, resume=args.resume), show_traceback=args.traceback)


def guarded(action: Callable[[], object], *, show_traceback: bool) -> None:
    """Calls something; ends the program with one line and status 1 where a user's input was wrong."""
    try:
        action()
    except ProcessExitedException as error:  # the worker has told why
        sys.exit(error.exit_code if error.exit_code > 0 else 1)
    except USER_ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        sys.exit(f"error: {what}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and the configuration, and starts the workers."""
    args = parse_arguments(arguments)

    def start() -> None:
        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        start_workers(worker, cfg, args)

    guarded(start, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
