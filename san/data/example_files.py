"""Finds examples of classes: in a file that lists pictures, or in a labelled data set (docs/examples.md)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from san.data.custom import CustomDataset, CustomSplit
from san.data.label_maps import read_truth
from san.io.errors import excerpt
from san.io.image_files import read_label_map
from san.io.plain_file import check_keys, read_plain_file, user_path
from san.vocabulary.classes import ClassText, check_distinct, parse_class

Box = tuple[float, float, float, float]

_KEYS = ("image", "mask", "box")
_WHOLE = 0.6  # diameter of the ellipse that stands for a picture without mask and box, as a share of its sides
_LEAST_SHARE = 0.002  # of a picture's pixels that a class must have there to be an example; 32 pixels of 128 x 128


@dataclass(frozen=True, eq=False)
class ClassExample:
    """One picture of a class.

    Attributes:
        name: of the class.
        image: the picture: a file, or anything else that `Segmenter.encode` takes.
        mask: (H, W) bool, where the object is.
        box: instead of a mask, left, top, right and bottom in pixels. With neither, the object is in the middle.
    """

    name: str
    image: Any
    mask: npt.NDArray[np.bool_] | None = None
    box: Box | None = None

    @property
    def source(self) -> str:
        """The name of the picture in messages."""
        return repr(str(self.image)) if isinstance(self.image, (str, Path)) else "a picture"

    def target(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Return (H, W) bool, the pixels that the mask proposal should cover.

        Raises:
            ValueError: mask and box are given, one does not fit the picture, or it covers no pixel.
        """
        where = f"the example of class {excerpt(self.name)} in {self.source}"
        if self.mask is not None and self.box is not None:
            raise ValueError(f"{where} has a mask and a box; give one of them")
        if self.mask is not None:
            found = np.asarray(self.mask) > 0
            if found.shape != (height, width):
                raise ValueError(f"{where} has a mask of shape {found.shape}, but the picture is {(height, width)}")
        elif self.box is not None:
            found = np.zeros((height, width), np.bool_)
            left, top, right, bottom = (round(value) for value in self.box)
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ValueError(
                    f"{where} has the box {self.box} in a picture of {width} x {height} pixels; give left, top, right, "
                    "bottom inside it"
                )
            found[top:bottom, left:right] = True
        else:
            y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
            found = x**2 + y**2 <= _WHOLE**2
        if not found.any():
            raise ValueError(f"{where} covers no pixel; mark the object")
        return found


def read_example_file(path: str | Path) -> tuple[tuple[ClassText, ...], list[ClassExample]]:
    """Read a YAML or JSON file that lists classes with their pictures; paths are relative to it.

    Its one key is ``classes``, a list of classes as in every vocabulary. A class with examples is a mapping with the
    further key ``examples``, a list of ``{image: FILE}``, ``{image: FILE, mask: FILE}`` or ``{image: FILE, box: [left,
    top, right, bottom]}``. A mask is a label map in which 0 is not the object.

    Raises:
        FileNotFoundError: the file or a mask does not exist.
        ValueError: a key is unknown or missing, a value is invalid, or there is no example.
    """
    path = user_path(str(path), "the path of the file of examples")
    where = f"file of examples {path}"
    content = check_keys(read_plain_file(path, "file of examples"), ("classes",), where)
    rows = content.get("classes")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"classes in {where} is {excerpt(rows)}; give a list of classes")
    classes: list[ClassText] = []
    pictures: list[ClassExample] = []
    for index, row in enumerate(rows):
        place = f"classes[{index}] in {where}"
        listed = row.get("examples", []) if isinstance(row, Mapping) else []
        try:
            rest = {key: value for key, value in row.items() if key != "examples"} if isinstance(row, Mapping) else row
            classes.append(parse_class(rest))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if not isinstance(listed, list):
            raise ValueError(f"examples of {place} is {excerpt(listed)}; give a list such as [{{image: a.jpg}}]")
        for number, each in enumerate(listed):
            pictures.append(_picture(each, classes[-1].name, path.parent, f"examples[{number}] of {place}"))
    check_distinct(classes, where)
    if not pictures:
        raise ValueError(f"{where} has no example; give a class the key 'examples', such as [{{image: a.jpg}}]")
    return tuple(classes), pictures


def _picture(row: Any, name: str, folder: Path, where: str) -> ClassExample:
    """Parse one example."""
    row = check_keys(row, _KEYS, where)
    if "image" not in row:
        raise ValueError(f"{where} has no 'image'; give the path of a picture")
    for key in ("image", "mask"):
        if key in row and (not isinstance(row[key], str) or not row[key]):
            raise ValueError(f"{key} of {where} is {excerpt(row[key])}; give the path of a file")
    box = row.get("box")
    if box is not None:
        numbers = [value for value in box if type(value) in (int, float)] if isinstance(box, list) else []
        if len(numbers) != 4 or len(box) != 4:
            raise ValueError(f"box of {where} is {excerpt(box)}; give [left, top, right, bottom] in pixels")
        box = tuple(map(float, numbers))
    mask = read_label_map(folder / user_path(row["mask"], where)) > 0 if "mask" in row else None
    return ClassExample(name, folder / user_path(row["image"], where), mask, box)


def split_of(dataset: CustomDataset, split: str | None) -> CustomSplit:
    """Return a split of a data set: the named one, else "train", else its only one.

    Raises:
        ValueError: there is no such split.
    """
    by_name = {each.split: each for each in dataset.splits}
    if split is None and len(by_name) == 1:
        return dataset.splits[0]
    if (split or "train") not in by_name:
        shown = ", ".join(filter(None, by_name)) or "none"
        raise ValueError(f"the data set {dataset.name} has no split {excerpt(split or 'train')}; it has {shown}")
    return by_name[split or "train"]


def examples_of_dataset(
    dataset: CustomDataset, split: CustomSplit, count: int, *, names: Sequence[str] = (), seed: int = 0
) -> Iterator[ClassExample]:
    """Yield up to `count` examples of each class from a labelled split, picture by picture.

    All pixels of a class in a picture are one example, if they are at least 0.2 % of it. Pictures are read in a random
    order until every class has its examples.

    Args:
        dataset: the data set.
        split: one of its splits.
        count: examples of each class.
        names: classes to find; all by default.
        seed: of the order.

    Raises:
        FileNotFoundError, ValueError: a label map is missing or wrong, or a name is of no class.
    """
    unknown = [name for name in names if name not in dataset.class_names]
    if unknown:
        raise ValueError(f"the data set {dataset.name} has no class {excerpt(unknown[0])}")
    wanted = {number: count for number, name in enumerate(dataset.class_names) if not names or name in names}
    pairs = list(split.pairing().usable(split.name))
    random.Random(seed).shuffle(pairs)
    for pair in pairs:
        if not any(wanted.values()):
            return
        truth = read_truth(pair["sem_seg_file_name"], len(dataset.classes), dataset.ignore_label, dataset.label_mapping)
        numbers, pixels = np.unique(truth, return_counts=True)
        image = Path(pair["file_name"])
        for number, size in zip(numbers.tolist(), pixels.tolist(), strict=True):
            if wanted.get(number, 0) and size >= _LEAST_SHARE * truth.size:
                wanted[number] -= 1
                yield ClassExample(dataset.class_names[number], image, truth == number)
