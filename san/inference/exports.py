"""A segmentation as regions or panoptic segments, and these in the objects of other tools.  (H, W) image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.data.panoptic import id_image
from san.evaluation.predictions import default_image_id
from san.inference.segments import (
    ImageSegment,
    SegmentOrigin,
    check_segment_sizes,
    check_source,
    component_segments,
    id_map,
    merging_options,
    query_segments,
)
from san.io.errors import require_extra
from san.labelling.coco import coco_annotation, coco_categories, panoptic_categories, panoptic_segments
from san.labelling.outlines import region_polygons, rings
from san.labelling.regions import Region, RegionOptions, class_indices, find_regions, thing_indices

if TYPE_CHECKING:
    from san.inference.evidence import Evidence
    from san.vocabulary.vocabulary import Vocabulary


class RegionExports:
    """Part of a `Segmentation`: its regions or segments in the objects of other tools (docs/label.md).

    Every export takes the options of `regions`, or `segments`, the result of the method of that name. Pixels without a
    class and those of context classes are in no region and no segment.
    """

    if TYPE_CHECKING:
        labels: npt.NDArray[np.int64]
        vocabulary: Vocabulary
        best_scores: npt.NDArray[np.float32] | None
        evidence: Evidence | None

    def regions(
        self,
        *,
        instances: bool = False,
        min_area: int = 0,
        score_threshold: float = 0.0,
        things: Iterable[str] | None = None,
    ) -> tuple[Region, ...]:
        """Return one region per class with a pixel, or per connected component.

        Args:
            instances: one region per connected component (by the sides of pixels).
            min_area: connected components of fewer pixels are left out.
            score_threshold: regions whose mean score is lower are left out.
            things: with `instances`, names of the vocabulary; the other classes, stuff, are one region each, so that
                the regions are a panoptic segmentation. None: all are things.

        Raises:
            ValueError: `min_area` or `score_threshold` is negative, a thing is not in the vocabulary, or there are
                `things` without `instances`.
            MissingExtraError: SciPy or Shapely cannot be imported.
        """
        indices = None if things is None else class_indices(things, [each.name for each in self.vocabulary.free])
        options = RegionOptions(instances, min_area, score_threshold, indices)
        return tuple(find_regions(self.labels, self.best_scores, len(self.vocabulary.free), options).regions())

    def segments(
        self,
        *,
        things: str | Iterable[str] | None = None,
        source: SegmentOrigin = "components",
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        min_area: int = 0,
        score_threshold: float = 0.0,
    ) -> tuple[ImageSegment, ...]:
        """Return the segments of a panoptic segmentation: each thing by itself, and one per class of stuff.

        The options `threshold` and `none_of_these` of the prediction act on the label map, not on queries.

        Args:
            things: names of the classes that are things, a text that separates them by commas, or the name of a label
                set, for its things; the others are stuff. None: those of the label set, if the vocabulary is one that
                distinguishes them; otherwise all classes.
            source: what a thing's segment is. "components" of the label map; "queries", the mask of a query of the
                network, for a model that is trained with a mask per thing; "connected", a connected component of such a
                mask, for models that are trained on semantic labels, whose queries show all things of a class.
            object_threshold: class probability that a query needs; by default 0.8, and for "connected" that of
                `san.inference.segments.SEMANTIC`.
            overlap_threshold: share of its mask that a query, or component of it, must win from the other queries; the
                default is found in the same way.
            min_area: segments, or components of the label map, of fewer pixels are left out.
            score_threshold: segments with a lower score are left out.

        Raises:
            ValueError: a thing is none of the classes, a value is out of range, components are given an option of
                queries, or the queries are those of several views (sizes, mirror images, models).
            MissingExtraError: SciPy or Shapely cannot be imported.
        """
        indices = thing_indices(things, [each.name for each in self.vocabulary.free])
        options = RegionOptions(True, min_area, score_threshold, indices)
        check_source(source, has_evidence=self.evidence is not None)
        if source == "components":
            if object_threshold is not None or overlap_threshold is not None:
                raise ValueError(
                    "object_threshold and overlap_threshold are of queries, but source is 'components'; leave them "
                    "out, or give source='queries' or source='connected'"
                )
            found = component_segments(self.labels, self.best_scores, self.vocabulary, options)
        else:
            assert self.evidence is not None
            merging = merging_options(
                connected=source == "connected", object_threshold=object_threshold, overlap_threshold=overlap_threshold
            )
            found = query_segments(self.evidence, self.vocabulary, merging, options)
        return found.segments(self.vocabulary)

    def _exported(self, segments: Sequence[Region] | None, options: dict[str, Any]) -> Sequence[Region]:
        """Return segments that were given, else the regions of options."""
        if segments is None:
            return self.regions(**options)
        if options:
            raise ValueError(f"segments are given, and options of regions: {', '.join(options)}; give one of the two")
        check_segment_sizes(segments, (self.labels.shape[0], self.labels.shape[1]))
        return segments

    def to_polygons(
        self, *, tolerance: float = 0.0, segments: Sequence[Region] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return the outlines of the regions.

        Args:
            tolerance: the outlines may deviate by so many pixels; 0 is exact.
            segments: of the method `segments`, instead of regions.
            options: of `regions`.

        Returns:
            For each region name, label (class index), score, area in pixels, and polygons: a list per connected
            component, whose first entry is the outline and the others are holes, each (N, 2) float64 corners x, y. The
            corners are those of pixels: x is 0 at the left side of the image, W at its right side.
        """
        return [
            {
                "name": self.vocabulary.names[region.label],
                "label": region.label,
                "score": region.score,
                "area": region.area,
                "polygons": [rings(each) for each in region_polygons(region, tolerance)],
            }
            for region in self._exported(segments, options)
        ]

    def to_coco(
        self,
        file_name: str = "",
        *,
        image_id: int | str | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
        segments: Sequence[Region] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Return a COCO data set of this image: images, annotations, categories.

        The id of a category is the class index plus 1, because some tools take 0 for background.

        Args:
            file_name: of the image.
            image_id: of the image; see `Segmentation.to_coco_rle`.
            polygons: polygons instead of run lengths, see `san.labelling.coco.coco_annotation`.
            tolerance: of polygons.
            segments: of the method `segments`, instead of regions.
            options: of `regions`.
        """
        height, width = self.labels.shape
        number = default_image_id(file_name) if image_id is None else image_id
        found = [
            coco_annotation(each, number, polygons=polygons, tolerance=tolerance)
            for each in self._exported(segments, options)
        ]
        return {
            "images": [{"id": number, "file_name": file_name, "height": height, "width": width}],
            "annotations": [{"id": index, **each} for index, each in enumerate(found, start=1)],
            "categories": coco_categories([each.name for each in self.vocabulary.free]),
        }

    def to_coco_panoptic(
        self, file_name: str = "", *, image_id: int | str | None = None, **options: Any
    ) -> tuple[Image.Image, dict[str, Any]]:
        """Return segments in COCO's panoptic format: a picture of their ids, and images, annotations and categories.

        The id of a segment is R + 256 G + 65536 B of its pixels, 0 is no segment; save the picture as PNG, under the
        name that the annotation has in `file_name`: that of the image with the ending ".png". The id of a category is
        the class index plus 1.

        Args:
            file_name: of the image.
            image_id: of the image; see `Segmentation.to_coco_rle`.
            options: of `segments`.
        """
        height, width = self.labels.shape
        number = default_image_id(file_name) if image_id is None else image_id
        found = self.segments(**options)
        names = [each.name for each in self.vocabulary.free]
        things = thing_indices(options.get("things"), names)
        content = {
            "images": [{"id": number, "file_name": file_name, "height": height, "width": width}],
            "annotations": [
                {
                    "image_id": number,
                    "file_name": f"{PurePath(file_name or 'image').stem}.png",
                    "segments_info": panoptic_segments(found),
                }
            ],
            "categories": panoptic_categories(names, things),
        }
        return id_image(id_map(found, (height, width))), content

    def to_supervision(self, *, segments: Sequence[Region] | None = None, **options: Any) -> Any:
        """Return `supervision.Detections` with masks: class_id is the class index, data["class_name"] the name.

        Args:
            segments: of the method `segments`, instead of regions.
            options: of `regions`.

        Raises:
            MissingExtraError: supervision cannot be imported.
        """
        require_extra("supervision", "to_supervision", "supervision")
        import supervision

        regions = self._exported(segments, options)
        if not regions:
            return supervision.Detections.empty()
        boxes = np.array([each.box for each in regions], np.float32)  # (R, 4) left, top, width, height
        boxes[:, 2:] += boxes[:, :2]
        scores = [each.score for each in regions]
        return supervision.Detections(
            xyxy=boxes,
            mask=np.stack([each.mask() for each in regions]),
            confidence=None if None in scores else np.array(scores, np.float32),
            class_id=np.array([each.label for each in regions]),
            data={"class_name": np.array([self.vocabulary.names[each.label] for each in regions])},
        )

    def to_fiftyone(self, *, segments: Sequence[Region] | None = None, **options: Any) -> Any:
        """Return `fiftyone.Segmentation`, or `fiftyone.Detections` with masks of `instances` or `segments`.

        FiftyOne takes 0 for background. The value of class i is therefore i + 1, and pixels in no region have 0:
        ``dataset.default_mask_targets = {i + 1: name for i, name in enumerate(result.names)}``.

        Args:
            segments: of the method `segments`, instead of regions.
            options: of `regions`.

        Raises:
            MissingExtraError: FiftyOne cannot be imported.
        """
        require_extra("fiftyone", "to_fiftyone", "fiftyone")
        import fiftyone

        regions = self._exported(segments, options)
        height, width = self.labels.shape
        if segments is not None or options.get("instances"):
            return fiftyone.Detections(
                detections=[
                    fiftyone.Detection(
                        label=self.vocabulary.names[each.label],
                        confidence=each.score,
                        bounding_box=(np.array(each.box) / [width, height, width, height]).tolist(),
                        mask=each.crop,
                    )
                    for each in regions
                ]
            )
        values = np.zeros((height, width), np.uint8 if len(self.vocabulary) < 256 else np.uint16)
        for each in regions:
            values[each.mask()] = each.label + 1
        return fiftyone.Segmentation(mask=values)
