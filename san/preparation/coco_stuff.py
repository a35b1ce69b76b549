"""COCO-Stuff-164k: two image archives and one of 8-bit label PNGs, pixel = category id - 1."""

from __future__ import annotations

from san.data.benchmarks import BENCHMARKS
from san.preparation.plan import Preparation, SplitPlan
from san.preparation.png_labels import plan_png_split
from san.preparation.sources import DownloadPart, PreparationOptions, find_part

REGISTERED = {"train": "coco_2017_train_stuff_sem_seg", "val": "coco_2017_test_stuff_sem_seg"}


def images_part(split: str) -> DownloadPart:
    """Return the part of the download with the images of a split."""
    folder = f"{split}2017"
    return DownloadPart(
        f"COCO images {folder}", (f"coco/{folder}", folder), "", (f"{folder}.zip",), f"coco/{folder}",
        rf"(?:.*/)?{folder}/([^/]+\.jpg)", f"{folder}.zip from cocodataset.org",
    )  # fmt: skip


def labels_part(splits: tuple[str, ...]) -> DownloadPart:
    """Return the part of the download with the label PNGs of the requested splits."""
    names = "|".join(f"{split}2017" for split in splits)
    home, archive = "coco/stuffthingmaps", "stuffthingmaps_trainval2017.zip"
    return DownloadPart(
        "COCO-Stuff label maps", (home, "stuffthingmaps"), f"{splits[0]}2017", (archive,), home,
        rf"(?:.*/)?((?:{names})/[^/]+\.png)", f"{archive} from github.com/nightrome/cocostuff",
    )  # fmt: skip


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for COCO-Stuff.

    Raises:
        FileNotFoundError: a part of the download is missing.
        ValueError: an archive is damaged or refused.
    """
    maps = find_part(labels_part(options.splits), options)
    return [
        plan_png_split(
            BENCHMARKS[REGISTERED[split]],
            options,
            find_part(images_part(split), options),
            maps / f"{split}2017",
        )
        for split in options.splits
    ]


COCO_STUFF = Preparation("COCO-Stuff-164k, 171 classes", REGISTERED, plan)
