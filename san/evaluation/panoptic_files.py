"""COCO's panoptic format, a JSON file and a PNG of segment ids per image: its pictures, reading, comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.evaluation.panoptic import PanopticCounts, Segments
from san.io.errors import brief_repr, excerpt, listed
from san.io.image_files import decode, open_image


def id_image(ids: npt.NDArray[Any]) -> Image.Image:
    """Return segment ids (H, W) as a picture: id = R + 256 G + 65536 B."""
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


@dataclass(frozen=True, eq=False)
class PanopticSet:
    """A set in COCO's panoptic format.

    Attributes:
        file: the JSON file.
        folder: of the PNGs.
        names: category id -> class name.
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
            with open_image(path, "it") as image:
                if image.mode != "RGB":
                    raise ValueError(f"it has the mode {image.mode}")
                pixels = np.asarray(decode(image, "it")).astype(np.int64)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}, named by {self.file}, does not exist; correct the folder") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{path} cannot be read as segment ids ({error}); give RGB PNGs of COCO's format"
            ) from None
        classes, crowd = {}, set()
        for each in annotation["segments_info"]:
            try:
                name = self.names[each["category_id"]]
                classes[int(each["id"])] = indices[name]
                if each.get("iscrowd"):
                    crowd.add(int(each["id"]))
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{self.file} has the segment {excerpt(each)} in {annotation['file_name']}, which needs an id and "
                    "a category_id of its categories"
                ) from None
        return Segments(pixels @ np.array([1, 256, 65_536]), classes, frozenset(crowd))


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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        things = frozenset(str(each["name"]) for each in content["categories"] if each["isthing"])
        annotations = {
            str(PurePosixPath(each["file_name"]).with_suffix("")): {
                "file_name": str(each["file_name"]),
                "segments_info": [*each["segments_info"]],
            }
            for each in content["annotations"]
        }
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} does not exist; give the JSON file of a set in COCO's panoptic format"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not of COCO's panoptic format ({type(error).__name__}: {error})") from None
    if len(set(categories.values())) != len(categories):
        raise ValueError(f"{file} has two categories of one name; give each a name of its own")
    if found is None:
        raise FileNotFoundError(
            f"there is no folder {listed(map(str, candidates), 2)} with the PNGs of {file}; give it"
        )
    return PanopticSet(file, found, categories, things, annotations)


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
