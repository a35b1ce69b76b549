r"""Evaluate a model on data sets: mean IoU and the figures of every class.

Examples:
  san eval --config-file configs/shapes/san_shapes.yaml --weights shapes
  san eval --config-file configs/san_clip_vit_b16_coco.yaml --weights san_vit_b_16 --data-root /data
  san eval --config-file configs/san_clip_vit_b16_coco.yaml --weights my_san/ --subset 50 DATASETS.TEST voc_sem_seg_val
  san eval --config-file configs/shapes/san_shapes.yaml --weights shapes --oracle
  san eval --config-file configs/shapes/san_shapes.yaml --weights shapes TEST.AUG.ENABLED True
  san eval --config-file configs/shapes/san_shapes.yaml --weights ensemble.yaml
  san eval --config-file output/my_run/config.yaml --weights output/my_run/model_final.pth --dataset my_data/set.yaml

Like `san train --eval-only`, except that --resume also evaluates the given weights, not a later checkpoint.
The configuration says which model the weights belong to and which data sets to evaluate; KEY VALUE or KEY=VALUE at
the end change it. Results go to OUTPUT_DIR. See docs/datasets.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from san.cli import train
from san.cli.options import add_names_option, path_option, path_or_name_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--weights",
        type=path_or_name_option,
        metavar="MODEL",
        help="a checkpoint file, a folder of a training run or of save_pretrained, a name of `san models`, or a YAML "
        "file that lists an ensemble (default: MODEL.WEIGHTS)",
    )
    parser.add_argument(
        "--subset", type=int, metavar="N", help="evaluate only N images of each set, spread evenly; noted in the report"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume an interrupted evaluation of the same weights in OUTPUT_DIR, if there is one; "
        "without --weights and MODEL.WEIGHTS, of the latest checkpoint there",
    )
    parser.add_argument(
        "--oracle",
        action="store_true",
        help="also analyse whether masks or names are wrong: oracle.html, oracle.json, confusions.csv, confusions.png "
        "in the report's folder (TEST.ORACLE; docs/error_analysis.md)",
    )
    add_names_option(parser, "of the benchmarks' classes (DATASETS.NAMES)")
    parser.add_argument(
        "--vocab-file",
        type=path_option,
        metavar="FILE",
        help="file of `san vocab`: its classes replace those of the same names (TEST.VOCABULARY_FILE; "
        "docs/examples.md)",
    )
    train.add_run_arguments(parser)
    parser.set_defaults(eval_only=True, keep_weights=True, move_aside=False)
    train.add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate; return the exit code.

    Raises:
        ValueError, OSError: the configuration, the data or the checkpoint is wrong.
    """
    options = []
    if args.weights:
        options += ["MODEL.WEIGHTS", str(named_weights(args.weights))]
    if args.subset is not None:
        options += ["DATASETS.TEST_SUBSET", str(args.subset)]
    if args.oracle:
        options += ["TEST.ORACLE", "True"]
    if args.names != "default":
        options += ["DATASETS.NAMES", args.names]
    if args.vocab_file:
        options += ["TEST.VOCABULARY_FILE", str(args.vocab_file)]
    args.opts = [*options, *args.opts]
    return train.run(args)


def named_weights(given: str) -> Path:
    """Return the file of a named model; other values are returned unchanged.

    Raises:
        FileNotFoundError, ValueError: a named model is not on this machine and cannot be downloaded.
    """
    from san.hub import MODELS
    from san.hub.locations import find_known

    if given in MODELS:
        return find_known(MODELS[given])
    return Path(given)
