"""Registers data sets: the benchmarks, the shapes benchmark, and custom ones described by a file or arguments.

Nothing is registered on import. `register_datasets` and `register_custom` may be called again, also with another root.
If another package has registered the name of a benchmark (as Detectron2 does), it is replaced, so that class names and
folders are those of `san.data.benchmarks`. A custom data set must not use the name of another.

Metadata of a data set: ``stuff_classes`` and ``ignore_label``; optionally ``class_texts`` (inputs of the text encoder
instead of the names), ``learnt_classes`` (instead of both, see `use_vocabulary_file`), ``label_mapping`` (pixel values
of the files to class indices), ``class_groups``. A panoptic set has ``evaluator_type`` "panoptic_seg" and ``things``
(names of things), and ``stuff_classes`` has all of its classes, too.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from san.d2.api import CfgNode, DatasetCatalog, MetadataCatalog, comm
from san.d2.data.loaders import Record
from san.data.benchmarks import PUBLISHED_BENCHMARKS, YTVIS_SPLITS, Benchmark
from san.data.checking.pair import count_values
from san.data.custom import load_custom_dataset
from san.data.label_mapping import LabelMapping
from san.data.label_maps import doubt_about_masks
from san.data.pairing import Pairing, pair_files
from san.data.subset import evenly_spread
from san.io.files import user_path
from san.io.image_files import read_label_map
from san.vocabulary.classes import ClassText, text_key
from san.vocabulary.vocabulary_file import read_learnt_classes, with_learnt

logger = logging.getLogger("san.d2.datasets")

ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets"

_NUM_INSPECTED = 8  # label maps of a data set that are inspected before it is used


def datasets_root(root: str | Path | None = None) -> Path:
    """Return the folder of the data sets: `root`, else the environment variable, else ``datasets``."""
    return user_path(str(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT), "the folder of the data sets")


def register_datasets(root: str | Path | None = None, names: str = "default") -> None:
    """Register the benchmarks, semantic and panoptic, and the shapes benchmark; reads no data.

    Args:
        root: folder of the data sets, see `datasets_root`.
        names: texts of their classes, of `san.vocabulary.label_sets.NAMES`.
    """
    folder = datasets_root(root)
    for benchmark in (*PUBLISHED_BENCHMARKS.values(), *shapes_benchmarks().values()):
        _register_benchmark(benchmark, folder, names)


def shapes_benchmarks() -> dict[str, Benchmark]:
    """Return the splits of the shapes benchmark by registered name."""
    from san.shapes.dataset import BENCHMARKS as SHAPES_BENCHMARKS

    return SHAPES_BENCHMARKS


def prepare_shapes(names: Sequence[str], root: str | Path | None = None) -> None:
    """Write the shapes images if one of the data sets needs them and they are missing.

    Args:
        names: data sets to use.
        root: folder of the data sets, see `datasets_root`.
    """
    if any(name in shapes_benchmarks() for name in names):
        from san.shapes.dataset import ensure_written

        ensure_written(datasets_root(root), names)


def prepare_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Register the data sets of a configuration, and write the shapes images if they are missing.

    Args:
        cfg: has DATASETS.ROOT, CUSTOM, TEST and TRAIN. Every process must call this function.
        training: whether DATASETS.TRAIN is needed.

    Raises:
        FileNotFoundError, ValueError: the file of a data set is missing or invalid, or a name is unknown.
    """
    register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.NAMES)
    register_custom_files(cfg.DATASETS.CUSTOM)
    used = {"DATASETS.TEST": [*cfg.DATASETS.TEST], "DATASETS.TRAIN": [*cfg.DATASETS.TRAIN] if training else []}
    for key, names in used.items():
        check_names(names, key)
    if comm.get_local_rank() == 0:  # once on every machine
        prepare_shapes([name for names in used.values() for name in names], cfg.DATASETS.ROOT)
    comm.synchronize()
    if cfg.TEST.VOCABULARY_FILE:
        if training:
            raise ValueError("TEST.VOCABULARY_FILE is for evaluations alone (san eval); leave it empty in training")
        use_vocabulary_file(cfg.TEST.VOCABULARY_FILE, cfg.DATASETS.TEST)


def use_vocabulary_file(path: str | Path, names: Sequence[str]) -> None:
    """Replace the classes of registered data sets that a vocabulary file has, too, by those of the file.

    Args:
        path: see `san.vocabulary.vocabulary_file`.
        names: data sets; the metadata ``learnt_classes`` of each is set until it is registered again.

    Raises:
        FileNotFoundError, ValueError: the file is missing or invalid, or has no class of a data set.
    """
    learnt = read_learnt_classes(user_path(str(path), "TEST.VOCABULARY_FILE")).classes
    for name in names:
        metadata = metadata_of(name)
        classes = metadata.get("class_texts") or metadata.stuff_classes
        if metadata.get("learnt_classes"):
            del metadata.learnt_classes  # Detectron2 refuses to replace a value
        try:
            metadata.set(learnt_classes=with_learnt(classes, learnt))
        except ValueError as error:
            raise ValueError(f"TEST.VOCABULARY_FILE {path}, data set {name}: {error}") from None


def _register_benchmark(benchmark: Benchmark, root: Path, names: str) -> None:
    """Register one split under its name."""
    labels = benchmark.labels
    published = benchmark.name in PUBLISHED_BENCHMARKS
    extra: dict[str, Any] = {"expected_images": benchmark.num_images} if published else {}
    if benchmark.annotations is not None:
        extra |= {"evaluator_type": "panoptic_seg", "things": labels.things}
    if labels.category_ids is not None:
        extra["stuff_dataset_id_to_contiguous_id"] = {c: i for i, c in enumerate(labels.category_ids)}
    if labels.groups:
        extra["class_groups"] = dict(labels.groups)
    if names == "expanded":
        texts = benchmark.expanded_names
        extra["class_texts"] = tuple(ClassText(each, texts.get(each, ())) for each in labels.classes)
    _register(
        benchmark.name,
        functools.partial(benchmark.pairing, root),
        stuff_classes=list(labels.classes),
        ignore_label=labels.ignore_label,
        **_folders(*benchmark.folders(root), benchmark.image_ext, benchmark.label_ext),
        **extra,
    )


def register_folder(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    classes: Sequence[str],
    *,
    ignore_label: int = 255,
    image_ext: str | Sequence[str] = "jpg",
    label_ext: str | Sequence[str] = "png",
    shared_images: bool = False,
    **metadata: Any,
) -> None:
    """Register a folder of images and one of label maps with the same names; reads no data.

    Args:
        name: name of the data set, as in DATASETS.TRAIN.
        image_dir: folder of images.
        label_dir: folder of label maps, pixel = index into classes.
        classes: C class names, the vocabulary.
        ignore_label: value of pixels without a class.
        image_ext: one or several file extensions of images, without the dot.
        label_ext: one or several file extensions of label maps.
        shared_images: do not report images without a label.
        **metadata: further entries of the metadata catalogue.
    """
    files = functools.partial(pair_files, image_dir, label_dir, image_ext, label_ext, shared_images=shared_images)
    _register(
        name,
        files,
        stuff_classes=list(classes),
        ignore_label=ignore_label,
        **_folders(image_dir, label_dir, image_ext, label_ext),
        **metadata,
    )


def _folders(
    image_dir: str | Path, label_dir: str | Path, image_ext: str | Sequence[str], label_ext: str | Sequence[str]
) -> dict[str, Any]:
    """Return the metadata of a data set of two folders: their paths and file extensions."""
    return {
        "image_root": str(image_dir),
        "sem_seg_root": str(label_dir),
        "image_ext": image_ext,
        "label_ext": label_ext,
    }


def _register(name: str, files: Callable[[], Pairing], **metadata: Any) -> None:
    """Register a data set, replacing one of the same name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, functools.partial(_records, name, files))
    MetadataCatalog.get(name).set(**{"evaluator_type": "sem_seg", "files": files, **metadata})


def _records(name: str, files: Callable[[], Pairing]) -> list[Record]:
    """Return the records of a data set; skipped files are reported."""
    return [{**pair, "dataset_name": name} for pair in files().usable(name)]


def register_custom(path: str | Path) -> list[str]:
    """Register the splits of a custom data set described by a file; reads no image and no label.

    Args:
        path: YAML or JSON, see `san.data.custom`; may be registered again, also after a change.

    Returns:
        the registered names, such as ``["roofs_train", "roofs_val"]``.

    Raises:
        FileNotFoundError, ValueError: the file is missing or invalid, or another data set has one of its names.
    """
    dataset = load_custom_dataset(path)
    for split in dataset.splits:
        _check_free(split.name, dataset.path)
        metadata: dict[str, Any] = {"custom_file": str(dataset.path)}
        if split.image_dir is not None and split.label_dir is not None:
            metadata |= _folders(split.image_dir, split.label_dir, split.image_ext, split.label_ext)
        if dataset.label_mapping is not None:
            metadata["label_mapping"] = dataset.label_mapping
        _register(
            split.name,
            split.pairing,
            stuff_classes=list(dataset.class_names),
            class_texts=dataset.classes,
            ignore_label=dataset.ignore_label,
            **metadata,
        )
    return [split.name for split in dataset.splits]


def register_custom_files(paths: Sequence[str | Path]) -> list[str]:
    """Register several data set files.

    Args:
        paths: see `register_custom`.

    Returns:
        the names of all.

    Raises:
        FileNotFoundError, ValueError: as `register_custom`; or two files have the same name.
    """
    owners: dict[str, str | Path] = {}
    for path in dict.fromkeys(paths):
        for name in register_custom(path):
            if name in owners:
                raise ValueError(f"{owners[name]} and {path} both describe a data set {name!r}; rename one of them")
            owners[name] = path
    return list(owners)


def _check_free(name: str, path: Path) -> None:
    """Raise if a name belongs to another data set."""
    taken = name in PUBLISHED_BENCHMARKS or name in shapes_benchmarks()
    if name in DatasetCatalog.list() and not taken:
        taken = MetadataCatalog.get(name).get("custom_file") is None
    if taken:
        raise ValueError(f"data set file {path} has the name {name!r}, which another data set has; choose another name")


def check_names(names: Sequence[str], key: str) -> None:
    """Check that names are registered.

    Args:
        names: data sets.
        key: configuration key of the names, for the message.

    Raises:
        ValueError: a name is unknown; the message suggests the nearest registered name.
    """
    known = sorted(DatasetCatalog.list())
    for name in names:
        if name in YTVIS_SPLITS:
            raise ValueError(
                f"{key} names {name!r}, which is a set of videos; evaluate it with `san video --evaluate {name}`"
            )
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(
                f"{key} names the unknown data set {name!r}; did you mean {nearest[0]!r}? Describe your own in a file "
                "and pass it in DATASETS.CUSTOM or with --dataset (docs/custom_dataset.md)"
            )


def load_records(name: str) -> list[Record]:
    """Return the records of a registered data set.

    Args:
        name: registered name.

    Returns:
        one record per image; not empty.

    Raises:
        ValueError: the name is unknown or the data set is empty.
        FileNotFoundError: its folders are missing or contain no pair of files.
    """
    check_names([name], "DATASETS")
    records: list[Record] = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"data set {name!r} is empty; prepare it (see docs/datasets.md)")
    metadata = MetadataCatalog.get(name)
    expected = metadata.get("expected_images")
    if expected is not None and expected != len(records):
        logger.warning("%s has %d images, not %d: the results are not those of the benchmark",
                       name, len(records), expected)  # fmt: skip
    own = name not in PUBLISHED_BENCHMARKS and metadata.get("files") is not None  # registered by SAN
    if own and metadata.evaluator_type == "sem_seg":
        files = tuple(record["sem_seg_file_name"] for record in evenly_spread(records, _NUM_INSPECTED))
        _warn_of_masks(name, files, metadata.ignore_label, metadata.get("label_mapping"))
    return records


@functools.cache  # once per run
def _warn_of_masks(name: str, files: tuple[str, ...], ignore_label: int, mapping: LabelMapping | None) -> None:
    """Warn if the first label maps of a data set are masks of two values, one of which is ignored."""
    if not comm.is_main_process():
        return
    values: set[int] = set()
    for file in files:
        try:
            values.update(count_values(read_label_map(file))[0].tolist())
        except (ValueError, OSError):
            return  # the code that uses the file reports it
    doubt = doubt_about_masks(values, ignore_label, mapping)
    if doubt:
        logger.warning("%s: %s (%d label maps were inspected)", name, doubt, len(files))


def pairing_of(name: str) -> Pairing:
    """Return the files of a data set that SAN has registered: pairs, and files without a partner.

    Raises:
        ValueError: it is unknown, or registered by another package.
        FileNotFoundError: its folders are missing or contain no pair of files.
    """
    check_names([name], "the command line")
    files = MetadataCatalog.get(name).get("files")
    if files is None:
        raise ValueError(f"data set {name!r} was not registered by SAN, so its folders are unknown")
    pairing: Pairing = files()
    return pairing


def metadata_of(name: str) -> Any:
    """Return the metadata of a registered data set: at least stuff_classes and ignore_label.

    Raises:
        ValueError: it has no class names.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes"):
        raise ValueError(f"data set {name!r} has no stuff_classes in its metadata; register it with its class names")
    if metadata.get("ignore_label") is None:
        metadata.set(ignore_label=255)
    return metadata


def class_texts(name: str) -> tuple[ClassText, ...]:
    """Return the text encoder's input for each class of a registered data set: its texts, else its name.

    Raises:
        ValueError: it has no class names.
    """
    metadata = metadata_of(name)
    texts: tuple[ClassText, ...] | None = metadata.get("class_texts")
    return texts or tuple(ClassText(each) for each in metadata.stuff_classes)


def check_distinct_classes(name: str) -> None:
    """Check that the class names of a data set are distinct; equal names have equal colours and text embeddings.

    Names are compared as by CLIP's tokenizer, which ignores case, blanks and differences of look-alike characters.

    Raises:
        ValueError: names are repeated; the message lists them.
    """
    classes: list[str] = metadata_of(name).stuff_classes
    counts = Counter(map(text_key, classes))
    repeated = [repr(each) for each in dict.fromkeys(classes) if counts[text_key(each)] > 1]
    if repeated:
        raise ValueError(
            f"data set {name!r} has several classes of the name {', '.join(repeated)}; register it with distinct names"
        )
