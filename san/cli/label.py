r"""Write annotations of pictures with any words: whole sets for labelling tools and for training.

Examples:
  san label photos/ --vocab "cat, dog, sofa|couch" --model san_vit_b_16 --format coco --out labels
  san label photos/ --vocab-file names.txt --none-of-these --format png
  san label photos/ --vocab "car, person" --context coco_stuff_171 --instances --min-area 50 --format yolo-seg,cvat
  san label photos/ --vocab "car, road, sky" --things car --format coco-panoptic
  san label photos/ --label-set coco_stuff_171 --things coco_stuff_171 --segments queries --format coco-panoptic,coco
  san label photos/ --vocab "car, road" --format label-studio --outlines masks --score-threshold 0.5
  san label photos/ --vocab "car, road" --format coco --resume              # after an interruption
  san label photos/ --vocab "car, road" --shard 3/16                        # one of 16 jobs, 0/16 to 15/16
  san label photos/ --vocab "car, road" --merge                             # the sets of all 16

Every format gets a folder of its own below --out:
  coco          annotations/instances_train.json, images/ (RLE; --outlines polygons for polygons)
  coco-panoptic annotations/panoptic_train.json, panoptic/, images/ (segment ids as colours)
  yolo-seg      data.yaml, images/, labels/ (polygons)
  voc           JPEGImages/, SegmentationClass/, Annotations/, ImageSets/, labelmap.txt
  png           dataset.yaml, images/, labels/ (class indices): a data set for `san check` and `san train`
  labelme       a JSON file beside each image (polygons; --outlines masks for masks)
  label-studio  tasks.json, label_config.xml (polygons; --outlines masks for brush masks)
  cvat          annotations.xml (CVAT for images 1.1), images/ (polygons; --outlines masks for masks)
  geojson       a file per image (polygons in pixels)

The folders appear when all pictures are done. Until then the results are in OUT/.unfinished, from which --resume
continues. A job with --shard writes only there, and continues by itself (docs/cluster.md). Pictures in a set are hard
links, or copies where the disk has no links. Pixels without a class (--threshold, --none-of-these) and pixels of
context classes are not annotated. A picture that cannot be read is reported and left out of the sets.
Needs: pip install "san-segmentation[label]"

Exit codes: 0 all done, 1 error, 2 wrong command line, 3 some pictures were skipped or left out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.jobs import Job, find_jobs, prepare_output, refuse_collisions
from san.cli.label_work import UNFINISHED, LabelWork
from san.cli.options import (
    formats_option,
    load_segmenter,
    path_option,
)
from san.cli.predict import (
    SOME_SKIPPED,
    PredictionRun,
    add_picture_options,
    add_work_options,
    read_vocabulary,
)
from san.cli.segment_options import THINGS_HELP, add_min_area_option, add_segment_options, check_segments, merging_of
from san.io.errors import excerpt, require_extra
from san.io.files import LABEL_FORMATS
from san.io.listing import Skipped, describe_skipped

if TYPE_CHECKING:
    from san.labelling.sets import AnnotationWriter, SetOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_picture_options(parser)
    regions = parser.add_argument_group("regions")
    apart = regions.add_mutually_exclusive_group()
    apart.add_argument(
        "--instances",
        action="store_true",
        help="one annotation per connected component (default: one per class and picture)",
    )
    apart.add_argument("--things", metavar="WORDS", help=THINGS_HELP)
    add_segment_options(regions)
    add_min_area_option(regions)
    regions.add_argument(
        "--score-threshold",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="drop regions whose mean score is lower; about 1 is certain (default: %(default)s)",
    )
    regions.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="PIXELS",
        help="polygons may deviate from the mask by so much, which leaves out corners (default: %(default)s, exact)",
    )
    regions.add_argument(
        "--outlines",
        choices=("polygons", "masks"),
        help="what coco, labelme, label-studio and cvat contain (default: masks in coco, polygons in the others)",
    )
    output = parser.add_argument_group("results")
    output.add_argument("--out", type=path_option, default=Path("labels"), metavar="DIR", help="default: %(default)s")
    output.add_argument(
        "--format",
        type=partial(formats_option, known=LABEL_FORMATS),
        default=("coco",),
        metavar="LIST",
        help=f"some of {', '.join(LABEL_FORMATS)} (default: coco)",
    )
    existing = output.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing sets and unfinished results")
    existing.add_argument("--resume", action="store_true", help="continue an interrupted run with the same options")
    output.add_argument("--merge", action="store_true", help="write the sets of all shards; no picture is labelled")
    output.add_argument("--quiet", action="store_true", help="no progress bar and no line per picture")
    add_work_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label; return the exit code.

    Raises:
        ValueError, OSError: the command line, the model or the disk has an error that is found before any work.
    """
    require_extra("label", "`san label`", "scipy", "shapely")
    from san.labelling.formats import WRITERS
    from san.labelling.regions import RegionOptions, thing_indices
    from san.labelling.sets import SetOptions, set_name

    _check_modes(args)
    jobs, skipped = _find_jobs(args)
    if not args.tolerance >= 0:
        raise ValueError(f"--tolerance is {args.tolerance}; give a number of pixels, 0 or more")
    vocabulary = read_vocabulary(args)
    check_segments(args, vocabulary)
    names, things = [each.name for each in vocabulary.free], None
    if args.things is not None:
        things = thing_indices(args.things, names)
    instances = args.instances or things is not None
    regions = RegionOptions(instances, args.min_area, args.score_threshold, things)
    options = SetOptions(
        set_name(args.out.resolve().name), vocabulary.free, args.tolerance, args.outlines, instances, things
    )
    writers = {args.out / name: WRITERS[name] for name in args.format}
    _check_classes(args.format, options)
    _refuse_existing_sets([*writers], args)
    prepare_output(args.out)
    work = LabelWork(args, vocabulary, jobs)
    if args.merge:
        work.check_shards()
        skipped += [Skipped(job.image, "that could not be read", missed=True) for job in work.without_result()]
    elif args.shard and args.shard.index:
        skipped = []  # the first shard reports them
    for line in describe_skipped(skipped):
        print(f"left out: {line}", file=sys.stderr)
    left = [] if args.merge else work.begin(args.shard)
    if left:
        segmenter = load_segmenter(args)
        write = partial(work.write, num_classes=len(options.classes), options=regions, merging=merging_of(args))
        PredictionRun(args, left, segmenter, vocabulary, write).run()
    complete = not any(each.missed for each in skipped) and not work.without_result(args.shard)
    if args.shard:
        work.finish(args.shard)
        print(f"shard {args.shard} is done; when all are, write the sets with --merge", file=sys.stderr)
    else:
        _write_sets(work, writers, options)
    return 0 if complete else SOME_SKIPPED


def _write_sets(work: LabelWork, writers: dict[Path, type[AnnotationWriter]], options: SetOptions) -> None:
    """Write the sets of all pictures that have a result, and remove the unfinished results."""
    from san.labelling.sets import write_sets

    done = work.done()
    if not done:
        raise ValueError("no picture could be labelled; no set is written")
    write_sets(writers, *work.images(done), options)
    work.remove()
    print(f"{len(done)} pictures labelled -> {', '.join(map(str, writers))}", file=sys.stderr)


def _find_jobs(args: argparse.Namespace) -> tuple[list[Job], list[Any]]:
    """Return the jobs and skipped files; pictures below --out are none.

    Raises:
        ValueError: see `find_jobs`; or a picture's name has no ending, by which tools pair pictures and labels.
    """
    jobs, skipped = find_jobs(args.images, args.out, recursive=args.recursive)
    for job in jobs:
        if not job.image.suffix:
            raise ValueError(f"{str(job.image)!r} has a name without an ending; rename it to .jpg or .png, as it is")
    refuse_collisions(jobs, [".npz"])
    return jobs, skipped


def _check_modes(args: argparse.Namespace) -> None:
    if args.shard and args.merge:
        raise ValueError("--shard and --merge are given; run every shard first, then --merge alone")
    if args.shard and args.overwrite:
        raise ValueError(
            "--overwrite would remove the results of other shards; give it with --merge, or remove "
            f"{str(args.out / UNFINISHED)!r} before the first shard"
        )


def _check_classes(formats: Sequence[str], options: SetOptions) -> None:
    """Check that every format can hold the classes.

    Raises:
        ValueError: there are too many, or a name has a character that separates values.
    """
    from san.labelling.formats import WRITERS

    for name in formats:
        most = WRITERS[name].max_classes
        if most is not None and len(options.classes) > most:
            raise ValueError(
                f"there are {len(options.classes)} classes, but the format {name} holds {most} at most; give fewer, or "
                "another --format"
            )
        odd = [each for each in options.names if set(WRITERS[name].separators) & {*each}]
        if odd:
            raise ValueError(
                f"the format {name} cannot hold the class name {excerpt(odd[0])}, as it separates values by "
                f"{WRITERS[name].separators!r}; rename the class, or choose another --format"
            )


def _refuse_existing_sets(folders: list[Path], args: argparse.Namespace) -> None:
    existing = [folder for folder in folders if folder.exists()]
    if existing and not args.overwrite:
        remedy = "remove it" if args.shard else "give --overwrite to replace it"
        raise ValueError(f"{str(existing[0])!r} exists already; {remedy}, or another --out")
