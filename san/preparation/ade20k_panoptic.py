"""ADE20K panoptic: things from the instances of the Places Challenge 2017, stuff from the class maps of SceneParse150.

Writes PNGs of segment ids and a JSON file of COCO's panoptic format. The id of a segment is 256 (class index + 1) +
instance number, which is 0 for stuff, so that the JSON file is made from the PNGs alone.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from san.data.benchmarks import PANOPTIC_BENCHMARKS
from san.data.pairing import pair_files
from san.data.panoptic import describe_segments, encode_segment_ids, format_panoptic_file, read_segment_ids
from san.io.pool import run_in_processes
from san.preparation.ade20k import FOLDERS, HOME
from san.preparation.ade20k import part as scene_part
from san.preparation.encoding import check_raw_values, class_table, fit_to_image, read_colors, read_indices
from san.preparation.files import write_bytes
from san.preparation.jobs import FileJob
from san.preparation.plan import MakeLabel, Preparation, SplitPlan, file_size, plan_pairs, unpaired_problems
from san.preparation.sources import DownloadPart, PreparationOptions, find_part
from san.vocabulary.label_sets import load_label_set

REGISTERED = {"train": "ade20k_panoptic_train", "val": "ade20k_panoptic_val"}
LABEL_SET = "ade20k_150"
INSTANCES = "annotations_instance"
_REMEDY = f"use {INSTANCES}.tar (red 0..100) and annotations/ of {HOME}.zip (values 0..150)"

Array = npt.NDArray[Any]
Described = tuple[str, tuple[int, int], list[dict[str, Any]]]
"""Stem, (height, width) and segments of an image."""


def instances_part(splits: tuple[str, ...]) -> DownloadPart:
    """Return the part of the download with the instances of the requested splits."""
    names = "|".join(FOLDERS[split] for split in splits)
    return DownloadPart(
        "ADE20K instance annotations", (f"{HOME}/{INSTANCES}", INSTANCES), FOLDERS[splits[0]], (f"{INSTANCES}.tar",),
        f"{HOME}/{INSTANCES}", rf"(?:.*/)?{INSTANCES}/((?:{names})/[^/]+\.png)",
        f"{INSTANCES}.tar from the Places Challenge 2017 page",
    )  # fmt: skip


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for ADE20K panoptic.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: an archive is damaged or refused.
    """
    scenes = find_part(scene_part(options.splits), options)
    instances = find_part(instances_part(options.splits), options)
    return [_plan_split(split, scenes, instances / FOLDERS[split], options) for split in options.splits]


def _plan_split(split: str, scenes: Path, instances: Path, options: PreparationOptions) -> SplitPlan:
    benchmark = PANOPTIC_BENCHMARKS[REGISTERED[split]]
    folders = scenes / "images" / FOLDERS[split], scenes / "annotations" / FOLDERS[split]
    pairing = pair_files(*folders, benchmark.image_ext, remedy="unpack the download again")
    pairs: dict[str, tuple[Path, MakeLabel]] = {}
    sizes: dict[str, int] = {}
    for pair in pairing.pairs:
        image, label = Path(pair["file_name"]), Path(pair["sem_seg_file_name"])
        pairs[image.stem] = image, partial(convert_segments, label, instances / label.name, image)
        sizes[image.stem] = file_size(label) + file_size(instances / label.name)
    problems = unpaired_problems(pairing)
    result = plan_pairs(benchmark, options, pairs, label_bytes=sizes.__getitem__, problems=problems)
    assert benchmark.annotations is not None
    write = partial(write_index, benchmark.folders(options.root)[1], sorted(pairs), options.workers, options.progress)
    result.index = FileJob(options.root / benchmark.annotations, write)
    return result


def convert_segments(label: Path, instances: Path, image: Path, path: Path) -> None:
    """Write the segment ids of one image: instances of things over regions of stuff.

    A pixel of a thing's class outside of all instances is in no segment, as a pixel without a class.

    Args:
        label: PNG of classes, 1..150; 0 is no class.
        instances: RGB PNG: red is the number of a thing's class, 1..100, and green that of the instance; 0 is none.
        image: its image, for the size and EXIF rotation.
        path: PNG to write.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is damaged, the sizes differ, or the values are not the published ones.
    """
    values, colors = read_indices(label), read_colors(instances)
    labels = load_label_set(LABEL_SET)
    check_raw_values(values, frozenset((0, *labels.raw_values)), label, _REMEDY)
    check_raw_values(colors[..., 0], frozenset(range(len(labels.things) + 1)), instances, _REMEDY)
    if values.shape != colors.shape[:2]:
        raise ValueError(
            f"label file {label} is {values.shape[0]}x{values.shape[1]} (height x width) but {instances} is "
            f"{colors.shape[0]}x{colors.shape[1]}: they are from different releases; unpack both downloads again"
        )
    classes, stuff, things = class_table(LABEL_SET)[values].astype(np.int64), *_tables()
    numbers, instance = things[colors[..., 0]], colors[..., 1].astype(np.int64)
    ids = np.where(stuff[classes], 256 * (classes + 1), 0)
    ids = np.where((numbers >= 0) & (instance > 0), 256 * (numbers + 1) + instance, ids)
    write_bytes(path, encode_segment_ids(fit_to_image(ids, image, label)))


@cache
def _tables() -> tuple[Array, Array]:
    """Return whether a class index is stuff (256,), and the class index of an instance's class number (101,)."""
    labels = load_label_set(LABEL_SET)
    things = np.array([-1, *(labels.classes.index(name) for name in labels.things)])
    stuff = np.zeros(256, bool)
    stuff[: labels.num_classes] = True
    stuff[things[1:]] = False
    return stuff, things


def write_index(folder: Path, stems: list[str], workers: int, progress: bool, path: Path) -> None:
    """Write the JSON file of a split from its PNGs.

    Args:
        folder: folder of the PNGs.
        stems: images of the split; those without a PNG are left out.
        workers: number of processes.
        progress: show a progress bar on a terminal.
        path: the JSON file.

    Raises:
        ValueError: a PNG is damaged, or not one of this preparation.
    """
    files = [file for stem in stems if (file := folder / f"{stem}.png").is_file()]
    described = run_in_processes(_describe, files, workers=workers, lost=_lost)
    bar = tqdm(described, path.name, len(files), unit="file", disable=None if progress else True, mininterval=0.5)
    found = sorted(bar, key=lambda each: each[0])
    labels = load_label_set(LABEL_SET)
    write_bytes(path, format_panoptic_file(found, labels.classes, labels.things).encode())


def _describe(file: Path) -> Described:
    """Return what the JSON file says of a PNG."""
    ids = read_segment_ids(file)
    stuff, _ = _tables()
    numbers = np.unique(ids[ids > 0])
    classes = numbers // 256 - 1
    if ((classes < 0) | (classes >= len(load_label_set(LABEL_SET).classes))).any() or (
        stuff[classes] != (numbers % 256 == 0)
    ).any():
        raise ValueError(
            f"{file} was not written by this program, which numbers segments in its own way; remove the folder, or use "
            "the JSON file that belongs to it (`touch` it if it is older than the files of the folder)"
        )
    categories = dict(zip(numbers.tolist(), classes.tolist(), strict=True))
    height, width = ids.shape
    return file.stem, (height, width), describe_segments(ids, categories)


def _lost(file: Path) -> Described:
    raise ValueError(f"{file}: the worker process died (out of memory?); repeat the command with --workers 1")


ADE20K_PANOPTIC = Preparation("ADE20K panoptic, 100 things and 50 stuff classes", REGISTERED, plan)
