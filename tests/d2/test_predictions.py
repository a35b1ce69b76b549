"""Predictions for Detectron2's tools: scores, the vocabulary of a sample, the order of colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2 import register_datasets
from san.d2.api import build_model


def test_scores_are_there_without_their_memory(make_cfg: Callable[..., Any]) -> None:
    model = build_model(make_cfg()).eval()
    model.set_vocabulary(["cat", "dog"])
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 5, "width": 7}])
    computed, compute = [], found.scores
    found.scores = lambda: computed.append(1) or compute()
    assert "sem_seg" in found and "instances" not in found
    assert found["sem_seg_labels"].shape == (5, 7) and not computed
    assert dict(found).keys() == {"sem_seg_labels", "sem_seg"}
    assert found["sem_seg"].shape == (2, 5, 7)
    assert torch.equal(found.get("sem_seg").argmax(dim=0), found["sem_seg_labels"])
    with pytest.raises(KeyError, match="instances"):
        found["instances"]


def test_a_sample_of_no_data_set_needs_one_vocabulary(make_cfg: Callable[..., Any], shared_voc: Path) -> None:
    register_datasets(shared_voc)
    sample = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    with torch.no_grad():
        for names in (["voc_sem_seg_val"], []):
            (found,) = build_model(make_cfg(DATASETS__TEST=names)).eval()([sample])
            assert found["sem_seg"].shape[0] == 20
        model = build_model(make_cfg(DATASETS__TEST=["voc_sem_seg_val", "ade20k_sem_seg_val"])).eval()
        with pytest.raises(ValueError, match="no dataset_name, and voc_sem_seg_train, .*different class names"):
            model([sample])
        assert model([sample | {"dataset_name": "ade20k_sem_seg_val"}])[0]["sem_seg"].shape[0] == 150


def test_images_must_be_rgb(make_cfg: Callable[..., Any]) -> None:
    cfg = make_cfg()
    cfg.defrost()
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'BGR'"):
        build_model(cfg)
