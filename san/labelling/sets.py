"""Annotation sets: what every writer gets, and the folder that appears whole."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from san.io.files import PARTIAL
from san.labelling.regions import Region, RegionMap
from san.vocabulary.classes import ClassText


@dataclass(frozen=True)
class SetOptions:
    """What is the same for all images of a set.

    Attributes:
        name: of the set.
        classes: C classes in index order.
        tolerance: of polygons, see `san.labelling.outlines.region_polygons`.
        outlines: "polygons" or "masks" for formats that have both; None for the format's usual one.
        instances: whether each region is a connected component.
        things: class indices, see `RegionOptions`.
    """

    name: str
    classes: tuple[ClassText, ...]
    tolerance: float = 0.0
    outlines: str | None = None
    instances: bool = False
    things: tuple[int, ...] | None = None

    def is_thing(self, label: int) -> bool:
        """Whether regions of a class are connected components."""
        return self.instances and (self.things is None or label in self.things)

    @property
    def names(self) -> tuple[str, ...]:
        """C names."""
        return tuple(each.name for each in self.classes)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with its regions.

    Attributes:
        source: the image file.
        name: its path within the set, with / between folders, such as "street/a.jpg".
        region_map: its regions.
    """

    source: Path
    name: str
    region_map: RegionMap

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return os.path.splitext(self.name)[0]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.region_map.ids.shape
        return height, width

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The regions, in order."""
        return tuple(self.region_map.regions())


class AnnotationWriter(ABC):
    """Writes a set into an empty folder: `add` for each image, then `finish`.

    Args:
        folder: existing, empty.
        options: of the set.
        names: of all images that will be added, in order.

    Attributes:
        max_classes: number of classes that the format can hold; None for any.
        separators: characters that a class name must not have, as the format separates values by them.
    """

    max_classes: int | None = None
    separators = ""

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        self.folder, self.options, self.names = folder, options, names

    @abstractmethod
    def add(self, image: LabelledImage) -> None:
        """Write an image, or keep what `finish` writes."""

    @abstractmethod
    def finish(self) -> None:
        """Write the files of the whole set."""

    def place(self, name: str) -> Path:
        """Return a path within the set; its folder is created."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def place_image(self, image: LabelledImage, name: str) -> None:
        """Put an image file into the set: a hard link, or a copy where the file system has none."""
        source, target = os.path.realpath(image.source), self.place(name)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def write_sets(
    writers: Mapping[Path, type[AnnotationWriter]],
    images: Iterable[Callable[[], LabelledImage]],
    names: Sequence[str],
    options: SetOptions,
) -> None:
    """Write several sets so that all folders appear or none.

    Args:
        writers: folder -> its writer; an existing folder is replaced.
        images: functions that load an image, called once each, so that one image is in memory at a time.
        names: of the images, in order.
        options: of all sets.

    Raises:
        OSError: a folder cannot be written.
    """
    with ExitStack() as cleanup:
        partial = {}
        for folder in writers:
            partial[folder] = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")
            partial[folder].mkdir(parents=True)
            cleanup.callback(shutil.rmtree, partial[folder], ignore_errors=True)
        opened = [kind(partial[folder], options, names) for folder, kind in writers.items()]
        for load in images:
            image = load()
            for writer in opened:
                writer.add(image)
        for writer in opened:
            writer.finish()
        for folder, written in partial.items():
            if folder.exists():
                old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old{PARTIAL}")
                folder.rename(old)
                cleanup.callback(shutil.rmtree, old, ignore_errors=True)
            written.rename(folder)


def set_name(text: str) -> str:
    """Return a text as the name of a data set: letters, digits, "_", "-" and "."."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("_.-")[:100] or "labels"
