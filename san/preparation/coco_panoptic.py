"""COCO panoptic: image archives, and one of annotations, which contains an archive of PNGs of segment ids per split.

Nothing is converted: the files are checked, and placed where the registration reads them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from san.data.benchmarks import PANOPTIC_BENCHMARKS
from san.data.panoptic import pair_panoptic
from san.preparation.coco_stuff import images_part
from san.preparation.files import place_file
from san.preparation.jobs import FileJob
from san.preparation.plan import (
    MakeLabel,
    Preparation,
    SplitPlan,
    file_size,
    place_image,
    plan_pairs,
    unpaired_problems,
)
from san.preparation.sources import DownloadPart, PreparationOptions, find_part

REGISTERED = {"train": "coco_2017_train_panoptic", "val": "coco_2017_val_panoptic"}
ARCHIVE = "panoptic_annotations_trainval2017.zip"


def annotations_part(splits: tuple[str, ...]) -> DownloadPart:
    """Return the part of the download with the JSON files, and the archives of the PNGs, of the requested splits."""
    home = "coco/annotations"
    return DownloadPart(
        "COCO panoptic annotations", (home, "annotations"), f"panoptic_{splits[0]}2017.json", (ARCHIVE,), home,
        rf"(?:.*/)?(panoptic_(?:{'|'.join(splits)})2017\.(?:json|zip))", f"{ARCHIVE} from cocodataset.org",
    )  # fmt: skip


def segments_part(split: str) -> DownloadPart:
    """Return the part with the PNGs of a split, whose archive is in that of the annotations."""
    folder = f"panoptic_{split}2017"
    archives = (f"{folder}.zip", f"annotations/{folder}.zip")
    places = tuple(f"{place}{folder}" for place in ("coco/", "", "coco/annotations/", "annotations/"))
    return DownloadPart(
        f"COCO segment ids {folder}", places, "", archives,
        f"coco/{folder}", rf"(?:.*/)?{folder}/([^/]+\.png)", f"{ARCHIVE} from cocodataset.org",
    )  # fmt: skip


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for COCO panoptic.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: an archive is damaged or refused, or a JSON file is not the published one.
    """
    annotations = find_part(annotations_part(options.splits), options)
    return [_plan_split(split, annotations, options) for split in options.splits]


def _plan_split(split: str, annotations: Path, options: PreparationOptions) -> SplitPlan:
    benchmark = PANOPTIC_BENCHMARKS[REGISTERED[split]]
    file = annotations / f"panoptic_{split}2017.json"
    images, segments = find_part(images_part(split), options), find_part(segments_part(split), options)
    pairing = pair_panoptic(images, segments, file, benchmark.category_ids, remedy="unpack the download again")
    pairs: dict[str, tuple[Path, MakeLabel]] = {}
    sizes: dict[str, int] = {}
    for pair in pairing.pairs:
        image, label = Path(pair["file_name"]), Path(pair["pan_seg_file_name"])
        pairs[image.stem] = image, partial(place_image, label, link=options.link)
        sizes[image.stem] = 0 if options.link else file_size(label)
    problems = unpaired_problems(pairing)
    result = plan_pairs(benchmark, options, pairs, label_bytes=sizes.__getitem__, problems=problems)
    assert benchmark.annotations is not None
    target = options.root / benchmark.annotations
    if file.resolve() != target.resolve():
        result.images.append(FileJob(target, partial(place_file, file, link=options.link), file_size(file)))
    return result


COCO_PANOPTIC = Preparation("COCO panoptic, 133 classes", REGISTERED, plan)
