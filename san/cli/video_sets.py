"""`san video --evaluate`: J, F and mIoU on a set of annotated videos."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from san.cli import options as shared
from san.cli.jobs import prepare_output
from san.cli.predict import SOME_SKIPPED, WORDS
from san.data.benchmarks import YTVIS_SPLITS
from san.io.errors import one_line, printable

if TYPE_CHECKING:
    from san.evaluation.video import VideoScores
    from san.video.predictor import VideoOptions
    from san.video.youtube_vis import AnnotatedVideo, YouTubeVIS


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add --evaluate, --subset and --data-root."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--evaluate", metavar="NAME", help=f"measure on a set of annotated videos: {', '.join(YTVIS_SPLITS)}"
    )
    group.add_argument(
        "--subset",
        type=shared.positive_option,
        metavar="N",
        help="of N of its videos, spread evenly; the results say so (default: all)",
    )
    shared.add_data_root_option(group)


def evaluate_video_set(args: argparse.Namespace, options: VideoOptions) -> int:
    """Evaluate a model on a set of videos, print and write the metrics; return the exit code.

    Raises:
        ValueError, OSError: the command line, the annotations, the model or the disk has an error.
    """
    from tqdm import tqdm

    from san.d2.data.datasets import datasets_root
    from san.data.subset import evenly_spread
    from san.evaluation.video import VideoScores
    from san.video.predictor import VideoPredictor
    from san.video.youtube_vis import YouTubeVIS, score_video

    _refuse_other_input(args)
    dataset = YouTubeVIS.registered(args.evaluate, datasets_root(args.data_root or None))
    folder = args.out / args.evaluate
    prepare_output(folder)
    predictor = VideoPredictor(shared.load_predictor(args), options)
    scores, problems = VideoScores(len(dataset.names)), dict[str, str]()
    videos: Sequence[AnnotatedVideo] = evenly_spread(dataset.videos, args.subset or 0)
    for video in tqdm(videos, unit="video", desc=args.evaluate, disable=True if args.quiet else None):
        try:
            score_video(predictor, dataset, video, scores)
        except (ValueError, OSError) as error:
            problems[video.name] = one_line(error)
            print(f"skipped {printable(video.name)}: {problems[video.name]}", file=sys.stderr)
            if video.instances is None:  # then no video has instances
                break
    if not scores.frames.any():
        raise ValueError(f"no video of {args.evaluate} could be evaluated; see the reasons above")
    counts = {"videos": len(videos) - len(problems), "of": len(dataset.videos), "skipped": problems}
    _write_metrics(folder, dataset, scores, {"model": args.model, **counts, "settings": asdict(options)})
    found = ", ".join(f"{name} {value:.2f}" for name, value in scores.metrics().items())
    print(f"{args.evaluate}, {counts['videos']} of {counts['of']} videos: {found} -> {folder}")
    return SOME_SKIPPED if problems else 0


def _refuse_other_input(args: argparse.Namespace) -> None:
    """Raise if videos or words are given too, because those of the set are used."""
    given = [name for name in (*WORDS, "--context") if getattr(args, name[2:].replace("-", "_")) is not None]
    given += [*map(str, args.videos), *(["--none-of-these"] if args.none_of_these else [])]
    given += ["--threshold"] if args.threshold else []
    if given:
        raise ValueError(f"--evaluate uses the videos and class names of {args.evaluate}; leave out {given[0]}")


def _write_metrics(folder: Path, dataset: YouTubeVIS, scores: VideoScores, about: dict[str, object]) -> None:
    """Write metrics.json and per_class.csv, with empty values for classes that do not occur."""
    from san.io.files import write_text, write_together

    values, rows = scores.per_class(), io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["index", "class", "frames", *values])
    for index, name in enumerate(dataset.names):
        cells = ["" if math.isnan(each[index]) else f"{each[index]:.4f}" for each in values.values()]
        writer.writerow([index, name, int(scores.frames[index]), *cells])
    content = json.dumps({**scores.metrics(), **about}, indent=1, ensure_ascii=False) + "\n"
    write_together(
        {
            folder / "metrics.json": lambda path: write_text(path, content),
            folder / "per_class.csv": lambda path: write_text(path, rows.getvalue()),
        }
    )
