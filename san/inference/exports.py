"""A segmentation in the objects of other tools: regions, polygons, COCO, supervision, FiftyOne.  (H, W) image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from san.evaluation.predictions import default_image_id
from san.io.errors import require_extra
from san.labelling.coco import coco_annotation, coco_categories
from san.labelling.outlines import region_polygons, rings
from san.labelling.regions import Region, RegionOptions, class_indices, find_regions

if TYPE_CHECKING:
    from san.vocabulary.vocabulary import Vocabulary


class RegionExports:
    """Part of a `Segmentation`: its label map in the objects of other tools (docs/label.md).

    Every method takes the options of `regions`. Pixels without a class and those of context classes are in no region.
    """

    if TYPE_CHECKING:
        labels: npt.NDArray[np.int64]
        vocabulary: Vocabulary
        best_scores: npt.NDArray[np.float32] | None

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

    def to_polygons(self, *, tolerance: float = 0.0, **options: Any) -> list[dict[str, Any]]:
        """Return the outlines of the regions.

        Args:
            tolerance: the outlines may deviate by so many pixels; 0 is exact.
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
            for region in self.regions(**options)
        ]

    def to_coco(
        self,
        file_name: str = "",
        *,
        image_id: int | str | None = None,
        polygons: bool = False,
        tolerance: float = 0.0,
        **options: Any,
    ) -> dict[str, Any]:
        """Return a COCO data set of this image: images, annotations, categories.

        The id of a category is the class index plus 1, because some tools take 0 for background.

        Args:
            file_name: of the image.
            image_id: of the image; see `Segmentation.to_coco_rle`.
            polygons: polygons instead of run lengths, see `san.labelling.coco.coco_annotation`.
            tolerance: of polygons.
            options: of `regions`.
        """
        height, width = self.labels.shape
        number = default_image_id(file_name) if image_id is None else image_id
        found = [
            coco_annotation(each, number, polygons=polygons, tolerance=tolerance) for each in self.regions(**options)
        ]
        return {
            "images": [{"id": number, "file_name": file_name, "height": height, "width": width}],
            "annotations": [{"id": index, **each} for index, each in enumerate(found, start=1)],
            "categories": coco_categories([each.name for each in self.vocabulary.free]),
        }

    def to_supervision(self, **options: Any) -> Any:
        """Return `supervision.Detections` with masks: class_id is the class index, data["class_name"] the name.

        Args:
            options: of `regions`.

        Raises:
            MissingExtraError: supervision cannot be imported.
        """
        require_extra("supervision", "to_supervision", "supervision")
        import supervision

        regions = self.regions(**options)
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

    def to_fiftyone(self, **options: Any) -> Any:
        """Return `fiftyone.Segmentation`, or `fiftyone.Detections` with masks if `instances` is among the options.

        FiftyOne takes 0 for background. The value of class i is therefore i + 1, and pixels in no region have 0:
        ``dataset.default_mask_targets = {i + 1: name for i, name in enumerate(result.names)}``.

        Args:
            options: of `regions`.

        Raises:
            MissingExtraError: FiftyOne cannot be imported.
        """
        require_extra("fiftyone", "to_fiftyone", "fiftyone")
        import fiftyone

        regions = self.regions(**options)
        height, width = self.labels.shape
        if options.get("instances"):
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
