r"""Segment videos with any words: every pixel of every frame gets one class of the vocabulary.

Examples:
  san video street.mp4 --vocab "car, road, sky" --model san_vit_b_16
  san video a.mp4 b.webm --vocab-file names.txt --out masks --chunk 16 --clusters 100
  san video street.mp4 --label-set ade20k_150 --frame-by-frame --format labels,json
  san video --evaluate ytvis_2019_train --model san_vit_b_16 --subset 20

The results of a video DIR/street.mp4 are, below --out, street_overlay.mp4 (class colours over the frames, with sound;
.mkv if MP4 does not support it), street_labels/000000.png and so on (class indices), and street.json (names, colours,
areas, settings, read errors). By default the frames of a chunk share queries, which makes classes more stable over time
(docs/video.md). Words are written as for `san predict`. If a video breaks off, or after Ctrl-C, the results so far are
kept and can be played.

--evaluate NAME instead of VIDEO measures J, F and mIoU on a set of annotated videos, with its own class names: OUT/NAME
gets metrics.json and per_class.csv.

Exit codes: 0 all done, 1 error, 2 wrong command line, 3 some videos were skipped or partly read, 130 interrupted.
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

from san.cli.jobs import Job, prepare_output, refuse_collisions, refuse_existing
from san.cli.options import add_model_options, formats_option, load_predictor, path_option, positive_option
from san.cli.predict import SOME_SKIPPED, add_vocabulary_options, read_vocabulary
from san.cli.video_sets import add_evaluation_options, evaluate_video_set
from san.io.errors import one_line, printable, require_extra
from san.io.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from san.video.files import VideoReader
    from san.video.predictor import Frame, VideoOptions, VideoPredictor
    from san.vocabulary.vocabulary import Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.usage = "%(prog)s VIDEO [VIDEO ...] [options]\n       %(prog)s --evaluate NAME [options]"
    parser.add_argument("videos", nargs="*", type=path_option, metavar="VIDEO", help="files that FFmpeg reads")
    add_evaluation_options(parser)
    add_vocabulary_options(parser)
    queries = parser.add_argument_group("queries")
    queries.add_argument("--frame-by-frame", action="store_true", help="share no queries between frames")
    queries.add_argument(
        "--clusters",
        type=positive_option,
        metavar="N",
        help="shared queries of a chunk (default: as many as the model has; 100 in the published ones)",
    )
    queries.add_argument(
        "--chunk", type=positive_option, default=32, metavar="N", help="frames of a chunk (default: %(default)s)"
    )
    queries.add_argument(
        "--overlap", type=int, default=8, metavar="N", help="frames that chunks overlap (default: %(default)s)"
    )
    queries.add_argument("--seed", type=int, default=0, help="seed of the clustering (default: %(default)s)")
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
    output.add_argument("--overwrite", action="store_true", help="replace existing results")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size", type=positive_option, default=4, metavar="N", help="frames per pass (default: %(default)s)"
    )
    work.add_argument(
        "--workers", type=positive_option, default=2, metavar="N", help="threads that paint (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Segment videos; return the exit code.

    Raises:
        ValueError, OSError: the command line, the model or the disk has an error that is found before any work.
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
    endings = [end for each in args.format for end in VIDEO_FORMATS[each]]
    refuse_collisions(jobs, endings)
    if not args.overwrite:
        refuse_existing(jobs, endings)
    vocabulary = read_vocabulary(args)
    prepare_output(args.out)
    predictor = VideoPredictor(load_predictor(args), options)
    whole = [_segment_video(job, args, predictor, vocabulary) for job in jobs]
    return 0 if all(whole) else SOME_SKIPPED


def _segment_video(job: Job, args: argparse.Namespace, predictor: VideoPredictor, vocabulary: Vocabulary) -> bool:
    """Segment one video; return whether it was read completely."""
    from san.video.files import VideoReader

    name = printable(str(job.image))
    try:
        reader = VideoReader(job.image, max_pixels=predictor.predictor.max_pixels)
    except (ValueError, OSError) as error:
        print(f"skipped {name}: {one_line(error)}", file=sys.stderr)
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
    """Write the results of a video; return problems, number of frames, and seconds."""
    from tqdm import tqdm

    from san.video.results import VideoResults

    start = time.perf_counter()
    times: deque[int] = deque()
    settings, options = _settings(args, predictor.options), {"workers": args.workers, "tags": args.tags}
    results = VideoResults(job.stem, args.format, job.image, reader.info, vocabulary, settings=settings, **options)
    disable = True if args.quiet else None  # None: show it on a terminal
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
            results.report(reader.problems)
        except ValueError as error:  # an error of this video; the results so far are kept
            results.report([*reader.problems, one_line(error)])
        except KeyboardInterrupt:
            print(f"interrupted after {results.num_frames} frames of {job.image}, which are kept", file=sys.stderr)
            raise
    return results.problems, results.num_frames, time.perf_counter() - start


def _pixels(reader: VideoReader, times: deque[int]) -> Generator[Frame, None, None]:
    """Yield the frames' pixels; their times are added to `times`."""
    with closing(reader.frames()) as frames:
        for frame in frames:
            times.append(frame.time)
            yield frame.pixels


def _settings(args: argparse.Namespace, options: VideoOptions) -> dict[str, object]:
    return {"model": args.model, "threshold": args.threshold, "none_of_these": args.none_of_these, **asdict(options)}
