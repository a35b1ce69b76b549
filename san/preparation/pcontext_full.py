"""PASCAL Context with 459 classes: `LabelMap` of one .mat file per image (uint16, class + 1), images of VOC 2010."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from san.data.benchmarks import BENCHMARKS
from san.io.errors import require_extra
from san.preparation.encoding import Array, check_raw_values, class_table, fit_to_image, write_labels
from san.preparation.pascal_detail import find_detail, image_files, image_folder, read_detail
from san.preparation.plan import MakeLabel, Preparation, SplitPlan, plan_pairs
from san.preparation.sources import DownloadPart, PreparationOptions, find_part

REGISTERED = {"train": "pcontext_full_sem_seg_train", "val": "pcontext_full_sem_seg_val"}
LABELS = DownloadPart(
    "PASCAL Context label maps", ("trainval", "pcontext_full/trainval", "VOC2010/trainval"), "", ("trainval.tar.gz",),
    "pcontext_full/trainval", r"(?:.*/)?trainval/([^/]+\.mat)",
    "trainval.tar.gz from the PASCAL-Context page",
)  # fmt: skip


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for PC-459.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: trainval_merged.json or an archive is damaged or not the published one.
        MissingExtraError: scipy is not installed.
    """
    require_extra("train", "preparing pcontext_full", "scipy")
    images = read_detail(find_detail(options), with_masks=False)
    maps, folder = find_part(LABELS, options), image_folder(options)
    plans = []
    for split in options.splits:
        files = image_files(images, split, folder)
        pairs: dict[str, tuple[Path, MakeLabel]] = {
            image.stem: (file, partial(convert_mat, maps / f"{image.stem}.mat", file)) for image, file in files.found
        }
        benchmark, problems = BENCHMARKS[REGISTERED[split]], files.problems
        plans.append(plan_pairs(benchmark, options, pairs, label_bytes=lambda stem: 20_000, problems=problems))
    return plans


def convert_mat(source: Path, image: Path, path: Path) -> None:
    """Write the class indices of one .mat file.

    Raises:
        FileNotFoundError: source or image do not exist.
        ValueError: they are damaged or differ in size, or the labels are not uint16 ids of 0..459.
    """
    values = read_mat(source)
    check_raw_values(values, frozenset(range(460)), source, "use trainval.tar.gz of PASCAL-Context (ids 0..459)")
    write_labels(path, fit_to_image(class_table("pascal_context_459")[values], image, source))


def read_mat(path: Path) -> Array:
    """Read `LabelMap` of a .mat file, (H, W) uint16.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, lacks `LabelMap`, or contains another type.
    """
    import scipy.io

    if not path.is_file():
        raise FileNotFoundError(f"label file {path} does not exist; unpack trainval.tar.gz again")
    try:
        content: dict[str, Any] = scipy.io.loadmat(path, variable_names=["LabelMap"])
    except (ValueError, TypeError, OSError, EOFError, NotImplementedError, zlib.error, LookupError) as error:
        raise ValueError(f"label file {path} cannot be read ({error}); unpack trainval.tar.gz again") from error
    values = content.get("LabelMap")
    if values is None or values.ndim != 2 or values.dtype != np.uint16:
        found = "no LabelMap" if values is None else f"a LabelMap of {values.dtype} in {values.ndim} dimensions"
        raise ValueError(
            f"label file {path} contains {found} but must contain a LabelMap of uint16 in 2 dimensions (459 ids do not "
            "fit in 8 bits); use the published file"
        )
    return np.asarray(values)


PCONTEXT_FULL = Preparation("PASCAL Context, 459 classes", REGISTERED, plan)
