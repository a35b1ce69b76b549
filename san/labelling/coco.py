"""COCO's formats: JSON with an annotation per class and image or per component, and panoptic PNG and JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from san.data.panoptic import id_image
from san.evaluation.predictions import default_image_id, rle_entries
from san.io.files import write_text
from san.labelling.outlines import joined_ring, region_polygons
from san.labelling.regions import Region
from san.labelling.sets import AnnotationWriter, LabelledImage, SetOptions
from san.visualize.palette import palette


def coco_image_ids(names: Sequence[str]) -> list[int]:
    """Return the ids of images: the numbers in their names if all have one of their own, otherwise 1, 2, 3, ..."""
    ids = [default_image_id(name) for name in names]
    numbers = [each for each in ids if isinstance(each, int)]
    return numbers if len({*numbers}) == len(names) else list(range(1, len(names) + 1))


def coco_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return COCO's categories: the id is the class index plus 1."""
    return [{"id": index + 1, "name": name, "supercategory": ""} for index, name in enumerate(names)]


def coco_annotation(region: Region, image_id: int | str, *, polygons: bool, tolerance: float) -> dict[str, Any]:
    """Return the annotation of a region, without its id.

    Args:
        region: of an image.
        image_id: of the image.
        polygons: whether `segmentation` is a list of polygons, x and y in turn; otherwise it is a compressed RLE, which
            is exact. COCO's polygons have no holes: those of ours are joined to the outline, and are not filled.
        tolerance: of polygons.
    """
    segmentation: Any
    if polygons:
        segmentation = [joined_ring(each).ravel().tolist() for each in region_polygons(region, tolerance)]
    else:
        entries = rle_entries(region.mask(), "")
        segmentation = next(each["segmentation"] for each in entries if each["category_id"])
    annotation = {
        "image_id": image_id,
        "category_id": region.label + 1,
        "segmentation": segmentation,
        "bbox": list(region.box),
        "area": region.area,
        "iscrowd": 0,
    }
    return annotation if region.score is None else annotation | {"score": round(region.score, 4)}


def panoptic_segments(regions: Iterable[Region]) -> list[dict[str, Any]]:
    """Return COCO's segments_info of regions whose ids are 1, 2, ... in their order."""
    return [
        {"id": index, "category_id": each.label + 1, "area": each.area, "bbox": list(each.box), "iscrowd": 0}
        for index, each in enumerate(regions, start=1)
    ]


def panoptic_categories(names: Sequence[str], things: Collection[int]) -> list[dict[str, Any]]:
    """Return COCO's panoptic categories of classes; `things` are class indices."""
    colors = palette(names).tolist()
    return [
        {**each, "isthing": int(index in things), "color": colors[index]}
        for index, each in enumerate(coco_categories(names))
    ]


class CocoWriter(AnnotationWriter):
    """Images, and annotations/instances_train.json; file_name is relative to images/."""

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._ids = dict(zip(names, coco_image_ids(names), strict=True))
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        self.place_image(image, f"images/{image.name}")
        height, width = image.size
        image_id = self._ids[image.name]
        self._images.append({"id": image_id, "file_name": image.name, "height": height, "width": width})
        for region in image.regions:
            polygons = self.options.outlines == "polygons"
            entry = coco_annotation(region, image_id, polygons=polygons, tolerance=self.options.tolerance)
            self._annotations.append({"id": len(self._annotations) + 1, **entry})

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        content = {
            "info": {"description": self.options.name},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": coco_categories(self.options.names),
        }
        write_text(self.place("annotations/instances_train.json"), json.dumps(content))


class PanopticWriter(AnnotationWriter):
    """Images, panoptic/ with a PNG of segment ids per image, and annotations/panoptic_train.json.

    The id of a segment is R + 256 G + 65536 B of its pixels; 0 is no segment.
    """

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._ids = dict(zip(names, coco_image_ids(names), strict=True))
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        self.place_image(image, f"images/{image.name}")
        file, (height, width) = f"{image.stem}.png", image.size
        id_image(image.region_map.ids).save(self.place(f"panoptic/{file}"))
        number = self._ids[image.name]
        self._images.append({"id": number, "file_name": image.name, "height": height, "width": width})
        segments = panoptic_segments(image.regions)
        self._annotations.append({"image_id": number, "file_name": file, "segments_info": segments})

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        things = [index for index in range(len(self.options.names)) if self.options.is_thing(index)]
        content = {
            "info": {"description": self.options.name},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": panoptic_categories(self.options.names, things),
        }
        write_text(self.place("annotations/panoptic_train.json"), json.dumps(content))
