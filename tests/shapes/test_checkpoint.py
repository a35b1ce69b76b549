"""The committed shapes checkpoint: what it reaches without any training, and what the attention biases are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from san.checkpoint import load_weights
from san.d2.config.keys import load_config, san_config
from san.evaluation import ConfusionMatrix, metrics
from san.inference.predictor import SHAPES_CHECKPOINT, Predictor
from san.model.build import build_san
from san.model.config import variant
from san.shapes.dataset import SHAPES_SPLITS, split_images
from san.shapes.world import NAMES, NOVEL

NUM_IMAGES = 60
"""Of each split; the figures of README.md are of all 200."""


def evaluate(predictor: Predictor, folder: str) -> dict[str, float]:
    (split,) = (split for split in SHAPES_SPLITS if split.folder == folder)
    matrix = ConfusionMatrix(len(NAMES), 255)
    for image, label in zip(*split_images(split, 0, range(NUM_IMAGES)), strict=True):
        matrix.update(predictor.predict(image, NAMES).labels, label)
    return metrics(matrix, NAMES)


@pytest.fixture(scope="module")
def trained() -> Predictor:
    return Predictor.from_pretrained("shapes")


def test_names_seen_things(trained: Predictor) -> None:
    assert evaluate(trained, "val_seen")["mIoU"] >= 82


def test_names_novel_things_and_owes_it_to_the_biases(trained: Predictor) -> None:
    config = variant("shapes")
    model = build_san(replace(config, attn_bias=replace(config.attn_bias, enabled=False)))
    load_weights(model, SHAPES_CHECKPOINT)
    blind = Predictor(model, short_side=128)
    seeing, blinded = evaluate(trained, "val_novel"), evaluate(blind, "val_novel")
    assert seeing["mIoU"] >= 85
    assert seeing["mIoU"] >= blinded["mIoU"] + 60


def test_novel_things_among_seen_ones(trained: Predictor) -> None:
    """The strictest figure: a novel name given to anything else counts against it."""
    values = evaluate(trained, "val_mixed")
    assert np.mean([values[f"IoU-{name}"] for name in NOVEL]) >= 66


def test_variant_is_the_configuration(repo: Path) -> None:
    for name in ("san_shapes.yaml", "san_shapes_quick.yaml"):
        assert san_config(load_config(str(repo / "configs" / "shapes" / name))) == variant("shapes")


def test_files_are_small() -> None:
    assert SHAPES_CHECKPOINT.stat().st_size <= 4e6
    assert (SHAPES_CHECKPOINT.parent / "clip.safetensors").stat().st_size <= 8e6
