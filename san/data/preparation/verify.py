"""Checks prepared folders: every label readable, of the right type and with legal values, and lying on its image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from san.data.benchmarks import Benchmark
from san.data.image_files import decode, open_image, orientation
from san.data.label_sets import check_label_values
from san.data.preparation.jobs import FileJob
from san.data.preparation.sources import files_by_stem

_MODES = {"uint8": ("L",), "uint16": ("I;16",)}


def split_jobs(benchmark: Benchmark, root: Path) -> tuple[list[FileJob], list[str]]:
    """One job for each label file of a split that has an image, and a line for what has no partner.

    Images without a label are normal only in VOC, whose splits share one folder.
    """
    image_dir, label_dir = benchmark.folders(root)
    try:
        images = files_by_stem(image_dir, f".{benchmark.image_ext}")
        labels = files_by_stem(label_dir, f".{benchmark.label_ext}")
    except FileNotFoundError as error:
        return [], [str(error).replace("unpack the download again", "prepare the set")]
    problems = []
    lonely = sorted(labels.keys() - images.keys())
    if lonely:
        problems.append(f"{len(lonely)} labels in {label_dir} have no image in {image_dir}: {_first(lonely)}")
    unlabelled = sorted(images.keys() - labels.keys())
    if unlabelled and not benchmark.shared_images:
        problems.append(f"{len(unlabelled)} images in {image_dir} have no label: {_first(unlabelled)}; prepare the set")
    jobs = [
        FileJob(labels[stem], partial(verify_pair, images[stem], benchmark))
        for stem in sorted(images.keys() & labels.keys())
    ]
    return jobs, problems


def verify_pair(image_path: Path, benchmark: Benchmark, path: Path) -> None:
    """Refuse a prepared label that is not what the registration promises, or an image that does not decode.

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: says which file is wrong, and how.
    """
    remedy = f"delete {path} and prepare the set again"
    labels = benchmark.labels
    try:
        label = open_image(path, f"label {path}")
        if label.mode not in _MODES[labels.label_dtype]:
            raise ValueError(f"label {path} has mode {label.mode} but must be {labels.label_dtype}")
        values = np.asarray(decode(label, f"label {path}"))
        check_label_values(np.unique(values), labels.num_classes, labels.ignore_label, source=f"label {path}")
    except ValueError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; {remedy}") from error
    image = open_image(image_path, f"image {image_path}")
    size = (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)
    if size != values.shape:
        raise ValueError(
            f"label {path} is {values.shape[0]}x{values.shape[1]} (height x width) but image {image_path}, upright, is "
            f"{size[0]}x{size[1]}; {remedy}"
        )
    image.draft("L", (1, 1))  # an eighth of the resolution reads the whole file in a fraction of the time
    decode(image, f"image {image_path}")


def _first(stems: list[str]) -> str:
    return ", ".join(stems[:3]) + (", …" if stems[3:] else "")
