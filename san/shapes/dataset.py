"""Writes the shapes benchmark to disk, in the layout of the real sets; the files are the same on every machine.

``ROOT/shapes/images/<split>/00000.jpg`` and ``ROOT/shapes/annotations/<split>/00000.png`` (uint8, 255 ignored),
beside a ``manifest.json`` that describes them. The folder is written atomically: under another name, then renamed.

The splits, all evaluated with the mixed vocabulary of 36 names (`world.NAMES`):

- ``val_seen``: scenes of seen things; every pixel is labelled. Its mIoU is over the 28 classes that had masks in
  training.
- ``val_novel``: scenes of novel things only; the grounds' pixels are ignored, so that its mIoU is over only the 8
  novel classes.
- ``val_mixed``: seen and novel things together, every pixel labelled. The mean of its per-class IoUs over `NOVEL` is
  the strictest metric, because it also counts seen things and grounds that are wrongly classified as novel.

The narrow training split contains none of the words `world.FAR_WORDS`, so that a CLIP trained on it can forget them. It
is written only for runs that use it, and evaluated on the pictures of ``val_mixed``.

The panoptic splits, ``shapes_panoptic_*``, have scenes of their own, in which a name may occur several times. They are
written only for runs that use them, to ``ROOT/shapes/panoptic``, see `san.shapes.panoptic`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from san.data.benchmarks import Benchmark
from san.io.plain_file import read_plain_file
from san.shapes.panoptic import write_panoptic
from san.shapes.render import render
from san.shapes.world import (
    FAR,
    GROUNDS,
    NAMES,
    NARROW_SEEN,
    NEAR,
    NOVEL,
    NUM_TRAIN_CLASSES,
    SEEN,
    THINGS,
    class_index,
    repeated_scene_at,
    scene_at,
)
from san.vocabulary.label_sets import LabelSet, expanded_names, load_label_set

IGNORE_LABEL = 255
FOLDER = "shapes"
FORMAT = 1
"""Increase it if pixels or labels change for the same sizes and seed."""
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ShapesSplit:
    """One split.

    Attributes:
        name: registered name.
        folder: folder under ``images`` and ``annotations``.
        things: the things in its scenes.
        classes: its vocabulary; a label map's value is an index into it.
        num_images: default number of images.
        required: every scene contains at least one of these.
        ignored: names of classes with ignored pixels.
    """

    name: str
    folder: str
    things: tuple[str, ...]
    classes: tuple[str, ...]
    num_images: int
    required: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


SHAPES_SPLITS: tuple[ShapesSplit, ...] = (
    ShapesSplit("shapes_sem_seg_train", "train", SEEN, NAMES[:NUM_TRAIN_CLASSES], 4000),
    ShapesSplit("shapes_sem_seg_val_seen", "val_seen", SEEN, NAMES, 200),
    ShapesSplit("shapes_sem_seg_val_novel", "val_novel", NOVEL, NAMES, 200, ignored=GROUNDS),
    ShapesSplit("shapes_sem_seg_val_mixed", "val_mixed", THINGS, NAMES, 200, required=NOVEL),
)

NARROW_TRAIN = ShapesSplit("shapes_narrow_sem_seg_train", "train_narrow", NARROW_SEEN, NARROW_SEEN + GROUNDS, 4000)
NARROW_VAL = "shapes_narrow_sem_seg_val"

PANOPTIC_SPLITS: tuple[ShapesSplit, ...] = (
    ShapesSplit("shapes_panoptic_train", "train", SEEN, NAMES[:NUM_TRAIN_CLASSES], 4000),
    ShapesSplit("shapes_panoptic_val_seen", "val_seen", SEEN, NAMES, 200),
    ShapesSplit("shapes_panoptic_val_mixed", "val_mixed", THINGS, NAMES, 200, required=NOVEL),
)
_PANOPTIC = "panoptic"  # folder of these splits


@dataclass(frozen=True)
class ShapesSizes:
    """Number of images and seed of the benchmark.

    Attributes:
        num_train: number of training images.
        num_val: number of images of each of the three validation splits.
        seed: seed of the images.
    """

    num_train: int = SHAPES_SPLITS[0].num_images
    num_val: int = SHAPES_SPLITS[1].num_images
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, least in (
            ("num_train", self.num_train, 1),
            ("num_val", self.num_val, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} is {value}; set it to {least} or more")

    def count(self, split: ShapesSplit) -> int:
        """Return the number of images of a split."""
        return self.num_val if split.classes == NAMES else self.num_train


@dataclass(frozen=True)
class ShapesBenchmark(Benchmark):
    """A split of the shapes benchmark as `san.data.benchmarks` describes the real ones."""

    classes: tuple[str, ...] = NAMES
    groups: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"seen": SEEN, "novel": NOVEL, "grounds": GROUNDS}
    )

    @property
    def labels(self) -> LabelSet:
        """Class names, ignore label and encodings."""
        return replace(
            load_label_set("shapes_36"),
            name=self.label_set,
            classes=self.classes,
            things=tuple(name for name in self.classes if name in THINGS),
            raw_values=tuple(range(len(self.classes))),
            groups=self.groups,
        )

    @property
    def expanded_names(self) -> Mapping[str, tuple[str, ...]]:
        """See `Benchmark.expanded_names`."""
        return expanded_names("shapes_36")


def _benchmark(split: ShapesSplit) -> ShapesBenchmark:
    """Return what is registered of a split."""
    return ShapesBenchmark(
        split.name,
        "shapes" if split.classes == NAMES else f"shapes_{split.folder}",
        f"{FOLDER}/images/{split.folder}",
        f"{FOLDER}/annotations/{split.folder}",
        split.num_images,
        classes=split.classes,
    )


def _panoptic_benchmark(split: ShapesSplit) -> ShapesBenchmark:
    """Return what is registered of a panoptic split."""
    folder = f"{FOLDER}/{_PANOPTIC}"
    return replace(
        _benchmark(split),
        image_dir=f"{folder}/images/{split.folder}",
        label_dir=f"{folder}/{split.folder}",
        annotations=f"{folder}/{split.folder}.json",
    )


_NARROW_GROUPS = {"seen": NARROW_SEEN, "near": NEAR, "far": FAR, "grounds": GROUNDS}

BENCHMARKS: dict[str, Benchmark] = {
    **{split.name: _benchmark(split) for split in SHAPES_SPLITS},
    NARROW_TRAIN.name: _benchmark(NARROW_TRAIN),
    **{split.name: _panoptic_benchmark(split) for split in PANOPTIC_SPLITS},
    NARROW_VAL: replace(_benchmark(SHAPES_SPLITS[-1]), name=NARROW_VAL, groups=_NARROW_GROUPS),
}
"""The splits by registered name; the narrow evaluation has the pictures of ``val_mixed``, and groups of its own."""


def split_images(
    split: ShapesSplit, seed: int, indices: Sequence[int]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Render images and label maps of a split.

    Args:
        split: one of `SHAPES_SPLITS`, or `NARROW_TRAIN`, which has the random numbers of ``train``.
        seed: seed of the whole benchmark.
        indices: N image indices.

    Returns:
        images (N, S, S, 3) and label maps (N, S, S), uint8.
    """
    streams = {NARROW_TRAIN.folder: 0} | {other.folder: index for index, other in enumerate(SHAPES_SPLITS)}
    stream = seed * len(SHAPES_SPLITS) + streams[split.folder]
    images, labels = render([scene_at(stream, i, split.things, required=split.required) for i in indices])
    values = np.full(len(NAMES), IGNORE_LABEL, dtype=np.uint8)  # of a name's place in `NAMES`
    for value, name in enumerate(split.classes):
        values[class_index(name)] = IGNORE_LABEL if name in split.ignored else value
    return images, values[labels]


def write_shapes(root: str | Path, sizes: ShapesSizes | None = None, *, overwrite: bool = False) -> Path:
    """Write the benchmark below ``root`` unless it exists.

    Args:
        root: folder of the data sets; the benchmark is written to ``shapes`` in it.
        sizes: number of images and seed; None accepts an existing benchmark, else uses the default.
        overwrite: replace a benchmark of other sizes or seed.

    Returns:
        the folder ``root/shapes``.

    Raises:
        ValueError: the folder contains another benchmark or other files, and ``overwrite`` is False.
    """
    root = Path(root)
    target = root / FOLDER
    found = _read_manifest(target)
    if sizes is None and not overwrite and found is not None and found.get("format") == FORMAT:
        return target
    sizes = sizes or ShapesSizes()
    manifest = {"format": FORMAT, **asdict(sizes)}
    if _is_written(target, manifest, overwrite=overwrite):
        return target
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=root))
    try:
        for split in SHAPES_SPLITS:
            _write_split(work, split, sizes)
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)
        if overwrite and target.exists():
            shutil.rmtree(target)
        try:
            os.rename(work, target)
        except OSError:  # another process was faster
            if not _is_written(target, manifest, overwrite=False):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def ensure_written(root: str | Path, names: Sequence[str] = ()) -> Path:
    """Run `write_shapes` with the existing sizes, else the default ones, and add splits that are written on demand.

    Args:
        root: folder of the data sets.
        names: registered names to be used; the narrow split and panoptic splits are written if they are among them.

    Returns:
        the folder ``root/shapes``.
    """
    target = write_shapes(root)
    found = _read_manifest(target) or {}
    sizes = ShapesSizes(**{key: found[key] for key in asdict(ShapesSizes()) if key in found})
    if NARROW_TRAIN.name in names:
        parts = [f"{kind}/{NARROW_TRAIN.folder}" for kind in ("annotations", "images")]
        _add(target, parts, lambda work: _write_split(work, NARROW_TRAIN, sizes))
    for stream, split in enumerate(PANOPTIC_SPLITS, start=1):
        if split.name in names:
            parts = [f"{_PANOPTIC}/{part}" for part in (f"images/{split.folder}", split.folder, f"{split.folder}.json")]
            _add(target, parts, partial(_write_panoptic_split, split=split, stream=stream, sizes=sizes))
    return target


def _add(target: Path, parts: Sequence[str], write: Callable[[Path], Any]) -> None:
    """Write a split into an existing benchmark unless it is there.

    Args:
        target: folder of the benchmark.
        parts: files and folders of the split; the last appears last.
        write: writes them below a folder.
    """
    if (target / parts[-1]).exists():
        return
    work = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=target.parent))
    try:
        write(work)
        for part in parts:
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(work / part, target / part)
            except OSError:  # another process was faster, with the same files
                if not (target / part).exists():
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_manifest(target: Path) -> dict[str, int] | None:
    """Read the manifest of a folder; None if it has none."""
    try:
        record = read_plain_file(target / "manifest.json", "manifest")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _is_written(target: Path, manifest: dict[str, int], *, overwrite: bool) -> bool:
    """Whether the folder matches the manifest; raises if it differs and may not be replaced."""
    if not target.exists():
        return False
    found = _read_manifest(target)
    if found == manifest:
        return True
    if overwrite:
        return False
    raise ValueError(
        f"{str(target)!r} contains {found or 'no shapes benchmark (no manifest.json)'}, not {manifest}; "
        "move it away, choose another root, or pass overwrite=True (--overwrite)"
    )


def _write_split(folder: Path, split: ShapesSplit, sizes: ShapesSizes) -> None:
    """Write one split's images and label maps."""
    image_dir, label_dir = folder / "images" / split.folder, folder / "annotations" / split.folder
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    count, chunk = sizes.count(split), 64
    for start in range(0, count, chunk):
        indices = range(start, min(start + chunk, count))
        for index, image, label in zip(indices, *split_images(split, sizes.seed, indices), strict=True):
            _save_picture(image, image_dir / f"{index:05d}.jpg")
            Image.fromarray(label).save(label_dir / f"{index:05d}.png")


def _save_picture(image: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    """Write a picture (S, S, 3) as JPEG."""
    Image.fromarray(image).save(path, quality=_JPEG_QUALITY, subsampling=0)


def _write_panoptic_split(folder: Path, split: ShapesSplit, stream: int, sizes: ShapesSizes) -> None:
    """Write one panoptic split."""
    draw = partial(repeated_scene_at, sizes.seed, stream, things=split.things, required=split.required)
    scenes = [partial(draw, index) for index in range(sizes.count(split))]
    things = [name for name in split.classes if name in THINGS]
    write_panoptic(folder / _PANOPTIC / split.folder, scenes, split.classes, things, _save_picture)
