"""The writer of each format of `san label`."""

from __future__ import annotations

from san.labelling.coco import CocoWriter, PanopticWriter
from san.labelling.folders import PngWriter, VocWriter, YoloWriter
from san.labelling.sets import AnnotationWriter
from san.labelling.tools import CvatWriter, GeoJsonWriter, LabelMeWriter, LabelStudioWriter

WRITERS: dict[str, type[AnnotationWriter]] = {
    "coco": CocoWriter,
    "coco-panoptic": PanopticWriter,
    "yolo-seg": YoloWriter,
    "voc": VocWriter,
    "png": PngWriter,
    "labelme": LabelMeWriter,
    "label-studio": LabelStudioWriter,
    "cvat": CvatWriter,
    "geojson": GeoJsonWriter,
}
"""Format -> writer; `san.io.files.LABEL_FORMATS` has the same names."""
