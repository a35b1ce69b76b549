"""Compares two sets in COCO's panoptic format, a JSON file and a PNG of segment ids per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.data.panoptic import read_panoptic_file, read_segment_ids
from san.evaluation.panoptic import PanopticCounts, Segments
from san.io.errors import brief_repr, excerpt, listed
from san.vocabulary.label_sets import load_label_set


@dataclass(frozen=True, eq=False)
class PanopticSet:
    """A set in COCO's panoptic format.

    Attributes:
        file: the JSON file.
        folder: of the PNGs.
        names: category id -> class name; COCO's names are those of the label set coco_panoptic_133.
        things: names of the classes that are things.
        annotations: path of an image's PNG without its ending -> its annotation.
    """

    file: Path
    folder: Path
    names: Mapping[int, str]
    things: frozenset[str]
    annotations: Mapping[str, Mapping[str, Any]]

    __repr__ = brief_repr

    def segments(self, stem: str, indices: Mapping[str, int]) -> Segments:
        """Read the segments of an image.

        Args:
            stem: key of `annotations`.
            indices: class name -> class index.

        Raises:
            FileNotFoundError: the PNG does not exist.
            ValueError: it cannot be read, is no RGB image, or a segment is malformed or of an unknown category.
        """
        annotation = self.annotations[stem]
        path = self.folder / annotation["file_name"]
        try:
            ids = read_segment_ids(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}, named by {self.file}, does not exist; correct the folder") from None
        classes, crowd = {}, set()
        for each in annotation["segments_info"]:
            try:
                name = self.names[each["category_id"]]
                classes[int(each["id"])] = indices[name]
                if each.get("iscrowd"):
                    crowd.add(int(each["id"]))
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ValueError(
                    f"{self.file} has the segment {excerpt(each)} in {annotation['file_name']}, which needs an id and "
                    "a category_id of its categories"
                ) from None
        return Segments(ids, classes, frozenset(crowd))


def read_panoptic(file: Path, folder: Path | None = None) -> PanopticSet:
    """Read the JSON file of a set; PNGs are read when they are needed.

    Args:
        file: the JSON file.
        folder: of the PNGs; by default the folder of the file's name beside it, as in COCO's download, else
            ``../panoptic``, as `san label` writes it.

    Raises:
        FileNotFoundError: the file, or the folder, does not exist.
        ValueError: the file is not of this format.
    """
    candidates = [folder] if folder else [file.with_suffix(""), file.parent.parent / "panoptic"]
    found = next((each for each in candidates if each.is_dir()), None)
    content = read_panoptic_file(file)
    plain = load_label_set("coco_panoptic_133").official_names
    names = {number: plain.get(name, name) for number, name in content.names.items()}
    if len(set(names.values())) != len(names):
        raise ValueError(f"{file} has two categories of one name; give each a name of its own")
    if found is None:
        raise FileNotFoundError(
            f"there is no folder {listed(map(str, candidates), 2)} with the PNGs of {file}; give it"
        )
    things = frozenset(names[number] for number in content.things)
    return PanopticSet(file, found, names, things, content.annotations)


def compare_panoptic(
    prediction: PanopticSet, truth: PanopticSet, stems: Iterable[str]
) -> tuple[PanopticCounts, list[str]]:
    """Count the segments of two sets.

    Args:
        prediction: with categories of the ground truth's names, some or all.
        truth: the ground truth.
        stems: images of both sets.

    Returns:
        the counts, and the class names.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read or differs in size, or a predicted category is unknown.
    """
    names = [*truth.names.values()]
    unknown = [name for name in prediction.names.values() if name not in names]
    if unknown:
        raise ValueError(
            f"{prediction.file} has the category {excerpt(unknown[0])}, which is none of {truth.file}; predict with "
            "the names there"
        )
    indices = {name: index for index, name in enumerate(names)}
    counts = PanopticCounts(len(names))
    for stem in stems:
        counts.update(prediction.segments(stem, indices), truth.segments(stem, indices), file_name=stem)
    return counts, names
