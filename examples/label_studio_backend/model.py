"""A machine learning backend for Label Studio: SAN predicts the labels of a project's labelling interface.

See README.md for the commands. The settings are environment variables:

SAN_MODEL       a name, file, folder or id of a model (default: shapes)
SAN_DEVICE      cpu, cuda, ... (default: cpu)
SAN_DTYPE       float32, bfloat16 or int8 (default: float32)
SAN_CONTEXT     words or a label set that compete for pixels and are not annotated
SAN_THRESHOLD   pixels whose score is lower get no label (default: 0)
SAN_MIN_AREA    connected components of fewer pixels are left out (default: 0)
SAN_TOLERANCE   polygons may deviate by so many pixels (default: 1)
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from label_studio_sdk.label_interface.objects import PredictionValue

import san
from san import Predictor, Vocabulary
from san.io.errors import USER_ERRORS, one_line
from san.labelling.tools import label_studio_results

logger = logging.getLogger(__name__)


@cache
def predictor() -> Predictor:
    """Load the model, once per process."""
    return Predictor.from_pretrained(
        os.environ.get("SAN_MODEL", "shapes"),
        device=os.environ.get("SAN_DEVICE", "cpu"),
        dtype=os.environ.get("SAN_DTYPE", "float32"),
    )


class SANBackend(LabelStudioMLBase):
    """Fills the first BrushLabels or PolygonLabels of an Image.

    A label such as "sofa|couch" is a class with synonyms.
    """

    def setup(self) -> None:
        """Set the version that Label Studio shows beside predictions."""
        self.set("model_version", f"SAN {san.__version__} {os.path.basename(os.environ.get('SAN_MODEL', 'shapes'))}")

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **options: Any) -> Any:
        """Return one prediction for each task; that of an image which cannot be read is empty, and is logged."""
        control, image, value = self.label_interface.get_first_tag_occurence(("BrushLabels", "PolygonLabels"), "Image")
        tag = self.label_interface.get_control(control)
        words = Vocabulary.parse(list(tag.labels))
        if os.environ.get("SAN_CONTEXT"):
            words = words.with_context(os.environ["SAN_CONTEXT"])
        threshold = float(os.environ.get("SAN_THRESHOLD", "0"))
        min_area = int(os.environ.get("SAN_MIN_AREA", "0"))
        tolerance = float(os.environ.get("SAN_TOLERANCE", "1"))
        predictions = []
        for task in tasks:
            try:
                path = self.get_local_path(task["data"][value], task_id=task.get("id"))
                result = predictor().predict(path, words, threshold=threshold)
            except USER_ERRORS as error:
                logger.error("task %s: %s", task.get("id"), one_line(error))
                predictions.append(PredictionValue(result=[], score=0.0))
                continue
            found = label_studio_results(
                result.regions(min_area=min_area),
                list(tag.labels),
                masks=tag.tag == "BrushLabels",
                tolerance=tolerance,
                from_name=control,
                to_name=image,
            )
            score = float(np.mean([each["score"] for each in found])) if found else 0.0
            predictions.append(PredictionValue(result=found, score=score))
        return ModelResponse(predictions=predictions, model_version=str(self.model_version))
