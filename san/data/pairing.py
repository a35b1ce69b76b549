"""Pairs image and label files by their relative path without the ending, or by a list."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.io.errors import excerpt, listed
from san.io.listing import Skipped, describe_skipped, list_files
from san.io.plain_file import MAX_PATH, is_file, read_text

logger = logging.getLogger(__name__)

REMEDY = (
    "prepare the dataset (see docs/datasets.md), point DETECTRON2_DATASETS or --data-root at the datasets root, or "
    "take the data set out of the run"
)
"""Remedy for a benchmark folder that is missing or empty."""

Pair = dict[str, Any]
"""One image with its labels: `file_name`, and `sem_seg_file_name` or the entries that `san.data.panoptic` describes."""


def is_panoptic(record: Mapping[str, Any]) -> bool:
    """Whether a record has segments instead of a label map."""
    return "pan_seg_file_name" in record


def label_file(record: Mapping[str, Any]) -> str:
    """Return the file of a record's labels: its label map, or the segment ids of a panoptic set."""
    return str(record["pan_seg_file_name" if is_panoptic(record) else "sem_seg_file_name"])


@dataclass(frozen=True)
class Pairing:
    """The pairs of a data set, and the files without a pair.

    Attributes:
        pairs: usable pairs, sorted by stem, or in the order of the list.
        images_without_label: image files without a label file.
        labels_without_image: label files without an image file.
        duplicates: files with the same stem as another file of their kind, so that the pair is ambiguous.
        shared_images: whether images without a label are expected.
        skipped: files and folders that were skipped, see `san.io.listing`.
    """

    pairs: tuple[Pair, ...]
    images_without_label: tuple[str, ...] = ()
    labels_without_image: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    shared_images: bool = False
    skipped: tuple[Skipped, ...] = ()

    def usable(self, source: str) -> list[Pair]:
        """Return the pairs; log their number and warn about files without a pair.

        Args:
            source: data set or folders, for the message.

        Raises:
            ValueError: two files of a kind have the same stem.
        """
        if self.duplicates:
            raise ValueError(
                f"{self.duplicates[0]} has the name of another file up to the extension, so that it is not clear which "
                f"belongs to the label; rename or remove one ({len(self.duplicates)} such file(s) in {source})"
            )
        logger.info("%s: %d image and label pairs", source, len(self.pairs))
        if self.labels_without_image:
            _warn(source, "label files have no image", self.labels_without_image)
        if self.images_without_label and not self.shared_images:
            _warn(source, "image files have no label", self.images_without_label)
        for line in describe_skipped(self.skipped):
            logger.warning("%s: left out: %s", source, line)
        return list(self.pairs)


def pair_files(
    image_dir: str | Path,
    label_dir: str | Path,
    image_ext: str | Sequence[str] = "jpg",
    label_ext: str | Sequence[str] = "png",
    *,
    shared_images: bool = False,
    remedy: str = REMEDY,
) -> Pairing:
    """Pair every label file with the image of the same stem, including sub-folders; never by position.

    Links to folders are followed, hidden and system names are skipped, see `san.io.listing`.

    Args:
        image_dir: existing folder of images.
        label_dir: existing folder of label maps.
        image_ext: one or several endings of image files, compared exactly: an extension without the dot, or a longer
            ending that begins with "_" or "-", such as "_leftImg8bit.png".
        label_ext: the same for label files (`tif` does not match `.tiff`).
        shared_images: whether several splits share the image folder (as in VOC), so that images without a label are
            expected.
        remedy: remedy for a missing or empty folder, for the message.

    Returns:
        the pairs and the files without a pair; of files with the same stem, all but the first are in `duplicates`.

    Raises:
        FileNotFoundError: a folder is missing or has no file with these extensions, or no files match.
        ValueError: images and labels are the same files.
    """
    images, image_doubles, no_images = _files_by_stem(Path(image_dir), image_ext, f"image folder {image_dir}", remedy)
    labels, label_doubles, no_labels = _files_by_stem(Path(label_dir), label_ext, f"label folder {label_dir}", remedy)
    stems = sorted(images.keys() & labels.keys())
    if stems and images[stems[0]] == labels[stems[0]]:
        raise ValueError(
            f"{images[stems[0]]} would be image and label at once; keep labels in a folder of their own, or give them "
            "another extension"
        )
    if not stems:
        raise FileNotFoundError(
            f"no image in {image_dir} has a label of the same name in {label_dir}: image {min(images)!r}, label "
            f"{min(labels)!r}; the names must be equal up to the extension"
        )
    return Pairing(
        pairs=tuple({"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem])} for stem in stems),
        images_without_label=tuple(str(images[stem]) for stem in sorted(images.keys() - labels.keys())),
        labels_without_image=tuple(str(labels[stem]) for stem in sorted(labels.keys() - images.keys())),
        duplicates=tuple(image_doubles + label_doubles),
        shared_images=shared_images,
        skipped=tuple(dict.fromkeys(no_images + no_labels)),
    )


def read_pair_list(path: str | Path) -> Pairing:
    """Read a list of pairs, one "image, tab, label" line each; blank lines and lines starting with # are skipped.

    Args:
        path: UTF-8 text file; paths in it are relative to its folder.

    Returns:
        the pairs in the order of the list.

    Raises:
        FileNotFoundError: the list, or a file in it, does not exist.
        ValueError: the list is empty or not text, a line does not have two columns, or an image is listed twice.
    """
    path = Path(path)
    pairs: list[Pair] = []
    missing: list[str] = []
    lines: dict[str, int] = {}
    for number, image, label in _list_lines(path):
        if image in lines:
            raise ValueError(f"line {number} of {path} lists {image} again, after line {lines[image]}; remove one")
        lines[image] = number
        files = path.parent / image, path.parent / label
        missing += [f"{file} (line {number})" for file in files if not is_file(file)]
        pairs.append({"file_name": str(files[0]), "sem_seg_file_name": str(files[1])})
    if missing:
        raise FileNotFoundError(
            f"{path} lists what does not exist: {listed(missing)}; paths are relative to the list's folder"
        )
    if not pairs:
        raise ValueError(f"list of pairs {path} is empty; write lines of image, tab, label")
    return Pairing(tuple(pairs))


def _list_lines(path: Path) -> Iterable[tuple[int, str, str]]:
    """Return line number, image and label of each line of a list."""
    for number, line in enumerate(read_text(path, "list of pairs").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns) or len(line) > 2 * MAX_PATH:
            raise ValueError(f"line {number} of {path} is {excerpt(line)}; write image, one tab, label")
        yield number, columns[0], columns[1]


def _warn(source: str, what: str, files: Sequence[str]) -> None:
    """Log a warning about files that are not used, with three examples."""
    logger.warning("%s: %d %s and are left out: %s", source, len(files), what, listed(files))


def _files_by_stem(
    folder: Path, ext: str | Sequence[str], title: str, remedy: str
) -> tuple[dict[str, Path], list[str], tuple[Skipped, ...]]:
    """Return files by relative path without extension, files with a duplicate stem, and skipped files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{title} does not exist; {remedy}")
    found: dict[str, Path] = {}
    doubles: list[str] = []
    endings = tuple(each if each[:1] in "_-" else f".{each}" for each in ([ext] if isinstance(ext, str) else ext))
    listing = list_files(folder, lambda name: name.endswith(endings))
    for ending in endings:
        for path in listing.files:
            if not path.name.endswith(ending):
                continue
            stem = path.relative_to(folder).as_posix().removesuffix(ending)
            if stem in found:
                doubles.append(str(path))
            else:
                found[stem] = path
    if not found:
        wanted = " or ".join(f"*{ending}" for ending in endings)
        raise FileNotFoundError(f"{title} holds no {wanted} file; set the extension, or {remedy}")
    return found, doubles, listing.skipped
