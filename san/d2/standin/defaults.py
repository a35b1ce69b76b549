"""Stands in for `detectron2.engine.defaults`: the command line of training scripts."""

from __future__ import annotations

import argparse
import os
import sys

_EPILOG = """
Examples:

  eight GPUs of one machine:
    {script} --config-file run.yaml --num-gpus 8
  another learning rate, and weights to start from:
    {script} --config-file run.yaml SOLVER.BASE_LR 0.001 MODEL.WEIGHTS weights.pth
  two machines, one command on each:
    {script} --config-file run.yaml --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
    {script} --config-file run.yaml --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of Detectron2's training scripts.

    Args:
        epilog: shown at the end of ``--help``; examples by default.

    Returns:
        A parser, to which a script can add its own arguments.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EPILOG.format(script=sys.argv[0]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path of the YAML configuration")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, without training")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs, or of CPU workers, *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    # The port depends on the user, so that several users of one machine do not use the same one.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = 2**15 + 2**14 + user % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="address of the first worker: tcp://<first machine>:<port>, or auto on one machine",
    )
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="configuration overrides, pairs of PATH.KEY VALUE, at the end of the command",
    )
    return parser
