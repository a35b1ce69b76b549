r"""Segment pictures with any words: every pixel gets one class of the vocabulary.

Examples:
  san predict street.jpg --vocab "car, road, sky" --model san_vit_b_16
  san predict photos/ --recursive --vocab "cat; dog; sofa|couch" --context coco_stuff_171 --out masks
  san predict photos/ --vocab-file names.txt --none-of-these --format labels,json --overwrite
  san predict photos/ --vocab-file mugs.safetensors --model san_vit_b_16
  san predict scan.png --label-set ade20k_150 --model my_san/ --device cuda --dtype bfloat16
  san predict street.jpg --vocab "car, road" --model san_vit_b_16 --scales 480,640,800 --flip
  san predict street.jpg --vocab "car, road" --model ensemble.yaml
  san predict street.jpg --vocab "car, person, road, sky" --things "car, person" --min-area 50

Separate classes by commas, semicolons or line breaks, and synonyms by |; a file has one class per line. The results of
a picture DIR/street.jpg are, below --out, street_overlay.png (class colours over the picture), street_labels.png (class
indices), street_rle.json (one run-length mask per class, for pycocotools), street.json (names, areas, confidences) and
street_panel.png (picture, classes and legend). With --things the overlay shows, and the JSON lists, segments. A class
has the same colour in every picture. A picture that cannot be read, or for which the network returns NaN, is reported
and skipped. In a folder, all files that the installed Pillow opens are used, except hidden and system files; a line
names the first skipped ones.

Exit codes: 0 all done, 1 error, 2 wrong command line, 3 some pictures were skipped or left out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.jobs import Job, find_jobs, prepare_output, refuse_collisions, refuse_existing, unfinished
from san.cli.options import (
    add_averaging_options,
    add_model_options,
    add_names_option,
    add_shard_option,
    add_word_options,
    formats_option,
    load_segmenter,
    parse_words,
    path_option,
    positive_option,
    read_words,
)
from san.cli.pipeline import PipelineSteps, run_pipeline, write_results
from san.cli.segment_options import (
    THINGS_HELP,
    add_min_area_option,
    add_segment_options,
    check_segments,
    segment_arguments,
    segment_settings,
)
from san.cli.shards import describe_pictures, join_jobs, picture_name
from san.io.errors import one_line, printable
from san.io.files import FORMATS
from san.io.listing import describe_skipped

if TYPE_CHECKING:
    from san.inference.segmenter import Segmenter
    from san.vocabulary.vocabulary import Vocabulary

SOME_SKIPPED = 3
WORDS = ("--vocab", "--vocab-file", "--label-set", "--dataset")
SHARDS = ".shards"
"""Folder below --out in which jobs with --shard note what they have in common."""

DEFAULT_FORMATS = "overlay,labels,rle,json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_picture_options(parser)
    segments = parser.add_argument_group("segments, shown in the overlay and listed in the JSON (docs/panoptic.md)")
    segments.add_argument("--things", metavar="WORDS", help=THINGS_HELP)
    add_segment_options(segments)
    add_min_area_option(segments)
    output = parser.add_argument_group("results")
    output.add_argument(
        "--out", type=path_option, default=Path("predictions"), metavar="DIR", help="default: %(default)s"
    )
    output.add_argument(
        "--format",
        type=partial(formats_option, known=FORMATS),
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"some of {', '.join(FORMATS)} (default: %(default)s)",
    )
    existing = output.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    existing.add_argument("--skip-existing", action="store_true", help="skip pictures whose results exist")
    output.add_argument("--quiet", action="store_true", help="no progress bar and no line per picture")
    add_work_options(parser)


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add the pictures, and the options of words, model and averaging."""
    parser.add_argument(
        "images", nargs="+", type=path_option, metavar="IMAGE_OR_FOLDER", help="pictures, folders of them"
    )
    add_vocabulary_options(parser)
    add_model_options(parser)
    add_averaging_options(parser)


def add_vocabulary_options(parser: argparse.ArgumentParser) -> None:
    """Add the vocabulary options of `read_vocabulary`, --none-of-these and --threshold."""
    words = parser.add_argument_group("words (one of --vocab, --vocab-file, --label-set, --dataset)")
    add_word_options(words)
    words.add_argument("--label-set", metavar="NAME", help="all classes of a label set, such as ade20k_150")
    add_names_option(words, "of --label-set and of a label set in --context")
    words.add_argument("--dataset", type=path_option, metavar="FILE", help="the classes of a data set's YAML file")
    words.add_argument(
        "--context",
        metavar="NAME_OR_WORDS",
        help="label set or words that also compete for pixels, marked as context; those that are classes are left out",
    )
    words.add_argument("--none-of-these", action="store_true", help="pixels that fit no class get none")
    words.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="pixels whose best score is below this get no class; about 1 is certain (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit code.

    Raises:
        ValueError, OSError: the command line, the model or the disk has an error that is found before any work.
    """
    endings = [FORMATS[name] for name in args.format]
    jobs, skipped = find_jobs(args.images, args.out, recursive=args.recursive)
    refuse_collisions(jobs, endings)
    names = [picture_name(job, args.out) for job in jobs]
    if args.shard:
        jobs, skipped = args.shard.of(jobs), skipped if args.shard.index == 0 else []
    total = len(jobs)
    if args.skip_existing:
        jobs = unfinished(jobs, endings)
    elif not args.overwrite:
        refuse_existing(jobs, endings)
    vocabulary = read_vocabulary(args)
    if args.things is None and args.min_area:
        raise ValueError("--min-area is of segments, and there are none; give --things")
    check_segments(args, vocabulary)
    prepare_output(args.out)
    if args.shard:
        settings = settings_of(args, vocabulary) | segment_settings(args)
        run_of_all = {"number of shards": args.shard.count, **describe_pictures(names), **settings}
        remedy = f"give the same, or another --out; remove {str(args.out / SHARDS)!r} to begin again"
        join_jobs(args.out / SHARDS, run_of_all, remedy=remedy)
    for line in describe_skipped(skipped):
        print(f"left out: {line}", file=sys.stderr)
    if jobs:
        endings_of = {name: FORMATS[name] for name in args.format}
        write = partial(write_results, endings=endings_of, segments=segment_arguments(args))
        num_failed = PredictionRun(args, jobs, load_segmenter(args), vocabulary, write).run()
    else:
        num_failed = 0
        whose = f" of shard {args.shard}" if args.shard else ""
        print(f"all {total} pictures{whose} have their results in {args.out}", file=sys.stderr)
    return SOME_SKIPPED if num_failed or any(each.missed for each in skipped) else 0


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Add --recursive, --shard, --batch-size and --workers."""
    work = parser.add_argument_group("work")
    add_shard_option(work)
    work.add_argument("--recursive", action="store_true", help="include sub-folders; --out gets the same ones")
    work.add_argument(
        "--batch-size", type=positive_option, default=1, metavar="N", help="pictures per pass (default: %(default)s)"
    )
    work.add_argument(
        "--workers",
        type=positive_option,
        default=2,
        metavar="N",
        help="number of reading threads, and of writing threads (default: %(default)s)",
    )


def read_vocabulary(args: argparse.Namespace) -> Vocabulary:
    """Return the classes of one of `WORDS`, with --context, and check the options beside them.

    Raises:
        ValueError, FileNotFoundError: none or several are given, or an option of `add_vocabulary_options` is not valid.
    """
    from san.data.custom import load_custom_dataset
    from san.vocabulary.label_sets import LABEL_SETS
    from san.vocabulary.vocabulary import Vocabulary

    if not args.threshold >= 0:
        raise ValueError(f"--threshold is {args.threshold}; give a score, 0 or more")
    given = [name for name in WORDS if getattr(args, name[2:].replace("-", "_")) is not None]
    if len(given) != 1:
        seen = f"{' and '.join(given)} are given" if given else "there are no words"
        raise ValueError(f"{seen}; give one of {', '.join(WORDS)} (and more classes with --context)")
    sets = {args.label_set, *(text.strip() for text in (args.vocab, args.context) if text)} & {*LABEL_SETS}
    if args.names != "default" and not sets:
        raise ValueError(f"--names {args.names} is of label sets, and none is given; leave it out, or give --label-set")
    if args.dataset is not None:
        vocabulary = Vocabulary(load_custom_dataset(args.dataset).classes)
    elif args.label_set is not None:
        vocabulary = Vocabulary.label_set(args.label_set, args.names)
    else:
        vocabulary = read_words(args)
    if args.context is None:
        return vocabulary
    return vocabulary.with_context(parse_words(args.context, "--context", args.names))


def settings_of(args: argparse.Namespace, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the options on which a prediction depends, as plain data, to compare with those of another job."""
    return {
        "classes": [
            [each.name, *each.synonyms, *each.prompts, *([repr(each.vector)] if each.vector else [])]
            for each in vocabulary.classes
        ],
        "context": vocabulary.num_context,
        **{
            name: getattr(args, name)
            for name in ("model", "config", "revision", "dtype", "flip", "threshold", "none_of_these")
        },
        "scales": list(args.scales),
    }


class PredictionRun:
    """Predicts and writes all images, with a progress bar; also for `san label`.

    Args:
        args: options of the command, see `add_vocabulary_options` and `add_work_options`.
        jobs: the images.
        predictor: segments them.
        vocabulary: the classes.
        write: writes the files of a job and its `Segmentation`; called in threads.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        jobs: list[Job],
        predictor: Segmenter,
        vocabulary: Vocabulary,
        write: Callable[[Job, Any], None],
    ) -> None:
        from tqdm import tqdm

        self.args, self.jobs, self.predictor, self.vocabulary, self.write = args, jobs, predictor, vocabulary, write
        self.num_failed, self.num_done = 0, 0
        self.bar = tqdm(total=len(jobs), unit="image", disable=True if args.quiet else None)  # None: if a terminal

    def run(self) -> int:
        """Predict all images; return the number of skipped ones."""
        from san.devices import image_streams
        from san.io.image_files import read_image

        steps = PipelineSteps(
            read=read_image,
            predict=self._predict,
            write=self.write,
            failed=self._failed,
            batch_size=self.args.batch_size,
            workers=self.args.workers,
            streams=image_streams(self.predictor.models) if len(self.jobs) > self.args.batch_size else 1,
            kind=lambda image: image.shape,
        )
        start = time.perf_counter()
        try:
            with self.bar, closing(run_pipeline(self.jobs, steps)) as results:
                for job, result in results:
                    self.num_done += 1
                    self.bar.update()
                    if not self.args.quiet:
                        self.bar.write(printable(f"{job.image}: {result.summary()}"))
        except KeyboardInterrupt:
            print(f"interrupted after {self.num_done} of {len(self.jobs)} pictures", file=sys.stderr)
            raise
        seconds = time.perf_counter() - start
        skipped = f"; {self.num_failed} skipped" if self.num_failed else ""
        print(
            f"{self.num_done} pictures in {seconds:.1f} s ({self.num_done / seconds:.1f} per second) -> "
            f"{self.args.out}{skipped}",
            file=sys.stderr,
        )
        return self.num_failed

    def _predict(self, images: list[Any]) -> list[Any]:
        import torch

        try:
            return list(
                self.predictor.predict_batch(
                    images,
                    self.vocabulary,
                    threshold=self.args.threshold,
                    none_of_these=self.args.none_of_these,
                    batch_size=self.args.batch_size,
                )
            )
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(
                f"out of GPU memory with --batch-size {self.args.batch_size}; lower it, or give --device cpu"
            ) from error

    def _failed(self, job: Job, error: Exception) -> None:
        self.num_failed += 1
        self.bar.update()
        self.bar.write(f"skipped {printable(str(job.image))}: {one_line(error)}", file=sys.stderr)
