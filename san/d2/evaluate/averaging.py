"""Evaluation with averaged scores: of a model over scales and mirror images (TEST.AUG), or of an ensemble.

With TEST.AUG.ENABLED every data set is evaluated twice, without and with averaging; `side_by_side` compares the two.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from san.d2.api import META_ARCH_REGISTRY, CfgNode
from san.d2.config.keys import text_cache_folder
from san.d2.data.batches import BatchSample
from san.d2.meta_arch import SAN, Prediction, ScoredWords
from san.evaluation.report import summary_keys
from san.inference.ensemble import Ensemble, is_ensemble_file
from san.inference.predictor import Predictor
from san.inference.segmenter import Segmenter
from san.io.files import write_text
from san.postprocess import have_non_finite, mean_labels, mean_scores, refuse_non_finite
from san.vocabulary.classes import ClassText

logger = logging.getLogger("san.d2.evaluation")

SUFFIX = "_TTA"
"""Suffix of a data set's name for the metrics with TEST.AUG, as in Detectron2's projects."""

FOLDER = "inference_TTA"
"""Folder in OUTPUT_DIR of the reports with TEST.AUG."""

TABLE = "side_by_side.csv"


class SegmenterModel(nn.Module):
    """Wraps a segmenter as a model for evaluation: lists of samples to predictions. It cannot be trained.

    Args:
        segmenter: a `Predictor` or an `Ensemble`; its models become submodules.
        classes: returns the vocabulary of a sample.
        vocabulary: the classes, if all samples have the same; resumed evaluations compare them.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        classes: Callable[[BatchSample], tuple[str | ClassText, ...]],
        *,
        vocabulary: tuple[str | ClassText, ...] | None = None,
    ) -> None:
        super().__init__()
        self.segmenter, self.classes, self.vocabulary = segmenter, classes, vocabulary
        self.models = nn.ModuleList(each.model for each in _predictors(segmenter))
        self._band_shrink = 1
        self.eval()

    @property
    def description(self) -> list[str]:
        """Everything besides the weights that affects the predictions."""
        return [repr(self.segmenter), *(str(each.max_size) for each in _predictors(self.segmenter))]

    def shrink_bands(self, factor: int) -> None:
        """Reduce the memory of post-processing by this factor from now on, for use when memory runs out."""
        self._band_shrink = factor

    def forward(self, batched_inputs: list[BatchSample]) -> list[Mapping[str, Tensor]]:
        """Return one mapping per sample, as `SAN.forward` in evaluation.

        Args:
            batched_inputs: samples with ``image`` (3, H, W) uint8 RGB at the file's size, which is resized here;
                optionally ``height`` and ``width`` of the result.

        Raises:
            ValueError: an image's outputs are NaN or infinite.
        """
        return [self._predict(sample) for sample in batched_inputs]

    def _predict(self, sample: BatchSample) -> Mapping[str, Tensor]:
        encoded = self.segmenter.encode(sample["image"], layout="CHW")
        height, width = encoded.pixels.shape[:2]
        size = (int(sample.get("height") or height), int(sample.get("width") or width))
        scored = ScoredWords(self.classes(sample))
        found = self.segmenter.evidence(encoded, scored.words).views
        views = [replace(view, geometry=replace(view.geometry, output_size=size)) for view in found]
        non_finite = torch.cat([have_non_finite(view.mask_logits[None], view.class_logits[None]) for view in views])
        labels = mean_labels(views, shrink=self._band_shrink)[0]
        refuse_non_finite(non_finite, [str(sample.get("file_name", "an image"))] * len(views))
        scores = partial(scored.scores, partial(mean_scores, views, shrink=self._band_shrink))
        return Prediction(scored.labels(labels), scores)


def _predictors(segmenter: Segmenter) -> list[Predictor]:
    """Return the predictors of a segmenter, in order."""
    if isinstance(segmenter, Ensemble):
        return [each for member in segmenter.members for each in _predictors(member)]
    if not isinstance(segmenter, Predictor):
        raise ValueError(f"{type(segmenter).__name__} is neither a Predictor nor an Ensemble of them")
    return [segmenter]


def inner_san(model: nn.Module) -> SAN:
    """Return a meta-architecture as a `SAN`, to predict with its inner model; warns if it overrides `forward`.

    Raises:
        ValueError: it is not a `SAN`.
    """
    name = type(model).__name__
    if not isinstance(model, SAN):
        raise ValueError(f"MODEL.META_ARCHITECTURE {name} is not a subclass of san.d2.SAN, whose model predicts")
    if type(model).forward is not SAN.forward:
        logger.warning("Predicting with the SAN in %s, without what its forward adds.", name)
    return model


def augmented(cfg: CfgNode, model: nn.Module) -> SegmenterModel:
    """Return a model with the given one's weights that averages over TEST.AUG's scales and mirror images.

    Raises:
        ValueError: see `inner_san`.
    """
    san, options = inner_san(model), cfg.TEST.AUG
    predictor = Predictor(
        san.model,
        short_sides=tuple(options.MIN_SIZES),
        max_size=options.MAX_SIZE,
        flip=options.FLIP,
        device=san.device,
        max_pixels=None,
        text_cache=text_cache_folder(cfg),
    )
    return SegmenterModel(predictor, san.vocabulary_of, vocabulary=san.vocabulary)


def check_averaging(cfg: CfgNode, *, training: bool) -> None:
    """Check that scores can be averaged, before any work starts.

    Raises:
        ValueError: an ensemble is trained, or used with TEST.AUG; or TEST.AUG is used with a model that is not a SAN.
    """
    ensemble, weights = is_ensemble_file(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS
    if ensemble and training:
        raise ValueError(f"MODEL.WEIGHTS {weights} lists an ensemble, which can be evaluated but not trained")
    if not cfg.TEST.AUG.ENABLED:
        return
    if ensemble:
        raise ValueError(
            f"TEST.AUG.ENABLED is set, but MODEL.WEIGHTS {weights} lists an ensemble, whose models have sizes of their "
            "own; write short_sides and flip into that file"
        )
    kind = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not (isinstance(kind, type) and issubclass(kind, SAN)):
        raise ValueError(
            f"TEST.AUG.ENABLED is set, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not a subclass of "
            "san.d2.SAN; set it to False"
        )


def side_by_side(
    folder: Path, plain: Mapping[str, Mapping[str, float]], augmented: Mapping[str, Mapping[str, float]]
) -> str:
    """Write the summary metrics with and without TEST.AUG to ``side_by_side.csv``.

    Args:
        folder: folder of the file.
        plain: metrics in percent without TEST.AUG, by data set.
        augmented: metrics with TEST.AUG.

    Returns:
        The table as text.
    """
    rows: list[tuple[Any, ...]] = [("data set", "metric", "plain", "TEST.AUG", "difference")]
    for name, values in augmented.items():
        for key in summary_keys(values):
            before = plain[name][key]
            rows.append((name, key, f"{before:.2f}", f"{values[key]:.2f}", f"{values[key] - before:+.2f}"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TABLE, text.getvalue())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(shown)
