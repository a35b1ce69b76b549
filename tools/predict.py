#!/usr/bin/env python3
"""Segment pictures with any words: one panel (picture, prediction, legend) and one label map per picture.

python tools/predict.py street.jpg --vocab "car, road, sky, person" --out predictions
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from san.evaluation.predictions import write_label_map
from san.model.config import VARIANTS
from san.predictor import Predictor


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="picture files")
    parser.add_argument("--vocab", required=True, help="the words, separated by commas; every pixel gets one of them")
    parser.add_argument(
        "--checkpoint", default="shapes", help="a checkpoint file, or 'shapes' for the committed one (default: shapes)"
    )
    parser.add_argument(
        "--model",
        default="vit_b16",
        choices=VARIANTS,
        help="the model the checkpoint belongs to (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder to write to (default: predictions)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse_arguments(arguments)
    names = options.vocab.split(",")
    stems = [path.stem for path in options.images]
    try:
        if len(set(stems)) < len(stems):
            raise ValueError("two pictures have one name: a result would overwrite another; give them in two runs")
        if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {options.device}, but PyTorch sees no GPU; use cpu")
        predictor = Predictor.from_pretrained(options.checkpoint, options.model, device=options.device)
        for path in options.images:
            result = predictor.predict(path, names)
            result.panel(options.out / f"{path.stem}_panel.png")
            write_label_map(options.out / f"{path.stem}_labels.png", result.labels)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in result.areas().items())
            print(f"{path}: {shares} -> {options.out / path.stem}_panel.png")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
