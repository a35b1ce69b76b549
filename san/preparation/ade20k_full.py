"""ADE20K-847 (full release 2021_17_01): RGB `_seg.png` files listed by index_ade20k.pkl; large images are shrunk.

The number of an object is (R // 10) * 256 + G; the table of 847 numbers is valid for this release only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from san.data.benchmarks import BENCHMARKS
from san.preparation.encoding import Array, class_table, fit_to_image, read_colors, read_upright, write_labels
from san.preparation.files import write_bytes
from san.preparation.jobs import FileJob
from san.preparation.plan import Preparation, SplitPlan
from san.preparation.resizing import resize_bilinear, resize_nearest, shrunk_size
from san.preparation.sources import DownloadPart, PreparationOptions, find_part
from san.preparation.unpickling import load_plain_pickle
from san.vocabulary.label_sets import load_label_set

REGISTERED = {"train": "ade20k_full_sem_seg_train", "val": "ade20k_full_sem_seg_val"}
FOLDERS = {"train": "training", "val": "validation"}
RELEASE = "ADE20K_2021_17_01"
SHORT_SIDE = 512
_IMAGE_BYTES, _LABEL_BYTES = 90_000, 30_000  # mean sizes after the resize


def part(splits: tuple[str, ...]) -> DownloadPart:
    """Return the part with the index, images and `_seg.png` files of the splits; other masks are not unpacked."""
    names = "|".join(FOLDERS[split] for split in splits)
    return DownloadPart(
        f"ADE20K release 2021_17_01 with {RELEASE}/index_ade20k.pkl (earlier releases number objects differently)",
        (RELEASE, "."), "index_ade20k.pkl", (f"*{RELEASE}*.zip",), RELEASE,
        rf"(?:.*/)?{RELEASE}/(index_ade20k\.pkl|images/ADE/(?:{names})/(?:.+/)?ADE_[^/]+(?:\.jpg|_seg\.png))",
        f"the zip with {RELEASE} in its name from the ADE20K site, after registration",
    )  # fmt: skip


@dataclass(frozen=True)
class IndexEntry:
    """One image of the index: its path below the release folder, without file extension."""

    path: PurePosixPath

    @property
    def split(self) -> str:
        """The split; names without "val" are training images, for instance ADE_frame_00000001."""
        return "val" if self.path.name.split("_")[1] == "val" else "train"


def plan(options: PreparationOptions) -> list[SplitPlan]:
    """List the jobs for ADE20K-847.

    Raises:
        FileNotFoundError: the download is missing.
        ValueError: the index is damaged, unsafe or from another release; or the archive is damaged or refused.
    """
    raw = find_part(part(options.splits), options)
    entries = read_index(raw / "index_ade20k.pkl")
    plans = []
    for split in options.splits:
        benchmark = BENCHMARKS[REGISTERED[split]]
        image_dir, label_dir = benchmark.folders(options.root)
        result = SplitPlan(benchmark)
        for entry in entries:
            if entry.split == split:
                image, seg = raw / f"{entry.path}.jpg", raw / f"{entry.path}_seg.png"
                stem = entry.path.name
                result.images.append(FileJob(image_dir / f"{stem}.jpg", partial(convert_image, image), _IMAGE_BYTES))
                result.labels.append(
                    FileJob(label_dir / f"{stem}.tif", partial(convert_labels, seg, image), _LABEL_BYTES)
                )
        plans.append(result)
    return plans


def read_index(path: Path) -> list[IndexEntry]:
    """Return the images of index_ade20k.pkl, sorted by name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the pickle is damaged, unsafe or from another release, or a path is not one of ADE20K's.
    """
    index: Any = load_plain_pickle(path)
    missing = {"filename", "folder", "objectnames"} - (index.keys() if isinstance(index, dict) else set())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; use index_ade20k.pkl of {RELEASE}")
    _check_names([str(name) for name in index["objectnames"]], path)
    names, folders = list(map(str, index["filename"])), list(map(str, index["folder"]))
    if len(names) != len(folders) or len(set(names)) != len(names):
        raise ValueError(
            f"{path} has {len(names)} file names, {len(set(names))} of them distinct, and {len(folders)} folders, but "
            "needs one folder per distinct name; unpack it again"
        )
    return sorted((_entry(*pair, path) for pair in zip(folders, names, strict=True)), key=lambda e: e.path.name)


def _entry(folder: str, name: str, path: Path) -> IndexEntry:
    parts = PurePosixPath(folder).parts
    if parts[:1] != (RELEASE,):
        raise ValueError(
            f"{path} puts {name} into {folder!r}, which does not start with {RELEASE}: it is from another release, "
            f"whose objects are numbered differently; use {RELEASE}"
        )
    if ".." in parts or "/" in name or not (name.startswith("ADE_") and name.endswith(".jpg")):
        raise ValueError(
            f"{path} lists the image {folder}/{name}, which is not an image of ADE20K; use the index of {RELEASE}"
        )
    return IndexEntry(PurePosixPath(*parts[1:], name.removesuffix(".jpg")))


def _check_names(objects: list[str], path: Path) -> None:
    """Check that the 847 numbers belong to the 847 names; other releases number objects differently."""
    labels = load_label_set("ade20k_847")
    pairs = zip(labels.raw_values, labels.classes, strict=True)
    wrong = [(n, name) for n, name in pairs if n > len(objects) or _first_name(objects[n - 1]) != _first_name(name)]
    if len(wrong) > 0.1 * labels.num_classes:  # the spelling of some names differs
        number, name = wrong[0]
        found = objects[number - 1] if number <= len(objects) else "missing"
        raise ValueError(
            f"{path} has {len(objects)} objects and number {number} is {found!r} but must be {name!r}: it is from "
            f"another release, whose objects are numbered otherwise; take {RELEASE}"
        )


def _first_name(name: str) -> str:
    return name.split(",")[0].strip().lower()


def decode_numbers(colors: Array) -> Array:
    """Return the object numbers of a `_seg.png`: (H, W, 3) uint8 -> (H, W) uint16, 0 = not annotated."""
    red, green = colors[..., 0].astype(np.uint16), colors[..., 1].astype(np.uint16)  # 25 * 256 overflows uint8
    return np.asarray(red // 10 * 256 + green)


def convert_labels(source: Path, image: Path, path: Path) -> None:
    """Write the class indices of one `_seg.png`, shrunk to its image's size with nearest neighbour.

    Raises:
        FileNotFoundError: source or image do not exist.
        ValueError: they are damaged, differ in size, or the labels are not RGB.
    """
    values = class_table("ade20k_847")[decode_numbers(read_colors(source))]
    values = fit_to_image(values, image, source)
    height, width = values.shape
    write_labels(path, resize_nearest(values, shrunk_size(height, width, SHORT_SIDE)))


def convert_image(source: Path, path: Path) -> None:
    """Write one image as the published conversion does: upright, short side at most 512, Pillow's JPEG.

    Raises:
        FileNotFoundError: the image does not exist.
        ValueError: it is damaged.
    """
    picture = read_upright(source)
    size = shrunk_size(picture.height, picture.width, SHORT_SIDE)
    if size != (picture.height, picture.width):
        picture = Image.fromarray(resize_bilinear(np.asarray(picture), size))
    buffer = BytesIO()
    Image.fromarray(np.asarray(picture)).save(buffer, "JPEG")  # a new image has no EXIF data
    write_bytes(path, buffer.getvalue())


ADE20K_FULL = Preparation("ADE20K full, 847 classes", REGISTERED, plan)
