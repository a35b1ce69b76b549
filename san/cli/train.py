r"""Train and evaluate a model, in one process or many.

Examples:
  san train --config-file configs/shapes/san_shapes_quick.yaml
  san train --config-file configs/san_clip_vit_b16_coco.yaml --num-gpus 8
  san train --config-file configs/custom/finetune_vit_b16.yaml --dataset my_data/dataset.yaml
  san train --config-file configs/san_clip_vit_b16_coco.yaml --eval-only MODEL.WEIGHTS san_vit_b16.pth
  torchrun --nproc-per-node 8 -m san train --config-file configs/san_clip_vit_b16_coco.yaml

tools/train_net.py is the same. KEY VALUE or KEY=VALUE at the end change the configuration. Without GPUs, --num-gpus N
starts N processes on the CPU. See docs/training.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from san.cli.main import exit_on_user_error
from san.cli.options import add_dataset_options
from san.io.redaction import redact_terminal

if TYPE_CHECKING:
    from san.d2.api import CfgNode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's options of a training script, and those of data sets."""
    add_run_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="resume the run in OUTPUT_DIR, if there is one")
    parser.add_argument(
        "--move-aside",
        action="store_true",
        help="start a new run, and move the files of an earlier run in OUTPUT_DIR to a new folder next to it",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training")
    parser.set_defaults(keep_weights=False)
    add_overrides(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of training and evaluation: configuration, data sets and processes."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="path of the YAML configuration")
    add_dataset_options(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU, per machine (default: 1)"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="the same bits in every run (DETERMINISTIC; needs SEED 0 or more)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="this machine's number (default: 0)")
    parser.add_argument(
        "--dist-url",
        metavar="URL",
        help="where processes meet: tcp://<first machine>:<port>, or auto on one machine (default: this machine, at a "
        "port that depends on the user)",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Collects KEY VALUE pairs and KEY=VALUE at the end of the command line; options may follow them."""
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        action=Overrides,
        metavar="KEY VALUE",
        help="changes of the configuration; KEY=VALUE too",
    )


class Overrides(argparse.Action):
    """Split what follows the first KEY into overrides and options, and parse the options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        given: list[str] = [*values]
        pairs: list[str] = []
        while given and not given[0].startswith("-"):
            alone = "=" in given[0]
            taken, given = given[: 1 if alone else 2], given[1 if alone else 2 :]
            if not alone and (len(taken) == 1 or re.match(r"--[a-z]", taken[1])):
                parser.error(f"{taken[0][:200]} has no value; write KEY VALUE or KEY=VALUE")
            pairs += taken
        namespace.opts = [*(getattr(namespace, "opts", None) or []), *pairs]
        others = [each for each in parser._actions if each is not self and not each.option_strings]
        if given and others:  # the parser would require it again
            parser.error(f"{given[0][:200]} follows KEY VALUE; write options first")
        if given:
            parser.parse_args(given, namespace)


def run(args: argparse.Namespace) -> int:
    """Train or evaluate; return the exit code.

    Raises:
        ValueError, OSError: what the configuration did wrong.
        SystemExit: what a worker did.
    """
    start(args)
    return 0


def start(args: argparse.Namespace) -> None:
    """Read the configuration and start the processes.

    Raises:
        ValueError, OSError: what the configuration did wrong.
        SystemExit: what a worker did.
    """
    from torch.multiprocessing.spawn import ProcessExitedException

    from san.d2.api import default_argument_parser
    from san.d2.config.keys import load_config
    from san.d2.processes.launcher import start_workers

    options = [*args.opts, *(["DETERMINISTIC", "True"] if args.deterministic else [])]
    sources = {"data_root": args.data_root, "datasets": args.dataset, "imports": args.imports}
    cfg = load_config(args.config_file, options, **sources)
    cfg.freeze()
    args.dist_url = args.dist_url or default_argument_parser().get_default("dist_url")
    try:
        start_workers(worker, cfg, args)
    except ProcessExitedException as error:  # the worker has logged the error
        sys.exit(error.exit_code if error.exit_code > 0 else 1)


def worker(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run a worker process."""
    from san.d2.run import run as run_worker

    redact_terminal()  # a spawned process has its own streams
    modes = {"eval_only": args.eval_only, "resume": args.resume, "keep_weights": args.keep_weights}
    modes["move_aside"] = args.move_aside
    with exit_on_user_error(show_traceback=args.traceback):
        run_worker(cfg, **modes)
