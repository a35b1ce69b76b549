"""Errors of a user: one clear message with file and remedy; earlier checkpoints are unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.d2.run import run

MakeCfg = Callable[..., Any]

IMAGES = "VOC2012/JPEGImages"
LABELS = "VOC2012/annotations_detectron2/train"


@pytest.fixture
def spoilt(make_cfg: MakeCfg, own_voc: Path) -> Callable[..., None]:
    """A function that starts a short run on a data set of its own, which the test has spoilt."""

    def start(**changes: Any) -> None:
        run(make_cfg(**({"DATASETS__ROOT": str(own_voc), "SOLVER__MAX_ITER": 1} | changes)), move_aside=True)

    return start


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what cannot be read is tried again."""
    monkeypatch.setattr("san.d2.data.loaders.RETRY_PAUSE", 0.01)


def refused(action: Callable[[], Any], kind: type[Exception], *parts: str) -> None:
    """The action raises an error of one line that holds all parts."""
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("key", ["DATASETS__TRAIN", "DATASETS__TEST"])
def test_wrong_dataset_name(make_cfg: MakeCfg, key: str) -> None:
    refused(
        lambda: run(make_cfg(**{key: ["voc_semseg_val"]})),
        ValueError, key.replace("__", "."), "'voc_semseg_val'", "did you mean 'voc_sem_seg_val'?",
    )  # fmt: skip


def test_no_dataset_name(make_cfg: MakeCfg) -> None:
    refused(lambda: run(make_cfg(DATASETS__TRAIN=[])), ValueError, "DATASETS.TRAIN is empty")
    refused(lambda: run(make_cfg(DATASETS__TEST=[]), eval_only=True), ValueError, "DATASETS.TEST is empty")


@pytest.mark.parametrize("folder", [IMAGES, LABELS])
@pytest.mark.parametrize("emptied", [True, False])
def test_empty_or_missing_folder(spoilt: Callable[..., None], own_voc: Path, folder: str, emptied: bool) -> None:
    shutil.rmtree(own_voc / folder)
    if emptied:
        (own_voc / folder).mkdir()
    refused(spoilt, FileNotFoundError, folder, "prepare the dataset")


def test_missing_folder_of_the_evaluation_stops_before_training(spoilt: Callable[..., None]) -> None:
    refused(lambda: spoilt(DATASETS__TEST=["ade20k_sem_seg_val"]), FileNotFoundError, "ADEChallengeData2016")


def test_unreadable_image(spoilt: Callable[..., None], own_voc: Path) -> None:
    for path in (own_voc / IMAGES).iterdir():
        path.write_bytes(b"this is not a picture")
    refused(spoilt, ValueError, "train_00", "cannot be read", "prepare it again")


@pytest.mark.parametrize("folder", [IMAGES, LABELS])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_empty_file(spoilt: Callable[..., None], own_voc: Path, folder: str, num_workers: int) -> None:
    for path in (own_voc / folder).glob("train*"):
        path.write_bytes(b"")
    refused(lambda: spoilt(DATALOADER__NUM_WORKERS=num_workers), ValueError, "train_00", "empty file (0 bytes)")


def test_truncated_image(spoilt: Callable[..., None], own_voc: Path) -> None:
    for path in (own_voc / IMAGES).iterdir():
        path.write_bytes(path.read_bytes()[:600])
    refused(spoilt, ValueError, "train_00", "cannot be read")


def test_label_out_of_range(spoilt: Callable[..., None], own_voc: Path) -> None:
    for path in (own_voc / LABELS).iterdir():
        labels = np.array(Image.open(path))
        labels[0, 0] = 20
        Image.fromarray(labels).save(path)
    refused(spoilt, ValueError, "train_00", "holds the value 20", "0..19", "ignore label 255")


def test_label_map_of_another_size(spoilt: Callable[..., None], own_voc: Path) -> None:
    for path in (own_voc / LABELS).iterdir():
        Image.open(path).resize((30, 20), 0).save(path)
    refused(spoilt, ValueError, "train_00", "20x30", "must be equal")


def test_bad_file_in_evaluation(make_cfg: MakeCfg, own_voc: Path, reference: Path) -> None:
    (own_voc / IMAGES / "val_001.jpg").write_bytes(b"")
    cfg = make_cfg(
        DATASETS__ROOT=str(own_voc),
        DATASETS__TEST=["voc_sem_seg_val"],
        MODEL__WEIGHTS=str(reference / "model_final.pth"),
    )
    refused(lambda: run(cfg, eval_only=True), ValueError, "val_001.jpg", "empty file")


def test_crops_without_annotation_are_handled(spoilt: Callable[..., None], own_voc: Path, tmp_path: Path) -> None:
    for path in (own_voc / LABELS).iterdir():
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    spoilt(SOLVER__MAX_ITER=2)
    spoilt(SOLVER__MAX_ITER=2, SOLVER__ACCUMULATION_STEPS=2)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "loss_mask 0" in log and "nan" not in log
    assert all(value.isfinite().all() for value in torch.load(tmp_path / "run/model_final.pth")["model"].values())


def checkpoints(folder: Path) -> dict[str, bytes]:
    """The content of a folder's checkpoints."""
    return {path.name: path.read_bytes() for path in [*folder.glob("model_*.pth"), *folder.glob("last_checkpoint")]}


def test_a_loss_that_is_not_finite(make_cfg: MakeCfg, own_voc: Path, tmp_path: Path) -> None:
    run(make_cfg(SOLVER__MAX_ITER=1))
    before = checkpoints(tmp_path / "run")
    cfg = make_cfg(SOLVER__BASE_LR=1e30, SOLVER__MAX_ITER=6)
    refused(
        lambda: run(cfg, resume=True), FloatingPointError,
        "not finite", "iteration 4, images", "train_00", "3 updates in a row", "earlier checkpoints are untouched",
        "lower SOLVER.BASE_LR",
    )  # fmt: skip
    assert checkpoints(tmp_path / "run") == before
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert '"iteration": 1' in [line for line in lines if "total_loss" in line][-1]


def test_checkpoint_that_does_not_exist(make_cfg: MakeCfg) -> None:
    refused(lambda: run(make_cfg(MODEL__WEIGHTS="gone.pth")), FileNotFoundError, "gone.pth", "MODEL.WEIGHTS")
    test = make_cfg(MODEL__WEIGHTS="gone.pth", DATASETS__TEST=["voc_sem_seg_val"])
    refused(lambda: run(test, eval_only=True), FileNotFoundError, "gone.pth")


@pytest.mark.parametrize("resume", [True, False])
def test_evaluation_without_weights(make_cfg: MakeCfg, resume: bool) -> None:
    cfg = make_cfg(DATASETS__TEST=["voc_sem_seg_val"])
    refused(lambda: run(cfg, eval_only=True, resume=resume), ValueError, "needs weights", "MODEL.WEIGHTS")


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_damaged_checkpoint(make_cfg: MakeCfg, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    refused(lambda: run(make_cfg(MODEL__WEIGHTS=str(path))), ValueError, "damaged.pth")


def test_damaged_checkpoint_of_a_resumed_run(make_cfg: MakeCfg, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(make_cfg(SOLVER__MAX_ITER=2))
    path = folder / "model_final.pth"
    path.write_bytes(path.read_bytes()[:5000])
    before = checkpoints(folder)
    refused(lambda: run(make_cfg(), resume=True), ValueError, "model_final.pth", "no checkpoint")
    assert checkpoints(folder) == before


def test_checkpoint_of_another_model(make_cfg: MakeCfg, reference: Path) -> None:
    cfg = make_cfg(MODEL__WEIGHTS=str(reference / "model_final.pth"), MODEL__SIDE_ADAPTER__NUM_QUERIES=9)
    refused(lambda: run(cfg), ValueError, "query_embed", "(6, 24) instead of (9, 24)")


def test_checkpoint_with_missing_and_unexpected_tensors(make_cfg: MakeCfg, reference: Path, tmp_path: Path) -> None:
    content = torch.load(reference / "model_final.pth", weights_only=True)
    tensors = content["model"]
    tensors["more"] = tensors.pop("model.bias_head.scale")
    torch.save({"model": tensors}, tmp_path / "wrong.pth")
    cfg = make_cfg(MODEL__WEIGHTS=str(tmp_path / "wrong.pth"))
    refused(lambda: run(cfg), ValueError, "bias_head.scale: missing", "more: unexpected")


def test_a_checkpoint_runs_no_code(make_cfg: MakeCfg, tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1)}, "evil": Evil(str(tmp_path / "trace"))}, tmp_path / "evil.pth")
    refused(lambda: run(make_cfg(MODEL__WEIGHTS=str(tmp_path / "evil.pth"))), ValueError, "evil.pth")
    assert not (tmp_path / "trace").exists()


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def test_batch_that_cannot_be_divided(make_cfg: MakeCfg) -> None:
    refused(
        lambda: run(make_cfg(SOLVER__ACCUMULATION_STEPS=3)), ValueError, "SOLVER.IMS_PER_BATCH is 4", "multiple of 3"
    )


def test_clip_that_is_not_known(make_cfg: MakeCfg) -> None:
    refused(lambda: run(make_cfg(MODEL__CLIP__NAME="ViT-B-17")), ValueError, "ViT-B-17")


def test_bias_heads_that_do_not_fit_the_clip(make_cfg: MakeCfg) -> None:
    refused(lambda: run(make_cfg(MODEL__ATTN_BIAS__NUM_HEADS=2)), ValueError, "MODEL.ATTN_BIAS.NUM_HEADS to 3")
