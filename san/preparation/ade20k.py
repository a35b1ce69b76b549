"""ADE20K-150 (SceneParse150): one archive of images and 8-bit label PNGs, pixel = class + 1, 0 = other."""

from __future__ import annotations

from san.data.benchmarks import BENCHMARKS
from san.preparation.plan import Preparation, SplitPlan
from san.preparation.png_labels import plan_png_split
from san.preparation.sources import DownloadPart, PreparationOptions, find_part

REGISTERED = {"train": "ade20k_sem_seg_train", "val": "ade20k_sem_seg_val"}
FOLDERS = {"train": "training", "val": "validation"}
HOME = "ADEChallengeData2016"


def part(splits: tuple[str, ...]) -> DownloadPart:
    """Return the part of the download with the images and labels of the requested splits."""
    names = "|".join(FOLDERS[split] for split in splits)
    return DownloadPart(
        "ADE20K SceneParse150", (HOME, "."), f"annotations/{FOLDERS[splits[0]]}", (f"{HOME}.zip",), HOME,
        rf"(?:.*/)?{HOME}/(images/(?:{names})/[^/]+\.jpg|annotations/(?:{names})/[^/]+\.png|objectInfo150\.txt)",
        f"{HOME}.zip from the SceneParse150 page",
    )  # fmt: skip


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for ADE20K-150.

    Raises:
        FileNotFoundError: the download is missing.
        ValueError: the archive is damaged or refused.
    """
    raw = find_part(part(options.splits), options)
    return [
        plan_png_split(
            BENCHMARKS[REGISTERED[split]],
            options,
            raw / "images" / FOLDERS[split],
            raw / "annotations" / FOLDERS[split],
        )
        for split in options.splits
    ]


ADE20K = Preparation("ADE20K SceneParse150, 150 classes", REGISTERED, plan)
