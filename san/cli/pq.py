r"""Measure the panoptic quality of a set of segments: PQ, SQ and RQ.

Examples:
  san label val2017/ --label-set coco_stuff_171 --things "person, car, dog" --format coco-panoptic --out labels
  san pq truth/annotations/panoptic_val.json labels/coco-panoptic/annotations/panoptic_train.json
  san pq panoptic_val2017.json mine.json --truth-folder panoptic_val2017 --out quality.json

Both are files of COCO's panoptic format, with a PNG of segment ids per image. Their categories are compared by name and
their images by file name; the images of the prediction are measured. See docs/label.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from san.cli.options import path_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("truth", type=path_option, metavar="TRUTH.json", help="the ground truth")
    parser.add_argument("prediction", type=path_option, metavar="PREDICTION.json", help="the segments to measure")
    where = "folder of the PNGs (default: the folder of the file's name beside it, else ../panoptic)"
    parser.add_argument("--truth-folder", type=path_option, metavar="DIR", help=where)
    parser.add_argument("--prediction-folder", type=path_option, metavar="DIR", help=where)
    parser.add_argument("--out", type=path_option, metavar="FILE", help="also write all figures to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Measure; return the exit code.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or the sets have no common images.
    """
    from tqdm import tqdm

    from san.evaluation.panoptic import panoptic_metrics, panoptic_rows
    from san.evaluation.panoptic_files import compare_panoptic, read_panoptic
    from san.io.errors import excerpt
    from san.io.files import write_text

    truth = read_panoptic(args.truth, args.truth_folder)
    prediction = read_panoptic(args.prediction, args.prediction_folder)
    foreign = sorted(prediction.annotations.keys() - truth.annotations.keys())
    if foreign or not prediction.annotations:
        seen = f"the image {excerpt(foreign[0])}, which {args.truth} lacks" if foreign else "no image"
        raise ValueError(f"{args.prediction} has {seen}; give the prediction of images of the ground truth")
    stems = tqdm(sorted(prediction.annotations), unit="img", disable=None, leave=False)
    counts, names = compare_panoptic(prediction, truth, stems)
    groups = {"things": [*truth.things], "stuff": [name for name in names if name not in truth.things]}
    figures = panoptic_metrics(counts, names, groups)
    print(f"{len(prediction.annotations)} of {len(truth.annotations)} images")
    print(panoptic_rows(figures, [*groups]))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: None if value != value else value for name, value in figures.items()}  # JSON has no NaN
        write_text(Path(args.out), json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    return 0
