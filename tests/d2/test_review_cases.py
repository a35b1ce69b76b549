"""Regressions: unequal accumulation steps, ignore labels, sub-folders, errors during errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.d2.api import MetadataCatalog, build_model
from san.d2.config.keys import solver_config
from san.d2.data.datasets import check_distinct_classes, load_records, register_datasets, register_folder
from san.d2.data.mapper import DatasetInfo, TrainMapper
from san.d2.evaluate.evaluator import OutputConfig, SemSegEvaluator, metric_names
from san.d2.evaluate.resume import ResumeConfig
from san.d2.run import run
from san.d2.train.iteration import StepConfig, Stepper
from san.d2.train.run_hooks import CurvesHook
from san.d2.train.trainer import Trainer

MakeCfg = Callable[..., Any]


def sample_of(seed: int, num_masks: int) -> dict[str, Any]:
    """A training sample with so many classes."""
    rng = np.random.default_rng(seed)
    labels = np.full((64, 64), 255, np.int32)
    for index in range(num_masks):
        labels[index * 10 : index * 10 + 10] = index
    image = torch.from_numpy(rng.integers(0, 256, (3, 64, 64), np.uint8))
    counts = {"seed": seed, "num_masks": num_masks, "ignore_label": 255, "dataset_name": "voc_sem_seg_train"}
    return {"image": image, "sem_seg": torch.from_numpy(labels), **counts}


def test_unequal_accumulation_steps_give_the_whole_batch(make_cfg: MakeCfg) -> None:
    cfg = make_cfg(SOLVER__CLIP_GRADIENTS__ENABLED=False)
    register_datasets(cfg.DATASETS.ROOT)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    config = StepConfig(solver_config(cfg), "cpu", None, cfg.MODEL.SIDE_ADAPTER.NUM_QUERIES, 0.1)
    stepper = Stepper(model, optimizer, config)
    samples = [sample_of(seed, num_masks) for seed, num_masks in enumerate((1, 1, 5, 6))]

    def compute(batches: list[list[dict[str, Any]]]) -> tuple[dict[str, float], list[torch.Tensor]]:
        losses, _ = stepper.run(batches, 0).read()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return losses, found

    whole, gradients = compute([samples])
    parts, their_gradients = compute([samples[:2], samples[2:]])
    assert {"loss_ce", "loss_mask", "loss_dice"} < whole.keys()
    assert parts == pytest.approx(whole, rel=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for ours, theirs in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("given", [True, False])
def test_the_ignore_label_falls_back_to_the_data_set(make_cfg: MakeCfg, given: bool) -> None:
    cfg = make_cfg()
    register_datasets(cfg.DATASETS.ROOT)
    register_folder("odd_ignore", "a", "b", ["cat", "dog"], ignore_label=7)
    model = build_model(cfg)
    labels = torch.tensor([[0, 7], [7, 9 if given else 7]])
    sample = {"sem_seg": labels, "dataset_name": "odd_ignore"}
    if given:
        sample |= {"ignore_label": 9}
        labels[labels == 7] = 9
    target = model._target(sample, 2, (2, 2))
    assert target.labels.tolist() == [0] and (target.label_map == 0).sum() == 1
    MetadataCatalog.remove("odd_ignore")
    register_folder("odd_ignore", "a", "b", ["cat", "dog"])
    assert model._ignore_label({"dataset_name": "odd_ignore"}) == 255
    model.train_datasets = ()
    assert model._ignore_label({}) == 255


def write_pair(folder: Path, name: str) -> dict[str, Any]:
    """An image and a label map of one class; the sample an evaluation makes of them."""
    for kind, pixels in (("images", np.zeros((4, 4, 3), np.uint8)), ("labels", np.zeros((4, 4), np.uint8))):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    names = {"file_name": str(folder / f"images/{name}.png"), "sem_seg_file_name": str(folder / f"labels/{name}.png")}
    return names | {"sem_seg": torch.zeros(4, 4, dtype=torch.int32)}


def test_label_maps_of_one_name_in_two_folders(tmp_path: Path) -> None:
    samples = [write_pair(tmp_path, name) for name in ("rome/1", "oslo/1", "2")]
    register_folder("towns", tmp_path / "images", tmp_path / "labels", ["cat", "dog"], image_ext="png")
    evaluator = SemSegEvaluator("towns", OutputConfig(tmp_path / "out", num_panels=0, label_maps=True))
    for value, sample in enumerate(samples):
        evaluator.process([sample], [{"sem_seg_labels": torch.full((4, 4), value % 2)}])
    written = {path.relative_to(tmp_path / "out/label_maps").as_posix(): np.array(Image.open(path))[0, 0]
               for path in (tmp_path / "out/label_maps").rglob("*.png")}  # fmt: skip
    assert written == {"rome/1.png": 0, "oslo/1.png": 1, "2.png": 0}
    elsewhere = samples[0] | {"sem_seg_file_name": "/elsewhere/x.tif"}
    evaluator.process([elsewhere], [{"sem_seg_labels": torch.zeros(4, 4, dtype=torch.int64)}])
    assert (tmp_path / "out/label_maps/x.png").is_file()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_evaluated(tmp_path: Path, make_cfg: MakeCfg) -> None:
    """It passed the check and the training, and ended the evaluation."""
    samples = [write_pair(tmp_path, os.fsdecode(b"caf\xe9"))]
    register_folder("bytes", tmp_path / "images", tmp_path / "labels", ["cat", "dog"], image_ext="png")
    place = ResumeConfig("weights", True, 0).saved_counts(
        make_cfg(), torch.nn.Identity(), "bytes", samples, tmp_path / "out"
    )
    evaluator = SemSegEvaluator("bytes", OutputConfig(tmp_path / "out", label_maps=True, rle=True))
    evaluator.process(samples, [{"sem_seg_labels": torch.zeros(4, 4, dtype=torch.int64)}])
    place.save(1, evaluator.state_dict())
    found = place.load(num_images=1)
    assert found is not None
    evaluator.load_state_dict(found[1])
    values = evaluator.evaluate()
    assert values is not None and values["sem_seg"]["mIoU"] == 100
    assert (tmp_path / "out" / "panel.png").is_file()
    (entry,) = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text(encoding="utf-8"))
    assert entry["file_name"] == samples[0]["file_name"] and entry["image_id"] == os.fsdecode(b"caf\xe9")
    assert list((tmp_path / "out" / "label_maps").iterdir()) == [
        tmp_path / "out" / "label_maps" / os.fsdecode(b"caf\xe9.png")
    ]


def test_masks_of_two_values_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before training and evaluation, too; one class of two was never learnt."""
    write_pair(tmp_path, "a")
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "labels" / "b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "b.png")
    register_folder("masks", tmp_path / "images", tmp_path / "labels", ["ground", "roof"], image_ext="png")
    for _ in range(2):
        assert len(load_records("masks")) == 2
    warnings = [each.getMessage() for each in caplog.records if "no values but 0 and 255" in each.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("masks: ") and "label_mapping" in warnings[0]


@pytest.mark.parametrize("other", ["Cat ", "c\u200bat", "\uff43at"])
def test_classes_that_look_the_same_are_equal(tmp_path: Path, other: str) -> None:
    register_folder("alike", tmp_path, tmp_path, ["cat", "dog", other])
    with pytest.raises(ValueError, match="'alike' has several classes of the name 'cat', "):
        check_distinct_classes("alike")


def test_two_classes_of_one_name_are_refused_at_once(tmp_path: Path, make_cfg: MakeCfg) -> None:
    register_folder("twice", tmp_path, tmp_path, ["cat", "dog", "cat"])
    with pytest.raises(ValueError, match="'twice' has several classes of the name 'cat'"):
        SemSegEvaluator("twice", OutputConfig(tmp_path))


def test_classes_of_one_name_stop_before_training(tmp_path: Path, make_cfg: MakeCfg) -> None:
    write_pair(tmp_path, "1")
    register_datasets(make_cfg().DATASETS.ROOT)
    register_folder("twice", tmp_path / "images", tmp_path / "labels", ["cat", "cat"], image_ext="png")
    with pytest.raises(ValueError, match="'twice' has several classes"):
        Trainer(make_cfg(DATASETS__TEST=["twice"]))


def test_an_error_after_the_writers_closed_is_reported(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CurvesHook) -> None:
        raise OSError("no room for curves")

    monkeypatch.setattr(CurvesHook, "after_train", fail)
    with pytest.raises(OSError, match="no room for curves"):
        run(make_cfg(SOLVER__MAX_ITER=1))


def test_an_error_is_reported_if_the_logs_also_fail(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    def stumble(*_: Any) -> None:
        raise FloatingPointError("not finite")

    monkeypatch.setattr("san.d2.api.hooks.PeriodicWriter.after_train", fail)
    monkeypatch.setattr("san.d2.train.iteration.Stepper.run", stumble)
    with pytest.raises(FloatingPointError, match="not finite"):
        run(make_cfg(SOLVER__MAX_ITER=1))


@pytest.mark.parametrize("ignore_label", [-1, 255, 1])
def test_masks_are_counted_for_any_ignore_label(tmp_path: Path, ignore_label: int) -> None:
    record = write_pair(tmp_path, "1")

    def augmentation(image: np.ndarray, labels: np.ndarray, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        labels = np.full_like(labels, ignore_label)
        labels[0], labels[1] = 0, 2
        return image, labels

    mapper = TrainMapper(DatasetInfo("x", 3, ignore_label), augmentation)  # type: ignore[arg-type]
    assert mapper(record, np.random.default_rng(0))["num_masks"] == 2


@pytest.mark.parametrize(
    ("tests", "entry"),
    [
        (["voc_sem_seg_val"], ["voc_sem_seg_val", "mIOU", 1.0, 1.0]),
        (["voc_sem_seg_val"], ["sem_seg", "IoU-unicorn", 1.0, 1.0]),
        (["voc_sem_seg_val"], ["ade20k_sem_seg_val", "mIoU", 1.0, 1.0]),
        (["voc_sem_seg_val", "ade20k_sem_seg_val"], ["sem_seg", "mIoU", 1.0, 1.0]),
        ([], ["sem_seg", "mIoU", 1.0, 1.0]),
    ],
)
def test_expected_results_are_checked_before_training(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, tests: list[str], entry: list[Any]
) -> None:
    monkeypatch.setattr("san.d2.run.Trainer", lambda cfg: pytest.fail("training has started"))
    with pytest.raises(ValueError, match="TEST.EXPECTED_RESULTS holds"):
        run(make_cfg(DATASETS__TEST=tests, TEST__EXPECTED_RESULTS=[entry]))


def test_metric_names_are_those_of_an_evaluation(tmp_path: Path) -> None:
    register_folder("grouped", tmp_path, tmp_path, ["cat", "dog"], class_groups={"seen": ("cat",)})
    write_pair(tmp_path, "1")
    evaluator = SemSegEvaluator("grouped", OutputConfig(tmp_path / "out", num_panels=0))
    result = evaluator.evaluate()
    assert result is not None and list(result["sem_seg"]) == metric_names("grouped")


def test_an_empty_data_set_points_to_a_file_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    from san.d2.data import datasets

    register_folder("nothing", "a", "b", ["cat"])
    monkeypatch.setattr(datasets.DatasetCatalog, "get", lambda name: [])
    with pytest.raises(ValueError, match="docs/datasets.md"):
        datasets.load_records("nothing")
    assert (Path(__file__).resolve().parents[2] / "docs/datasets.md").is_file()
