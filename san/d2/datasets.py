"""Data sets by name: the six benchmarks, the shapes benchmark, and any folder of images and label maps.

Nothing is registered on import: `register_datasets` does it, and may be called again, with another root too. A name
that someone else has registered (Detectron2 itself registers ``ade20k_sem_seg_*``) is replaced, so that its class names
and folders are those of `san.data.benchmarks`.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from san.d2.api import DatasetCatalog, MetadataCatalog
from san.d2.loaders import Record
from san.data.benchmarks import BENCHMARKS, Benchmark
from san.data.pairing import list_pairs

ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets"


def datasets_root(root: str | Path | None = None) -> Path:
    """The folder of the data sets: the one given, else that of the environment variable, else ``datasets``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def register_datasets(root: str | Path | None = None) -> None:
    """Registers the six benchmarks and the shapes benchmark; reads no data.

    Args:
        root: folder of the data sets, see `datasets_root`.
    """
    folder = datasets_root(root)
    for benchmark in BENCHMARKS.values():
        _register_benchmark(benchmark, folder)
    for benchmark in shapes_benchmarks().values():
        _register_benchmark(benchmark, folder)


def shapes_benchmarks() -> dict[str, Benchmark]:
    """The splits of the shapes benchmark by registered name."""
    from san.data import shapes

    return shapes.BENCHMARKS


def prepare_shapes(names: Sequence[str], root: str | Path | None = None) -> None:
    """Writes the shapes images if one of these data sets is of them and they are missing.

    Args:
        names: data sets about to be used.
        root: folder of the data sets, see `datasets_root`.
    """
    if any(name in shapes_benchmarks() for name in names):
        from san.data.shapes import ensure_written

        ensure_written(datasets_root(root))


def _register_benchmark(benchmark: Benchmark, root: Path) -> None:
    """Registers one split under its name."""
    image_dir, label_dir = benchmark.folders(root)
    labels = benchmark.labels
    extra: dict[str, Any] = {}
    if labels.category_ids is not None:
        extra["stuff_dataset_id_to_contiguous_id"] = {c: i for i, c in enumerate(labels.category_ids)}
    if labels.groups:
        extra["class_groups"] = dict(labels.groups)
    register_folder(
        benchmark.name,
        image_dir,
        label_dir,
        labels.classes,
        ignore_label=labels.ignore_label,
        image_ext=benchmark.image_ext,
        label_ext=benchmark.label_ext,
        **extra,
    )


def register_folder(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    classes: Sequence[str],
    *,
    ignore_label: int = 255,
    image_ext: str = "jpg",
    label_ext: str = "png",
    **metadata: Any,
) -> None:
    """Registers a folder of images and one of label maps of the same names; reads no data.

    Args:
        name: to ask for it by, as in DATASETS.TRAIN.
        image_dir: folder of images.
        label_dir: folder of label maps, pixel = index into classes.
        classes: C class names, the vocabulary.
        ignore_label: value of pixels without a class.
        image_ext: file ending of images, without the dot.
        label_ext: file ending of label maps.
        **metadata: further entries of the metadata catalogue.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, functools.partial(list_pairs, image_dir, label_dir, image_ext, label_ext))
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        ignore_label=ignore_label,
        image_root=str(image_dir),
        sem_seg_root=str(label_dir),
        evaluator_type="sem_seg",
        **metadata,
    )


def check_names(names: Sequence[str], key: str) -> None:
    """Refuses names that are not registered.

    Args:
        names: data sets.
        key: configuration key they come from, for the message.

    Raises:
        ValueError: naming the nearest registered name.
    """
    known = sorted(DatasetCatalog.list())
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(
                f"{key} names the unknown data set {name!r}; did you mean {nearest[0]!r}? Register your own with "
                "san.d2.datasets.register_folder"
            )


def load_records(name: str) -> list[Record]:
    """The records of a registered data set.

    Args:
        name: as registered.

    Returns:
        One record per image, not empty.

    Raises:
        ValueError: if the name is unknown or the data set is empty.
        FileNotFoundError: if its folders are missing or hold no pair of files.
    """
    check_names([name], "DATASETS")
    records: list[Record] = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"data set {name!r} is empty; prepare it (see docs/benchmarks.md)")
    return records


def metadata_of(name: str) -> Any:
    """The metadata of a registered data set: at least stuff_classes and ignore_label.

    Raises:
        ValueError: if it has no class names.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes"):
        raise ValueError(f"data set {name!r} has no stuff_classes in its metadata; register it with its class names")
    if metadata.get("ignore_label") is None:
        metadata.set(ignore_label=255)
    return metadata


def check_distinct_classes(name: str) -> None:
    """Refuses a registered data set with two classes of one name: its metrics by name would be of one of them.

    Raises:
        ValueError: naming them.
    """
    counts = Counter(metadata_of(name).stuff_classes)
    repeated = [repr(each) for each, number in counts.items() if number > 1]
    if repeated:
        raise ValueError(
            f"data set {name!r} has several classes of the name {', '.join(repeated)}; register it with distinct names"
        )
