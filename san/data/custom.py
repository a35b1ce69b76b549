"""Reads the YAML or JSON file that describes a custom data set (docs/custom_dataset.md).

Its keys are `KEYS`. A data set has a name, classes, and one or several splits. A split has two folders or a list of
files. Only the description is read here; images and labels are read when the data set is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.data.label_mapping import MAX_VALUE, LabelMapping
from san.data.pairing import Pairing, pair_files, read_pair_list
from san.io.errors import brief_repr, excerpt
from san.io.plain_file import check_keys, read_plain_file, user_path
from san.vocabulary.class_file import parse_classes
from san.vocabulary.classes import ClassText, text_key

SOURCE_KEYS = ("images", "labels", "list")
"""Keys that locate the files of a split: two folders, or a list of pairs."""

KEYS = (
    "name",
    "classes",
    "splits",
    *SOURCE_KEYS,
    "image_ext",
    "label_ext",
    "ignore_label",
    "label_mapping",
    "unmapped",
)
"""All keys of a data set file."""

IGNORED = "ignore"
"""Value in `label_mapping` for pixel values without a class."""


@dataclass(frozen=True)
class CustomSplit:
    """The location of a split's files.

    Attributes:
        name: registered name: ``<data set>_<split>``, or the data set's name if it has a single split.
        split: key of the split in the file, such as "train"; "" for a single split.
        image_dir, label_dir: folders; None if the split has a list.
        list_file: text file with one "image, tab, label" line per pair; None if the split has folders.
        image_ext: file endings of images, see `pair_files`.
        label_ext: file endings of label maps.
    """

    name: str
    split: str
    image_dir: Path | None
    label_dir: Path | None
    list_file: Path | None
    image_ext: tuple[str, ...]
    label_ext: tuple[str, ...]

    def pairing(self) -> Pairing:
        """Return the pairs of the split, matched by name or as listed.

        Raises:
            FileNotFoundError, ValueError: see `san.data.pairing`.
        """
        if self.list_file is not None:
            return read_pair_list(self.list_file)
        assert self.image_dir is not None
        assert self.label_dir is not None
        remedy = f"correct the folders of the data set {self.name!r} in its file"
        return pair_files(self.image_dir, self.label_dir, self.image_ext, self.label_ext, remedy=remedy)


@dataclass(frozen=True)
class CustomDataset:
    """The content of a data set file.

    Attributes:
        path: the file.
        name: of the data set.
        classes: C classes in class-index order.
        ignore_label: pixel value without a class, C or more.
        label_mapping: pixel values of the files -> class indices; None if the files contain class indices.
        splits: at least one.
    """

    path: Path
    name: str
    classes: tuple[ClassText, ...]
    ignore_label: int
    label_mapping: LabelMapping | None
    splits: tuple[CustomSplit, ...]

    __repr__ = brief_repr

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C displayed names."""
        return tuple(each.name for each in self.classes)


def load_custom_dataset(path: str | Path) -> CustomDataset:
    """Read a data set file without opening images or labels.

    Args:
        path: .yaml, .yml or .json; relative paths in it are relative to its folder.

    Returns:
        the validated content.

    Raises:
        FileNotFoundError: the file, or the class file it names, does not exist.
        ValueError: the file is not plain data, a key is unknown or missing, or a value is invalid.
    """
    path = user_path(str(path), "the path of the data set file")
    where = f"data set file {path}"
    content = check_keys(read_plain_file(path, "data set file"), KEYS, where)
    for key in ("name", "classes"):
        if key not in content:
            raise ValueError(f"{where} has no {key!r}; add it")
    name = _name(content["name"], f"name in {where}")
    classes = parse_classes(content["classes"], f"classes in {where}", path.parent)
    default = 255 if len(classes) <= 255 else MAX_VALUE  # 8 bits have no free value for more classes
    ignore_label = _ignore_label(content.get("ignore_label", default), classes, where)
    return CustomDataset(
        path=path,
        name=name,
        classes=classes,
        ignore_label=ignore_label,
        label_mapping=_label_mapping(content, classes, ignore_label, where),
        splits=_splits(content, name, path.parent, where),
    )


def _name(value: Any, where: str) -> str:
    """Return a name that is valid in configurations and folder names."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value):
        raise ValueError(
            f"{where} is {excerpt(value)}; give up to 100 letters, digits, '_', '-' and '.', beginning with a "
            "letter or digit"
        )
    return value


def _ignore_label(value: Any, classes: Sequence[ClassText], where: str) -> int:
    """Return the ignore label, a pixel value above the class indices."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_VALUE:
        raise ValueError(f"ignore_label in {where} is {excerpt(value)}; give a pixel value, 0..{MAX_VALUE}, mostly 255")
    if value < len(classes):
        raise ValueError(
            f"ignore_label in {where} is {value}, which is the index of the class {excerpt(classes[value].name)}; set "
            f"it to {len(classes)} or more (255, or 65535 in 16-bit labels); where pixels of value {value} have no "
            f"class, write '{value}: {IGNORED}' in label_mapping"
        )
    return value


def _label_mapping(
    content: Mapping[str, Any], classes: Sequence[ClassText], ignore_label: int, where: str
) -> LabelMapping | None:
    """Return the mapping from pixel values to classes, or None if the file has none."""
    table = content.get("label_mapping")
    if table is None:
        if "unmapped" in content:
            raise ValueError(
                f"{where} has 'unmapped' but no 'label_mapping'; remove it, or map pixel values to classes"
            )
        return None
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"label_mapping in {where} is {excerpt(table)}; give 'pixel value: class name' lines")
    indices = {text_key(each.name): index for index, each in enumerate(classes)}
    if IGNORED in (each.name for each in classes):
        raise ValueError(f"{where} has a class {IGNORED!r}, which in label_mapping means no class; rename the class")
    pairs = tuple(
        (_pixel_value(key, where), _index(value, indices, ignore_label, where)) for key, value in table.items()
    )
    try:
        return LabelMapping(pairs, ignore_label, content.get("unmapped", "refuse"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _pixel_value(key: Any, where: str) -> int:
    """Parse a key of label_mapping, which is text in JSON."""
    if isinstance(key, str) and re.fullmatch(r"\d{1,9}", key):
        return int(key)
    if not isinstance(key, int) or isinstance(key, bool):
        raise ValueError(f"label_mapping in {where} has the key {excerpt(key)}; give pixel values, 0..{MAX_VALUE}")
    return key


def _index(value: Any, indices: Mapping[str, int], ignore_label: int, where: str) -> int:
    """Parse a value of label_mapping: class name, class index or `IGNORED`."""
    if value == IGNORED:
        return ignore_label
    if isinstance(value, str) and (index := indices.get(text_key(value))) is not None:
        return index
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(indices):
        return value
    raise ValueError(
        f"label_mapping in {where} maps to {excerpt(value)}; give a class name, an index 0..{len(indices) - 1}, or "
        f"{IGNORED}"
    )


def _splits(content: Mapping[str, Any], name: str, folder: Path, where: str) -> tuple[CustomSplit, ...]:
    """Return the splits under ``splits``, or the single split that the file describes."""
    endings = tuple(_endings(content.get(key, default), f"{key} in {where}") for key, default in
                    (("image_ext", "jpg"), ("label_ext", "png")))  # fmt: skip
    given = {key: content[key] for key in SOURCE_KEYS if key in content}
    if "splits" not in content:
        return (CustomSplit(name, "", *_source(given, folder, where), *endings),)
    if given:
        raise ValueError(
            f"{where} has both 'splits' and {next(iter(given))!r}; write {', '.join(given)} inside the splits"
        )
    splits = content["splits"]
    if not isinstance(splits, Mapping) or not splits:
        raise ValueError(
            f"splits in {where} is {excerpt(splits)}; give 'train: {{images: ..., labels: ...}}' and the like"
        )
    found = []
    for split, source in splits.items():
        full_name = f"{name}_{_name(split, f'a key of splits in {where}')}"
        place = f"splits.{split} in {where}"
        source = check_keys(source, SOURCE_KEYS, place)
        found.append(CustomSplit(full_name, split, *_source(source, folder, place), *endings))
    return tuple(found)


def _source(source: Mapping[str, Any], folder: Path, where: str) -> tuple[Path | None, Path | None, Path | None]:
    """Return image folder, label folder and list: either the first two or the last is set."""
    for key, value in source.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"{key} in {where} is {excerpt(value)}; give a path, relative to the file")
    if set(source) not in ({"images", "labels"}, {"list"}):
        seen = ", ".join(source) or "none of them"
        raise ValueError(f"{where} has {seen}; give 'images' and 'labels' (two folders), or 'list' (a file) alone")
    paths = {key: folder / user_path(value, f"{key} in {where}") for key, value in source.items()}
    return paths.get("images"), paths.get("labels"), paths.get("list")


def _endings(value: Any, where: str) -> tuple[str, ...]:
    """Return file endings without the dot; one that begins with "_" or "-" is longer than an extension."""
    parts = [value] if isinstance(value, str) else value
    if (
        not isinstance(parts, list)
        or not parts
        or not all(isinstance(part, str) and part.strip(". ") and len(part) < 100 for part in parts)
    ):
        raise ValueError(f"{where} is {excerpt(value)}; give a file ending such as png, or a list of them")
    return tuple(part.strip().lstrip(".") for part in parts)
