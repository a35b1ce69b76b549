"""A model for FiftyOne: ``dataset.apply_model(fiftyone_model(predictor, "cat, dog"), label_field="san")``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from san.inference.segmenter import Segmenter
from san.io.errors import require_extra
from san.labelling.regions import RegionOptions
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike


def fiftyone_model(
    predictor: Segmenter,
    vocabulary: VocabularyLike,
    *,
    threshold: float = 0.0,
    none_of_these: bool = False,
    instances: bool = False,
    **regions: Any,
) -> Any:
    """Return a `fiftyone.Model` that segments the images of a data set with any words.

    FiftyOne takes 0 for background. The value of class i is therefore i + 1, and pixels in no region have 0. The
    model's `mask_targets` has the name of each value, for ``dataset.mask_targets = {"san": model.mask_targets}``.

    Args:
        predictor: a `Predictor` or an `Ensemble`.
        vocabulary: see `Vocabulary.parse`.
        threshold: see `Segmenter.segment`.
        none_of_these: see `Segmenter.segment`.
        instances: return `fiftyone.Detections` with a mask for each connected component, instead of a
            `fiftyone.Segmentation`.
        regions: `min_area` and `score_threshold`, see `Segmentation.regions`.

    Raises:
        ValueError: the vocabulary or an option is not valid.
        MissingExtraError: FiftyOne, SciPy or Shapely cannot be imported.
    """
    require_extra("label", "fiftyone_model", "scipy", "shapely")
    require_extra("fiftyone", "fiftyone_model", "fiftyone")
    import fiftyone

    RegionOptions(instances, **regions)  # check before any image is segmented
    model = type("SANModel", (FiftyOneMethods, fiftyone.Model), {})()
    model.predictor, model.vocabulary = predictor, Vocabulary.parse(vocabulary)
    model.segment_options = {"threshold": threshold, "none_of_these": none_of_these}
    model.region_options = {"instances": instances, **regions}
    return model


class FiftyOneMethods:
    """What a `fiftyone.Model` must have; the base class is added when FiftyOne is imported."""

    predictor: Segmenter
    vocabulary: Vocabulary
    segment_options: dict[str, Any]
    region_options: dict[str, Any]

    @property
    def media_type(self) -> str:
        """What FiftyOne gives to `predict`."""
        return "image"

    @property
    def ragged_batches(self) -> bool:
        """False: the images of a batch may differ in size."""
        return False

    @property
    def transforms(self) -> None:
        """None: the predictor resizes."""

    @property
    def preprocess(self) -> bool:
        """False: there are no `transforms`."""
        return False

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        """Do nothing; FiftyOne sets it."""

    @property
    def mask_targets(self) -> dict[int, str]:
        """The name of each value of a mask, for ``dataset.mask_targets["san"]`` or ``default_mask_targets``."""
        return {index + 1: each.name for index, each in enumerate(self.vocabulary.free)}

    def predict(self, arg: Any) -> Any:
        """Segment an image, (H, W, 3) uint8 RGB, see `Segmenter.encode`."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[Any]) -> list[Any]:
        """Segment several images; those of one size in the network are computed together."""
        images = [each if isinstance(each, np.ndarray) else np.asarray(each) for each in args]
        if not images:
            return []
        results = self.predictor.predict_batch(images, self.vocabulary, batch_size=len(images), **self.segment_options)
        return [each.to_fiftyone(**self.region_options) for each in results]
