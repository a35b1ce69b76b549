"""An auto-annotation function for CVAT: SAN annotates the images of a task with any words.

pip install ".[label]" cvat-cli
cvat-cli --server-host http://localhost:8080 task auto-annotate 137 --function-file examples/cvat_auto_annotation.py \
    -p model=str:san_vit_b_16 -p words=str:"car, person, traffic light|stop light" -p instances=bool:true

The labels of the task have the names of the classes (the first of several synonyms) and the type "mask" or "any". With
--conv-mask-to-poly they have the type "polygon" or "any". --allow-unmatched-labels leaves out words without a label.
"""

from __future__ import annotations

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import LabeledShapeRequest
from PIL import Image

from san import Predictor, Vocabulary
from san.labelling.outlines import joined_ring, region_polygons
from san.labelling.regions import Region


def create(
    words: str,
    model: str = "shapes",
    device: str = "cpu",
    dtype: str = "float32",
    context: str = "",
    threshold: float = 0.0,
    none_of_these: bool = False,
    instances: bool = False,
    min_area: int = 0,
    tolerance: float = 1.0,
) -> Function:
    """Return the function; cvat-cli passes each ``-p name=type:value``.

    Args:
        words: the classes, as for `san predict --vocab`.
        model: name, file, folder or id of a model.
        device: "cpu", "cuda", ...
        dtype: "float32", "bfloat16" or "int8".
        context: words or a label set that compete for pixels and are not annotated.
        threshold: pixels whose score is lower are not annotated.
        none_of_these: whether pixels are left out if "no object" scores above every class.
        instances: a shape for each connected component, instead of one per class.
        min_area: connected components of fewer pixels are left out.
        tolerance: polygons may deviate by so many pixels.
    """
    vocabulary = Vocabulary.parse(words)
    if context:
        vocabulary = vocabulary.with_context(context)
    predictor = Predictor.from_pretrained(model, device=device, dtype=dtype)
    return Function(
        predictor,
        vocabulary,
        pixels={"threshold": threshold, "none_of_these": none_of_these},
        regions={"instances": instances, "min_area": min_area},
        tolerance=tolerance,
    )


class Function:
    """What CVAT calls; see `cvat_sdk.auto_annotation.DetectionFunction`."""

    def __init__(
        self, predictor: Predictor, vocabulary: Vocabulary, *, pixels: dict, regions: dict, tolerance: float
    ) -> None:
        self._predictor, self._vocabulary = predictor, vocabulary
        self._pixels, self._regions, self._tolerance = pixels, regions, tolerance
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(each.name, index, type="mask") for index, each in enumerate(vocabulary.free)]
        )

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[LabeledShapeRequest]:
        """Return the shapes of an image. CVAT's confidence threshold applies to the mean score of a shape."""
        result = self._predictor.predict(image, self._vocabulary, **self._pixels)
        regions = result.regions(score_threshold=context.conf_threshold or 0.0, **self._regions)
        if context.conv_mask_to_poly:
            return [shape for each in regions for shape in self._polygons(each)]
        return [cvataa.mask(each.label, _mask_points(each)) for each in regions]

    def _polygons(self, region: Region) -> list[LabeledShapeRequest]:
        outlines = (joined_ring(each) for each in region_polygons(region, self._tolerance))
        return [cvataa.polygon(region.label, each.ravel().tolist()) for each in outlines]


def _mask_points(region: Region) -> list[float]:
    left, top, width, height = region.box
    points: list[float] = encode_mask(region.mask(), [left, top, left + width, top + height])
    return points
