r"""Write annotations of pictures with any words: whole sets for labelling tools and for training.

Examples:
  san label photos/ --vocab "cat, dog, sofa|couch" --model san_vit_b_16 --format coco --out labels
  san label photos/ --vocab-file names.txt --none-of-these --format png
  san label photos/ --vocab "car, person" --context coco_stuff_171 --instances --min-area 50 --format yolo-seg,cvat
  san label photos/ --vocab "car, road" --format label-studio --outlines masks --score-threshold 0.5
  san label photos/ --vocab "car, road" --format coco --resume              # after an interruption

Every format gets a folder of its own below --out:
  coco          annotations/instances_train.json, images/ (RLE; --outlines polygons for polygons)
  yolo-seg      data.yaml, images/, labels/ (polygons)
  voc           JPEGImages/, SegmentationClass/, Annotations/, ImageSets/, labelmap.txt
  png           dataset.yaml, images/, labels/ (class indices): a data set for `san check` and `san train`
  labelme       a JSON file beside each image (polygons; --outlines masks for masks)
  label-studio  tasks.json, label_config.xml (polygons; --outlines masks for brush masks)
  cvat          annotations.xml (CVAT for images 1.1), images/ (polygons; --outlines masks for masks)
  geojson       a file per image (polygons in pixels)

The folders appear when all pictures are done. Until then the results are in OUT/.unfinished, from which --resume
continues. Pictures in a set are hard links, or copies where the disk has no links. Pixels without a class (--threshold,
--none-of-these) and pixels of context classes are not annotated. A picture that cannot be read is reported and left out
of the sets. Needs: pip install "san-segmentation[label]"

Exit codes: 0 all done, 1 error, 2 wrong command line, 3 some pictures were skipped or left out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.cli.jobs import Job, find_jobs, prepare_output, refuse_collisions, unfinished
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
from san.io.errors import excerpt, require_extra
from san.io.files import LABEL_FORMATS, write_together, write_whole
from san.io.listing import describe_skipped
from san.io.plain_file import read_plain_file

if TYPE_CHECKING:
    from san.labelling.regions import RegionOptions
    from san.labelling.sets import LabelledImage
    from san.vocabulary.vocabulary import Vocabulary

UNFINISHED = ".unfinished"
"""Folder below --out with the regions of each picture that is done, until all are."""

_ENDING = ".npz"
_SETTINGS = "settings.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_picture_options(parser)
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--instances",
        action="store_true",
        help="one annotation per connected component (default: one per class and picture)",
    )
    regions.add_argument(
        "--min-area",
        type=int,
        default=0,
        metavar="PIXELS",
        help="drop connected components that are smaller (default: %(default)s)",
    )
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
    output.add_argument("--quiet", action="store_true", help="no progress bar and no line per picture")
    add_work_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label; return the exit code.

    Raises:
        ValueError, OSError: the command line, the model or the disk has an error that is found before any work.
    """
    require_extra("label", "`san label`", "scipy", "shapely")
    from san.labelling.formats import WRITERS
    from san.labelling.regions import RegionOptions
    from san.labelling.sets import SetOptions, set_name, write_sets

    work = args.out / UNFINISHED
    jobs, skipped = _find_jobs(args, work)
    regions = RegionOptions(args.instances, args.min_area, args.score_threshold)
    if not args.tolerance >= 0:
        raise ValueError(f"--tolerance is {args.tolerance}; give a number of pixels, 0 or more")
    vocabulary = read_vocabulary(args)
    options = SetOptions(
        set_name(args.out.resolve().name), vocabulary.free, args.tolerance, args.outlines, args.instances
    )
    writers = {args.out / name: WRITERS[name] for name in args.format}
    for name in args.format:
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
    _refuse_existing([*writers], overwrite=args.overwrite)
    prepare_output(args.out)
    left = _begin(args, work, vocabulary, jobs)
    for line in describe_skipped(skipped):
        print(f"left out: {line}", file=sys.stderr)
    num_failed = 0
    if left:
        write = partial(_write_regions, num_classes=len(options.classes), options=regions)
        num_failed = PredictionRun(args, left, load_segmenter(args), vocabulary, write).run()
    done = [job for job in jobs if job.outputs([_ENDING])[0].exists()]
    if not done:
        raise ValueError("no picture could be labelled; no set is written")
    names = [_name(job, work) for job in done]
    images = [partial(_load_image, job, name) for job, name in zip(done, names, strict=True)]
    write_sets(writers, images, names, options)
    shutil.rmtree(work)
    print(f"{len(done)} pictures labelled -> {', '.join(map(str, writers))}", file=sys.stderr)
    return SOME_SKIPPED if num_failed or any(each.missed for each in skipped) else 0


def _find_jobs(args: argparse.Namespace, work: Path) -> tuple[list[Job], list[Any]]:
    """Return the jobs, whose stems are below `work`, and skipped files; pictures below --out are none.

    Raises:
        ValueError: see `find_jobs`; or a picture's name has no ending, by which tools pair pictures and labels.
    """
    jobs, skipped = find_jobs(args.images, args.out, recursive=args.recursive)
    for job in jobs:
        if not job.image.suffix:
            raise ValueError(f"{str(job.image)!r} has a name without an ending; rename it to .jpg or .png, as it is")
    jobs = [Job(job.image, work / job.stem.relative_to(args.out)) for job in jobs]
    refuse_collisions(jobs, [_ENDING], overwrite=True)
    return jobs, skipped


def _refuse_existing(folders: list[Path], *, overwrite: bool) -> None:
    existing = [folder for folder in folders if folder.exists()]
    if existing and not overwrite:
        raise ValueError(f"{str(existing[0])!r} exists already; give --overwrite to replace it, or another --out")


def _begin(args: argparse.Namespace, work: Path, vocabulary: Vocabulary, jobs: list[Job]) -> list[Job]:
    """Create the folder of unfinished results, or check that it is of the same run; return the jobs to do.

    Raises:
        ValueError: there are unfinished results and no --resume, or they are of other options.
    """
    settings = {
        "classes": [[each.name, *each.synonyms, *each.prompts] for each in vocabulary.classes],
        "context": vocabulary.num_context,
        **{
            name: getattr(args, name)
            for name in ("model", "config", "revision", "dtype", "flip", "threshold", "none_of_these")
        },
        **{name: getattr(args, name) for name in ("instances", "min_area", "score_threshold")},
        "scales": list(args.scales),
    }
    if args.overwrite:
        shutil.rmtree(work, ignore_errors=True)
    if (work / _SETTINGS).exists():
        if not args.resume:
            raise ValueError(f"{str(work)!r} has an unfinished run; give --resume to continue it, or --overwrite")
        before = read_plain_file(work / _SETTINGS, "settings of the unfinished run")
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"the unfinished run in {str(work)!r} has another {name}, {excerpt(before.get(name))} instead of "
                f"{excerpt(settings[name])}; give the same options, or --overwrite"
            )
        return unfinished(jobs, [_ENDING])
    write_whole(work / _SETTINGS, json.dumps(settings))
    return jobs


def _write_regions(job: Job, result: Any, *, num_classes: int, options: RegionOptions) -> None:
    """Keep the regions of a picture's `Segmentation` until all are done."""
    from san.labelling.regions import find_regions

    found = find_regions(result.labels, result.best_scores, num_classes, options)
    write_together({job.outputs([_ENDING])[0]: found.save})


def _name(job: Job, work: Path) -> str:
    """Return a picture's path within a set."""
    return job.stem.relative_to(work).as_posix() + os.path.splitext(job.image.name)[1]


def _load_image(job: Job, name: str) -> LabelledImage:
    from san.labelling.regions import RegionMap
    from san.labelling.sets import LabelledImage

    return LabelledImage(job.image, name, RegionMap.load(job.outputs([_ENDING])[0]))
