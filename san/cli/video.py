r"""Masks for words in videos: every pixel of every frame gets one of the words of the vocabulary.

Examples:
  san video street.mp4 --vocab "car, road, sky" --model san_vit_b_16
  san video a.mp4 b.webm --vocab-file names.txt --out masks --chunk 16 --clusters 100
  san video street.mp4 --label-set ade20k_150 --frame-by-frame --format labels,json
  san video --evaluate ytvis_2019_train --model san_vit_b_16 --subset 20

Of a video DIR/street.mp4 come, below --out, street_overlay.mp4 (class colours over the frames, with the sound; .mkv if
MP4 cannot hold it), street_labels/000000.png and so on (class indices), and street.json (names, colours, areas,
settings, and what could not be read). By default the frames of a chunk share queries, which makes names steadier from
frame to frame (docs/video.md). Words are written as for `san predict`. What was done when a video breaks off, or on
Ctrl-C, is kept and can be played.

--evaluate NAME instead of VIDEO measures J, F and mIoU on a set of annotated videos, with its own class names: OUT/NAME
gets metrics.json and per_class.csv.

Exit codes: 0 all done, 1 error, 2 wrong command line, 3 some videos were passed over or not read whole, 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from san.cli.jobs import Job, prepare_output, refuse_collisions
from san.cli.options import add_model_options, formats_option, load_predictor, path_option, positive_option
from san.cli.predict import SOME_PASSED_OVER, add_vocabulary_options, read_vocabulary
from san.cli.video_sets import add_evaluation_options, evaluate_video_set
from san.io.errors import one_line, printable, require_extra
from san.io.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from san.video.files import VideoReader
    from san.video.predictor import Frame, VideoOptions, VideoPredictor
    from san.vocabulary.vocabulary import Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "%(prog)s VIDEO [VIDEO ...] [options]\n       %(prog)s --evaluate NAME [options]"
    parser.add_argument("videos", nargs="*", type=path_option, metavar="VIDEO", help="files that FFmpeg reads")
    add_evaluation_options(parser)
    add_vocabulary_options(parser)
    queries = parser.add_argument_group("queries")
    queries.add_argument("--frame-by-frame", action="store_true", help="share none: each frame is a picture by itself")
    queries.add_argument(
        "--clusters",
        type=positive_option,
        metavar="N",
        help="shared queries of a chunk (default: as many as the model has; 100 in the published ones)",
    )
    queries.add_argument(
        "--chunk", type=positive_option, default=32, metavar="N", help="frames that share (default: %(default)s)"
    )
    queries.add_argument(
        "--overlap", type=int, default=8, metavar="N", help="of a chunk with the one before it (default: %(default)s)"
    )
    queries.add_argument("--seed", type=int, default=0, help="of the clustering (default: %(default)s)")
    add_model_options(parser)
    output = parser.add_argument_group("results")
    output.add_argument(
        "--out", type=path_option, default=Path("predictions"), metavar="DIR", help="default: %(default)s"
    )
    output.add_argument(
        "--format",
        type=partial(formats_option, known=VIDEO_FORMATS),
        default=",".join(VIDEO_FORMATS),
        metavar="LIST",
        help="some of %(default)s (default: all)",
    )
    output.add_argument("--tags", action="store_true", help="write the names into the overlay")
    output.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size", type=positive_option, default=4, metavar="N", help="frames per pass (default: %(default)s)"
    )
    work.add_argument(
        "--workers", type=positive_option, default=2, metavar="N", help="threads that paint (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Segments videos; returns the exit code.

    Raises:
        ValueError, OSError: what the command line, the model or the disk did wrong, as far as can be before any work.
    """
    from san.video.predictor import VideoOptions, VideoPredictor

    options = VideoOptions(
        shared=not args.frame_by_frame,
        clusters=args.clusters,
        chunk=args.chunk,
        overlap=args.overlap,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    if args.evaluate is not None:
        return evaluate_video_set(args, options)
    require_extra("video", "reading and writing videos", "av")
    if not args.videos:
        raise ValueError("no video is given; name files, or a set of annotated videos with --evaluate")
    jobs = [Job(video, args.out / video.stem) for video in dict.fromkeys(args.videos)]
    missing = [str(job.image) for job in jobs if not job.image.is_file()]
    if missing:
        raise FileNotFoundError(f"no video at {missing[0]!r}; check the path")
    refuse_collisions(jobs, [end for each in args.format for end in VIDEO_FORMATS[each]], overwrite=args.overwrite)
    if not args.threshold >= 0:
        raise ValueError(f"--threshold is {args.threshold}; give a score, 0 or more")
    vocabulary = read_vocabulary(args)
    prepare_output(args.out)
    predictor = VideoPredictor(load_predictor(args), options)
    whole = [_segment_video(job, args, predictor, vocabulary) for job in jobs]
    return 0 if all(whole) else SOME_PASSED_OVER


def _segment_video(job: Job, args: argparse.Namespace, predictor: VideoPredictor, vocabulary: Vocabulary) -> bool:
    """One video; returns whether all of it was read."""
    from san.video.files import VideoReader

    name = printable(str(job.image))
    try:
        reader = VideoReader(job.image, max_pixels=predictor.predictor.max_pixels)
    except (ValueError, OSError) as error:
        print(f"passed over {name}: {one_line(error)}", file=sys.stderr)
        return False
    with reader:
        problems, num_frames, seconds = _write_video(job, args, reader, predictor, vocabulary)
    for problem in problems:
        print(f"not read whole: {name}: {one_line(problem)}", file=sys.stderr)
    print(f"{name}: {num_frames} frames in {seconds:.1f} s ({num_frames / seconds:.1f} per second) -> {job.stem}*")
    return not problems


def _write_video(
    job: Job, args: argparse.Namespace, reader: VideoReader, predictor: VideoPredictor, vocabulary: Vocabulary
) -> tuple[list[str], int, float]:
    """Problems, number of frames, and seconds."""
    from tqdm import tqdm

    from san.video.results import VideoResults

    start = time.perf_counter()
    times: deque[int] = deque()
    results = VideoResults(
        job.stem, args.format, job.image, reader.info, vocabulary, workers=args.workers, tags=args.tags
    )
    results.settings = _settings(args, predictor.options)
    disable = True if args.quiet else None  # None: if a terminal
    with (
        tqdm(total=reader.info.num_frames, unit="frame", desc=job.image.name, disable=disable) as bar,
        closing(_pixels(reader, times)) as frames,
        results,
    ):
        try:
            found = predictor.segment(frames, vocabulary, threshold=args.threshold, none_of_these=args.none_of_these)
            for result in found:
                results.add(result, times.popleft())
                bar.update()
            results.problems += reader.problems
        except ValueError as error:  # of this video; what is done stays
            results.problems += [*reader.problems, one_line(error)]
        except KeyboardInterrupt:
            print(f"interrupted after {results.num_frames} frames of {job.image}, which are kept", file=sys.stderr)
            raise
    return results.problems, results.num_frames, time.perf_counter() - start


def _pixels(reader: VideoReader, times: deque[int]) -> Generator[Frame, None, None]:
    """The frames' pixels; their times are put aside."""
    with closing(reader.frames()) as frames:
        for frame in frames:
            times.append(frame.time)
            yield frame.pixels


def _settings(args: argparse.Namespace, options: VideoOptions) -> dict[str, object]:
    return {"model": args.model, "threshold": args.threshold, "none_of_these": args.none_of_these, **asdict(options)}
