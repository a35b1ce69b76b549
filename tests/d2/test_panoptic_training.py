"""Training on panoptic sets: samples, losses of several masks of one class, accumulation, processes, mixed sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from san.cli.main import main
from san.d2.api import build_model
from san.d2.config.keys import load_config
from san.d2.data.datasets import load_records, metadata_of, prepare_datasets
from san.d2.data.mapper import EvalMapper, TrainMapper, dataset_info
from san.d2.data.train_data import stream_config, train_batches, training_data
from san.d2.run import run
from san.data.transforms import AugmentationConfig, TrainAugmentation
from san.shapes.dataset import ShapesSizes, write_shapes
from tests.d2.conftest import TINY, as_arguments
from tests.d2.test_training import close, losses

TRAIN, VAL = "shapes_panoptic_train", "shapes_panoptic_val_mixed"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a tiny run on a few panoptic scenes."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root, ShapesSizes(num_train=8, num_val=2))
    changes = {"DATASETS.ROOT": str(root), "DATASETS.TRAIN": [TRAIN], "SOLVER.MAX_ITER": 3, "OUTPUT_DIR": str(root)}
    terms = {"MODEL.LOSS.TERMS": ["classes", "masks", "structure"], "MODEL.SIDE_ADAPTER.NUM_QUERIES": 9}
    return TINY | changes | terms


@pytest.fixture
def make_cfg(options: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        changed = {"OUTPUT_DIR": str(tmp_path)} | {key.replace("__", "."): value for key, value in changes.items()}
        cfg = load_config("", as_arguments(options | changed))
        cfg.freeze()
        prepare_datasets(cfg)
        return cfg

    return make


@pytest.fixture(scope="module")
def trained(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(load_config("", as_arguments(options | {"OUTPUT_DIR": str(folder)})))
    return folder


def test_a_training_sample_numbers_its_masks(make_cfg: Callable[..., Any]) -> None:
    make_cfg(DATASETS__TEST=[VAL])
    info = dataset_info(TRAIN, metadata_of(TRAIN))
    assert len(info.things) == 24 and metadata_of(TRAIN).evaluator_type == "panoptic_seg"
    mapper = TrainMapper(info, TrainAugmentation(AugmentationConfig((128,), crop_size=(128, 128), flip_prob=0)))
    repeated = 0
    for record in load_records(TRAIN):
        assert record.keys() == {"file_name", "pan_seg_file_name", "segments_info", "dataset_name"}
        sample = mapper(record, np.random.default_rng(0))
        truth = EvalMapper(info, None)(record)
        values, classes, labels = sample["mask_values"], sample["classes"], sample["sem_seg"]
        assert sample["num_masks"] == len(values) == len(classes) == len(set(values.tolist()))
        repeated += len(classes.unique()) < len(classes)
        for value, label in zip(values, classes, strict=True):
            assert (truth["sem_seg"][labels == value] == label).all()
            assert len(truth["segments"].ids[(labels == value).numpy()]) > 0
            assert len(np.unique(truth["segments"].ids[(labels == value).numpy()])) == 1
        assert {*labels.unique().tolist()} == {*values.tolist()}
    assert repeated > 4


def test_an_evaluation_sample_has_class_map_and_segments(make_cfg: Callable[..., Any]) -> None:
    make_cfg(DATASETS__TEST=[VAL])
    record = load_records(VAL)[0]
    sample = EvalMapper(dataset_info(VAL, metadata_of(VAL)), 64)(record)
    assert sample["sem_seg"].dtype == torch.int32 and sample["sem_seg"].shape == (128, 128)
    assert sample["image"].shape[-2:] == (64, 64) and "mask_values" not in sample
    segments = sample["segments"]
    for number, label in segments.classes.items():
        assert (sample["sem_seg"].numpy()[segments.ids == number] == label).all()
    assert segments.crowd == frozenset() and sample["sem_seg_file_name"] == record["pan_seg_file_name"]


def test_crowds_are_ignored_in_training(make_cfg: Callable[..., Any]) -> None:
    make_cfg(DATASETS__TEST=[VAL])
    info = replace(dataset_info(VAL, metadata_of(VAL)))
    mapper = TrainMapper(info, TrainAugmentation(AugmentationConfig((128,), crop_size=(128, 128), flip_prob=0)))
    record = load_records(VAL)[0]
    first, *others = record["segments_info"]
    crowded = {**record, "segments_info": [{**first, "iscrowd": 1}, *others]}
    one, other = (mapper(each, np.random.default_rng(0)) for each in (record, crowded))
    assert one["num_masks"] == other["num_masks"] + 1
    assert int((other["sem_seg"] == 255).sum()) == int((one["sem_seg"] == one["mask_values"][0]).sum()) > 0
    assert EvalMapper(info, None)(crowded)["segments"].crowd == {first["id"]}


def test_a_wrong_file_is_named(make_cfg: Callable[..., Any], tmp_path: Path) -> None:
    make_cfg(DATASETS__TEST=[VAL])
    record = load_records(VAL)[0]
    mapper = EvalMapper(dataset_info(VAL, metadata_of(VAL)))
    with pytest.raises(ValueError, match=rf"the segment ids {record['pan_seg_file_name']} hold 1"):
        mapper({**record, "segments_info": record["segments_info"][1:]})
    with pytest.raises(FileNotFoundError, match=r"the segment ids .*none.png do not exist"):
        mapper({**record, "pan_seg_file_name": str(tmp_path / "none.png")})


def test_losses_are_those_of_masks(make_cfg: Callable[..., Any]) -> None:
    """Of the model's own batch; a class with several masks has a query for each."""
    cfg = make_cfg()
    torch.manual_seed(0)
    model = build_model(cfg).train()
    samples = next(iter(train_batches(cfg, training_data(cfg), stream_config(cfg))))
    found = model(samples)
    targets = [
        {"labels": each["classes"], "masks": each["sem_seg"] == each["mask_values"][:, None, None]} for each in samples
    ]
    model._target = lambda sample, *_: next(rest)  # type: ignore[method-assign]
    from san.losses import Target

    rest = iter([Target(**each) for each in targets])
    for name, loss in model(samples).items():
        torch.testing.assert_close(found[name], loss, rtol=1e-3, atol=1e-5)


def test_accumulation_and_processes_change_nothing(options: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    expected = losses(trained)
    run(load_config("", as_arguments(options | {"OUTPUT_DIR": str(tmp_path / "a"), "SOLVER.ACCUMULATION_STEPS": 4})))
    assert close(losses(tmp_path / "a"), expected, rel=1e-5)
    arguments = as_arguments(options | {"OUTPUT_DIR": str(tmp_path / "b")})
    assert main(["train", "--num-gpus", "2", "--dist-url", "auto", *arguments]) == 0
    assert close(losses(tmp_path / "b"), expected, rel=1e-5)


def test_semantic_and_panoptic_sets_train_together_and_every_semantic_metric_is_there(
    options: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"DATASETS.TRAIN": [TRAIN, "shapes_sem_seg_train"], "OUTPUT_DIR": str(tmp_path)}
    run(load_config("", as_arguments(options | changes | {"DATASETS.TEST": [VAL], "TEST.SAVE_LABEL_MAPS": True})))
    assert len(losses(tmp_path)) == 3
    folder = tmp_path / "inference" / VAL
    assert {"mIoU", "mIoU-novel", "IoU-red star"} <= json.loads((folder / "metrics.json").read_text()).keys()
    assert sorted(path.name for path in (folder / "label_maps").iterdir()) == ["00000.png", "00001.png"]
