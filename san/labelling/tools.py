"""Files of labelling tools: LabelMe, Label Studio, CVAT, and GeoJSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.io.files import write_text
from san.labelling.outlines import joined_ring, region_polygons, rings
from san.labelling.regions import Region
from san.labelling.sets import AnnotationWriter, LabelledImage, SetOptions
from san.visualize.palette import palette


class LabelMeWriter(AnnotationWriter):
    """A JSON file beside each image; polygons of one region share a group."""

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        self.place_image(image, image.name)
        height, width = image.size
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [
                self._named(region, group, each)
                for group, region in enumerate(image.regions, start=1)
                for each in self._shapes(region)
            ],
            "imagePath": Path(image.name).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_text(self.place(f"{image.stem}.json"), json.dumps(content, indent=1))

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        write_text(self.place("labels.txt"), "".join(f"{name}\n" for name in self.options.names))

    def _shapes(self, region: Region) -> list[dict[str, Any]]:
        """Type and points of each shape of a region."""
        if self.options.outlines != "masks":
            polygons = region_polygons(region, self.options.tolerance)
            return [{"shape_type": "polygon", "points": joined_ring(each).tolist(), "mask": None} for each in polygons]
        left, top, width, height = region.box
        file = io.BytesIO()
        Image.fromarray(region.crop).save(file, "PNG")
        corners = [[left, top], [left + width - 1, top + height - 1]]
        return [{"shape_type": "mask", "points": corners, "mask": base64.b64encode(file.getvalue()).decode("ascii")}]

    def _named(self, region: Region, group: int, shape: dict[str, Any]) -> dict[str, Any]:
        score = "" if region.score is None else f"score {region.score:.3f}"
        name = self.options.names[region.label]
        return {"label": name, "group_id": group, "description": score, "flags": {}, **shape}


class LabelStudioWriter(AnnotationWriter):
    """Tasks with predictions for Label Studio, and the configuration of its labelling interface."""

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._tasks: list[dict[str, Any]] = []

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        scores = [region.score for region in image.regions if region.score is not None]
        results = label_studio_results(
            image.regions, self.options.names, masks=self.options.outlines == "masks", tolerance=self.options.tolerance
        )
        prediction: dict[str, Any] = {"model_version": "SAN", "result": results}
        if scores:
            prediction["score"] = round(min(1.0, float(np.mean(scores))), 4)
        data = {"image": f"/data/local-files/?d={quote(image.name)}"}
        self._tasks.append({"data": data, "predictions": [prediction]})

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        write_text(self.place("tasks.json"), json.dumps(self._tasks))
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
        tag = "BrushLabels" if self.options.outlines == "masks" else "PolygonLabels"
        labels = ElementTree.SubElement(view, tag, name="label", toName="image")
        for name, color in zip(self.options.names, palette(self.options.names), strict=True):
            ElementTree.SubElement(labels, "Label", value=name, background=_hex(color))
        ElementTree.indent(view)
        write_text(self.place("label_config.xml"), ElementTree.tostring(view, encoding="unicode") + "\n")


class CvatWriter(AnnotationWriter):
    """CVAT's XML 1.1 for images: annotations.xml, images/."""

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._root = ElementTree.Element("annotations")
        ElementTree.SubElement(self._root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(self._root, "meta"), "task")
        ElementTree.SubElement(task, "name").text = options.name
        ElementTree.SubElement(task, "size").text = str(len(names))
        ElementTree.SubElement(task, "mode").text = "annotation"
        labels = ElementTree.SubElement(task, "labels")
        for name, color in zip(options.names, palette(options.names), strict=True):
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = name
            ElementTree.SubElement(label, "color").text = _hex(color)
            ElementTree.SubElement(label, "attributes")
        self._count = 0

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        self.place_image(image, f"images/{image.name}")
        height, width = image.size
        element = ElementTree.SubElement(
            self._root, "image", id=str(self._count), name=image.name, width=str(width), height=str(height)
        )
        self._count += 1
        for group, region in enumerate(image.regions, start=1):
            shared: dict[str, Any] = {
                "label": self.options.names[region.label],
                "source": "auto",
                "occluded": "0",
                "z_order": "0",
                "group_id": str(group),
            }
            if self.options.outlines == "masks":
                box: dict[str, Any] = dict(zip(("left", "top", "width", "height"), map(str, region.box), strict=True))
                ElementTree.SubElement(element, "mask", **shared, rle=cvat_rle(region.crop), **box)
                continue
            for polygon in region_polygons(region, self.options.tolerance):
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in joined_ring(polygon).tolist())
                ElementTree.SubElement(element, "polygon", **shared, points=points)

    def finish(self) -> None:
        """See `AnnotationWriter`."""
        ElementTree.indent(self._root)
        text = '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(self._root, encoding="unicode")
        write_text(self.place("annotations.xml"), text + "\n")


class GeoJsonWriter(AnnotationWriter):
    """A GeoJSON file per image, in pixels: x to the right, y down."""

    def __init__(self, folder: Path, options: SetOptions, names: Sequence[str]) -> None:
        super().__init__(folder, options, names)
        self._colors = palette(options.names).tolist()

    def add(self, image: LabelledImage) -> None:
        """See `AnnotationWriter`."""
        features = [self._feature(region) for region in image.regions]
        content = {"type": "FeatureCollection", "image": image.name, "features": features}
        write_text(self.place(f"{image.stem}.geojson"), json.dumps(content))

    def finish(self) -> None:
        """See `AnnotationWriter`. There is no file of the whole set."""

    def _feature(self, region: Region) -> dict[str, Any]:
        polygons = [
            [[*ring.tolist(), ring[0].tolist()] for ring in rings(each)]
            for each in region_polygons(region, self.options.tolerance)
        ]
        single = len(polygons) == 1
        name = self.options.names[region.label]
        return {
            "type": "Feature",
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": polygons[0] if single else polygons,
            },
            "properties": {
                "name": name,
                "label": region.label,
                "score": region.score,
                "area": region.area,
                "classification": {"name": name, "color": self._colors[region.label]},  # as QuPath reads it
            },
        }


def label_studio_results(
    regions: Sequence[Region],
    names: Sequence[str],
    *,
    masks: bool,
    tolerance: float = 0.0,
    from_name: str = "label",
    to_name: str = "image",
) -> list[dict[str, Any]]:
    """Return Label Studio's results of an image: a polygon per connected component, or a brush mask per region.

    Args:
        regions: of the image.
        names: of the classes.
        masks: brush masks instead of polygons.
        tolerance: of polygons.
        from_name: name of the tag BrushLabels or PolygonLabels.
        to_name: name of the tag Image.
    """
    kind = "brushlabels" if masks else "polygonlabels"
    results: list[dict[str, Any]] = []
    for region in regions:
        height, width = region.size
        if masks:
            values: list[dict[str, Any]] = [{"format": "rle", "rle": list(brush_rle(region.mask()))}]
        else:  # in percent of width and height
            outlines = (joined_ring(each) / [width, height] * 100 for each in region_polygons(region, tolerance))
            values = [{"points": points.round(5).tolist(), "closed": True} for points in outlines]
        score = {} if region.score is None else {"score": round(min(1.0, region.score), 4)}
        results += [
            {
                "id": f"r{len(results) + index}",
                "type": kind,
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, kind: [names[region.label]]},
                **score,
            }
            for index, value in enumerate(values)
        ]
    return results


def cvat_rle(mask: npt.NDArray[np.bool_]) -> str:
    """Return CVAT's run lengths of a mask: row by row, outside and inside in turn, outside first."""
    return ", ".join(map(str, _runs(mask)))


def brush_rle(mask: npt.NDArray[np.bool_]) -> bytes:
    """Return Label Studio's run lengths of a mask, as its brush saves them (the format of @thi.ng/rle-pack).

    The bytes are those of an RGBA picture whose four channels are 255 inside and 0 outside. A header names their
    number (32 bits), the bits of a value minus 1 (5), and four lengths of a counter minus 1 (4 each). Each run is a 1,
    the number of its counter (2 bits), its length minus 1, and its value (8 bits).
    """
    counters = (3, 4, 8, 16)
    bits = [f"{4 * mask.size:032b}{8 - 1:05b}", *(f"{each - 1:04b}" for each in counters)]
    for index, run in enumerate(_runs(mask)):
        value, left = "11111111" if index % 2 else "00000000", 4 * run
        while left:
            part = min(left, 1 << counters[-1])
            number, width = next((i, each) for i, each in enumerate(counters) if part <= 1 << each)
            bits.append(f"1{number:02b}{part - 1:0{width}b}{value}")
            left -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _runs(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Lengths of runs, row by row: outside, inside, outside, ..."""
    pixels = mask.ravel()
    edges = np.flatnonzero(np.diff(pixels, prepend=False))
    runs: list[int] = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    return runs


def _hex(color: npt.NDArray[np.uint8]) -> str:
    red, green, blue = color.tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
