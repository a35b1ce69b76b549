"""Sets that are folders of images and label files: index PNGs, Pascal VOC, YOLO."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from san.evaluation.predictions import write_label_map
from san.io.files import write_text
from san.labelling.outlines import joined_ring, region_polygons
from san.labelling.sets import AnnotationWriter, LabelledImage, SetOptions
from san.visualize.palette import palette

_MOST_CLASSES = 65_535
_VOID = 255


class PngWriter(AnnotationWriter):
    """Images, label maps of class indices, and the dataset.yaml that `san check` and `san train` read."""

    max_classes = _MOST_CLASSES

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`. Pixels without a class and dropped ones get the ignore label."""
        self.place_image(image, f"images/{image.name}")
        ignore = self._ignore_label
        labels = image.region_map.class_map(first=0, none=ignore, dropped=ignore)
        wide = ignore > _VOID
        write_label_map(self.place(f"labels/{image.stem}.png"), labels.astype(np.uint16 if wide else np.uint8))

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        endings = sorted({os.path.splitext(name)[1].removeprefix(".") for name in self.names})
        content = {
            "name": self.options.name,
            "classes": [
                {"name": each.name, "synonyms": list(each.synonyms)} if each.synonyms else {"name": each.name}
                for each in self.options.classes
            ],
            "image_ext": endings,
            "ignore_label": self._ignore_label,
            "splits": {"train": {"images": "images", "labels": "labels"}},
        }
        write_text(self.place("dataset.yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @property
    def _ignore_label(self) -> int:
        return _VOID if len(self.options.classes) <= _VOID else _MOST_CLASSES


class VocWriter(AnnotationWriter):
    """Pascal VOC's folders: class i has the value i + 1; 0 is background (no class), 255 void (dropped)."""

    max_classes = 254  # 0 is background, 255 void
    separators = ":"  # in labelmap.txt

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._colors = np.zeros((256, 3), np.uint8)
        self._colors[1 : len(options.classes) + 1] = palette(options.names)
        self._colors[_VOID] = 224, 224, 192

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        self.place_image(image, f"JPEGImages/{image.name}")
        labels = image.region_map.class_map(first=1, none=0, dropped=_VOID)
        self._save(f"SegmentationClass/{image.stem}.png", labels.astype(np.uint8))
        if self.options.instances:
            ids = np.where(image.region_map.dropped, _VOID, image.region_map.ids)
            if len(image.regions) < _VOID:
                self._save(f"SegmentationObject/{image.stem}.png", ids.astype(np.uint8))
            else:  # a palette has no more values
                write_label_map(self.place(f"SegmentationObject/{image.stem}.png"), image.region_map.ids)
        write_text(self.place(f"Annotations/{image.stem}.xml"), _xml_text(self._annotation(image)))

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        stems = "".join(f"{os.path.splitext(name)[0]}\n" for name in self.names)
        for kind in ("Main", "Segmentation"):
            write_text(self.place(f"ImageSets/{kind}/train.txt"), stems)
        colors = [",".join(map(str, color)) for color in self._colors[1 : len(self.options.names) + 1].tolist()]
        lines = [f"{name}:{color}::\n" for name, color in zip(self.options.names, colors, strict=True)]
        write_text(
            self.place("labelmap.txt"), "".join(["# label:color_rgb:parts:actions\n", "background:0,0,0::\n", *lines])
        )

    def _save(self, name: str, values: npt.NDArray[np.uint8]) -> None:
        picture = Image.fromarray(values)
        picture.putpalette(self._colors.tobytes())
        picture.save(self.place(name))

    def _annotation(self, image: LabelledImage) -> ElementTree.Element:
        height, width = image.size
        root = ElementTree.Element("annotation")
        _add(root, folder="JPEGImages", filename=image.name)
        _add(ElementTree.SubElement(root, "source"), database=self.options.name)
        _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
        _add(root, segmented=1)
        for region in image.regions:
            left, top, region_width, region_height = region.box
            each = ElementTree.SubElement(root, "object")
            _add(each, name=self.options.names[region.label], pose="Unspecified", truncated=0, difficult=0)
            _add(  # VOC counts pixels from 1
                ElementTree.SubElement(each, "bndbox"),
                xmin=left + 1,
                ymin=top + 1,
                xmax=left + region_width,
                ymax=top + region_height,
            )
        return root


class YoloWriter(AnnotationWriter):
    """YOLO segmentation: images, a text file of polygons per image, and data.yaml."""

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`. A line is a polygon, in parts of the width and height; holes are joined to it."""
        self.place_image(image, f"images/{image.name}")
        height, width = image.size
        lines = []
        for region in image.regions:
            for polygon in region_polygons(region, self.options.tolerance):
                points = (joined_ring(polygon) / [width, height]).ravel()
                lines.append(" ".join([str(region.label), *(f"{value:.6g}" for value in points)]) + "\n")
        write_text(self.place(f"labels/{image.stem}.txt"), "".join(lines))

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.options.names))}
        note = "# val is the same as train: put labels that you have checked there\n"
        write_text(self.place("data.yaml"), note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _add(parent: ElementTree.Element, **values: Any) -> None:
    """Add elements that hold a text."""
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _xml_text(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
