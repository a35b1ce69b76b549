"""PASCAL VOC 2012 with the augmented training list: label PNGs of indices, 0 = background, 255 = border.

Training labels come from SegmentationClassAug; validation labels may come from the official SegmentationClass.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from san.data.benchmarks import BENCHMARKS
from san.io.errors import listed
from san.preparation.files import write_bytes
from san.preparation.plan import MakeLabel, Preparation, SplitPlan, plan_pairs
from san.preparation.png_labels import convert_png
from san.preparation.sources import DownloadPart, PreparationOptions, find_part, find_part_if_any, need_file

REGISTERED = {"train": "voc_sem_seg_train", "val": "voc_sem_seg_val"}
OFFICIAL_TRAIN = 1_464

DEVKIT = DownloadPart(
    "VOC 2012", ("VOC2012", "VOCdevkit/VOC2012", "."), "JPEGImages", ("VOCtrainval_11-May-2012.tar",), "VOC2012",
    r"(?:.*/)?VOC2012/(JPEGImages/[^/]+\.jpg|ImageSets/Segmentation/[^/]+\.txt|SegmentationClass/[^/]+\.png)",
    "VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 page",
)  # fmt: skip
AUGMENTED = DownloadPart(
    "SegmentationClassAug",
    tuple(f"{base}SegmentationClassAug" for base in ("VOC2012/", "VOCdevkit/VOC2012/", "")), "",
    ("SegmentationClassAug.zip",), "VOC2012/SegmentationClassAug", r"(?:.*/)?SegmentationClassAug/([^/]+\.png)",
    "SegmentationClassAug.zip, linked from github.com/DrSleep/tensorflow-deeplab-resnet",
)  # fmt: skip

_NAMES = {"train": ("trainaug.txt", "train.txt"), "val": ("val.txt",)}
_LIST_FOLDERS = ("VOC2012", "VOCdevkit/VOC2012", "", "SegmentationClassAug", "VOC2012/SegmentationClassAug")
_OFFICIAL = ("VOC2012/ImageSets/Segmentation", "VOCdevkit/VOC2012/ImageSets/Segmentation", "ImageSets/Segmentation")


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for VOC; also writes `train.txt` and `val.txt` to ROOT/VOC2012 if they are missing.

    Raises:
        FileNotFoundError: a part of the download, or the list of a split, is missing.
        ValueError: a list is not the published one, or an archive is damaged or refused.
    """
    devkit = find_part(DEVKIT, options)
    find_augmented = find_part if "train" in options.splits else find_part_if_any
    augmented = find_augmented(AUGMENTED, options)
    stems = {split: _read_list(_find_list(split, options)) for split in options.splits}
    common = set(stems.get("train", ())) & set(stems.get("val", ()))
    if common:
        raise ValueError(
            f"{len(common)} ids are in both the training and the validation list, such as {min(common)}: the "
            "training list must be trainaug, which is disjoint from val; replace it"
        )
    plans = []
    for split in options.splits:
        _write_list(options.root / "VOC2012" / f"{split}.txt", stems[split])
        plans.append(_plan_split(split, stems[split], devkit, augmented, options))
    return plans


def _plan_split(
    split: str, stems: list[str], devkit: Path, augmented: Path | None, options: PreparationOptions
) -> SplitPlan:
    official, official_labels, missing = devkit / "SegmentationClass", 0, []
    pairs: dict[str, tuple[Path, MakeLabel]] = {}
    for stem in stems:
        image, label = devkit / "JPEGImages" / f"{stem}.jpg", (augmented or official) / f"{stem}.png"
        if split == "val" and not label.is_file():
            label = official / f"{stem}.png"
        official_labels += label.parent == official
        if label.is_file() and image.is_file():
            pairs[stem] = image, partial(convert_png, label, image, "voc_20")
        else:
            missing.append(str(label if image.is_file() else image))
    result = plan_pairs(BENCHMARKS[REGISTERED[split]], options, pairs, label_bytes=lambda stem: 4000)
    if official_labels:
        result.notes.append(
            f"{official_labels} labels from the official SegmentationClass, as SegmentationClassAug lacks them"
        )
    if missing:
        result.problems.append(
            f"{len(missing)} files of the list are missing: {listed(missing)}; use the complete "
            "SegmentationClassAug.zip, not a folder made from SBD's .mat files, and unpack VOC 2012 again"
        )
    return result


def _find_list(split: str, options: PreparationOptions) -> Path:
    names = [f"{folder}/{name}".lstrip("/") for name in _NAMES[split] for folder in _LIST_FOLDERS]
    if split == "val":
        names += [f"{folder}/val.txt" for folder in _OFFICIAL]
        return need_file("VOC's list val.txt", tuple(names), options, "ImageSets/Segmentation/val.txt of VOC 2012")
    names += [f"{folder}/trainaug.txt" for folder in _OFFICIAL]  # train.txt in these folders is the short official list
    return need_file(
        "VOC's augmented training list", tuple(names), options,
        "the list of 10,582 ids (trainaug.txt) that goes with SegmentationClassAug",
    )  # fmt: skip


def _read_list(path: Path) -> list[str]:
    """Read the ids of a list; each line starts with an id or an image path."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    stems = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not stems or len(set(stems)) != len(stems):
        raise ValueError(f"list {path} is empty or names an image twice; use the published list")
    if path.name.startswith("train") and len(stems) == OFFICIAL_TRAIN:
        raise ValueError(
            f"list {path} contains the {OFFICIAL_TRAIN} ids of the official training list, but the augmented one of "
            "10,582 ids (trainaug.txt) is needed; replace it"
        )
    return stems


def _write_list(path: Path, stems: Iterable[str]) -> None:
    if not path.exists():
        write_bytes(path, "".join(f"{stem}\n" for stem in stems).encode())


VOC = Preparation("PASCAL VOC 2012, 20 classes", REGISTERED, plan)
