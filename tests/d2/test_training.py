"""Runs of a tiny model: repeatable, divisible, resumable, in every precision, evaluated and logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from san.d2.api import META_ARCH_REGISTRY, HookBase, MetadataCatalog, build_model
from san.d2.data.datasets import register_datasets
from san.d2.run import run
from san.d2.train import trainer as trainer_module
from san.d2.train.trainer import Trainer

MakeCfg = Callable[..., Any]


def losses(folder: str | Path) -> list[dict[str, float]]:
    """The losses of every iteration that a run has logged; of one logged twice, the last."""
    lines = map(json.loads, (Path(folder) / "metrics.json").read_text().splitlines())
    found = {line["iteration"]: line for line in lines if "total_loss" in line}
    return [{k: v for k, v in found[i].items() if "loss" in k or k == "lr"} for i in sorted(found)]


def close(first: list[dict[str, float]], second: list[dict[str, float]], rel: float) -> bool:
    assert len(first) == len(second) and all(a.keys() == b.keys() for a, b in zip(first, second, strict=True))
    return all(a[key] == pytest.approx(b[key], rel=rel) for a, b in zip(first, second, strict=True) for key in a)


def test_a_run_leaves_its_files(reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "curves.png", "last_checkpoint", "model_final.pth"} <= names
    assert {"model_0000002.pth", "model_0000005.pth"} <= names and any("tfevents" in name for name in names)
    report = {path.name for path in (reference / "inference/voc_sem_seg_val").iterdir()}
    assert report >= {"metrics.json", "per_class.csv", "per_class.png", "panel.png"}
    for path in reference.rglob("*.png"):
        Image.open(path).verify()


def test_progress_line_says_all(reference: Path) -> None:
    line = [x for x in (reference / "log.txt").read_text().splitlines() if "iter 5/6" in x][-1]
    for part in ("eta 0:00:0", "total_loss", "loss_ce", "loss_mask", "loss_dice", "lr ", "s/iter", "data ", " MiB"):
        assert part in line


def test_evaluations_are_logged_on_the_way(reference: Path) -> None:
    lines = [json.loads(x) for x in (reference / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "voc_sem_seg_val/mIoU" in x] == [2, 6]


def test_the_same_run_gives_the_same_losses_for_any_number_of_workers(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(DATALOADER__NUM_WORKERS=2)
    run(cfg)
    assert losses(cfg.OUTPUT_DIR) == losses(reference)


def test_another_seed_gives_other_losses(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(SEED=8, SOLVER__MAX_ITER=1)
    run(cfg)
    assert losses(cfg.OUTPUT_DIR)[0]["total_loss"] != losses(reference)[0]["total_loss"]


def test_an_interrupted_run_resumes_to_the_same_losses(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=3)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "model_0000002.pth").write_bytes((reference / "model_0000002.pth").read_bytes())
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    run(cfg, resume=True)
    assert losses(folder) == losses(reference)[3:]
    ours, theirs = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (folder, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_resumes_to_its_evaluation(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(OUTPUT_DIR=str(reference), DATASETS__TEST=["voc_sem_seg_val"])
    before = (reference / "model_final.pth").read_bytes()
    results = run(cfg, resume=True)
    assert results["voc_sem_seg_val"]["pACC"] >= 0
    assert (reference / "model_final.pth").read_bytes() == before


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_gives_the_losses_of_the_whole_batch(reference: Path, make_cfg: MakeCfg, steps: int) -> None:
    cfg = make_cfg(SOLVER__ACCUMULATION_STEPS=steps)
    run(cfg)
    assert close(losses(cfg.OUTPUT_DIR), losses(reference), rel=1e-5)


def test_hooks_say_when_they_read_losses(make_cfg: MakeCfg) -> None:
    """Nothing but the end is due; until then the storage has the losses of the iteration before."""

    class Reader(HookBase):
        def __init__(self) -> None:
            self.seen: list[int | None] = []

        def after_step(self) -> None:
            self.seen.append(self.trainer.storage.latest().get("total_loss", (0.0, None))[1])

    class PromptReader(Reader):
        def reads_losses(self, done: int) -> bool:
            return done == 3

    cfg = make_cfg(SOLVER__LOG_PERIOD=100, SOLVER__CHECKPOINT_PERIOD=100, SOLVER__MAX_ITER=5)
    register_datasets(cfg.DATASETS.ROOT)
    Path(cfg.OUTPUT_DIR).mkdir()
    for reader, third in ((Reader(), 1), (PromptReader(), 2)):
        trainer = Trainer(cfg)
        trainer.register_hooks([reader])
        trainer.resume_or_load(resume=False)
        trainer.train()
        assert reader.seen == [None, 0, third, 2, 4]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_cpu_without_half_precision_computes_in_float32(
    make_cfg: MakeCfg, dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = make_cfg(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype)
    for able in (True, False):
        monkeypatch.setattr(trainer_module, "computes_bfloat16", lambda device, able=able: able)
        assert "float32 is faster" not in caplog.text
        assert (trainer_module.step_config(cfg).amp_dtype is None) is not able
    assert f"it replaces SOLVER.AMP.DTYPE {dtype}" in caplog.text


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_on_the_cpu(
    reference: Path, make_cfg: MakeCfg, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "computes_bfloat16", lambda device: True)
    cfg = make_cfg(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype)
    run(cfg)
    found, exact = losses(cfg.OUTPUT_DIR), losses(reference)
    assert found != exact
    assert close(found[:1], exact[:1], rel=3e-2)
    assert len(found) == 6 and found[-1]["total_loss"] < found[0]["total_loss"]


def test_only_what_is_trained_changes(reference: Path, make_cfg: MakeCfg) -> None:
    first, last = (
        torch.load(reference / name, weights_only=True)["model"] for name in ("model_0000002.pth", "model_final.pth")
    )
    register_datasets(make_cfg().DATASETS.ROOT)
    trained = {name for name, p in build_model(make_cfg()).named_parameters() if p.requires_grad}
    assert {name for name in first if not torch.equal(first[name], last[name])} == trained


def test_evaluation_only_repeats_the_last_evaluation(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(MODEL__WEIGHTS=str(reference / "model_final.pth"), DATASETS__TEST=["voc_sem_seg_val"])
    results = run(cfg, eval_only=True)
    stored = json.loads((reference / "inference/voc_sem_seg_val/metrics.json").read_text())
    assert results["voc_sem_seg_val"]["pACC"] == stored["pACC"]
    assert not list(Path(cfg.OUTPUT_DIR).glob("*.pth"))
    resumed = make_cfg(OUTPUT_DIR=str(reference), DATASETS__TEST=["voc_sem_seg_val"])
    assert run(resumed, eval_only=True, resume=True)["voc_sem_seg_val"]["pACC"] == stored["pACC"]


def test_evaluation_writes_predictions_when_asked(reference: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(
        MODEL__WEIGHTS=str(reference / "model_final.pth"),
        DATASETS__TEST=["voc_sem_seg_val"],
        TEST__SAVE_LABEL_MAPS=True,
        TEST__SAVE_RLE=True,
        TEST__NUM_PANELS=0,
    )
    run(cfg, eval_only=True)
    folder = Path(cfg.OUTPUT_DIR) / "inference/voc_sem_seg_val"
    assert len(list((folder / "label_maps").glob("val_*.png"))) == 3
    entries = json.loads((folder / "sem_seg_predictions.json").read_text())
    assert {Path(entry["file_name"]).stem for entry in entries} == {"val_000", "val_001", "val_002"}
    assert not (folder / "panel.png").exists()


@pytest.mark.parametrize("name", ["sem_seg", "voc_sem_seg_val"])
def test_expected_results(reference: Path, make_cfg: MakeCfg, name: str) -> None:
    common = {"MODEL__WEIGHTS": str(reference / "model_final.pth"), "DATASETS__TEST": ["voc_sem_seg_val"]}
    stored = json.loads((reference / "inference/voc_sem_seg_val/metrics.json").read_text())["pACC"]
    run(make_cfg(**common, TEST__EXPECTED_RESULTS=[[name, "pACC", stored, 0.01]]), eval_only=True)
    with pytest.raises(SystemExit) as caught:
        run(make_cfg(**common, TEST__EXPECTED_RESULTS=[[name, "pACC", stored + 1, 0.5]]), eval_only=True)
    assert caught.value.code == 1
    with pytest.raises(ValueError, match="TEST.EXPECTED_RESULTS holds"):
        run(make_cfg(**common, TEST__EXPECTED_RESULTS=[[name, "mIOU", stored, 0.5]]), eval_only=True)


def test_wandb_offline_needs_no_account(make_cfg: MakeCfg) -> None:
    pytest.importorskip("wandb")
    cfg = make_cfg(WANDB__ENABLED=True, SOLVER__MAX_ITER=2)
    run(cfg)
    (folder,) = Path(cfg.OUTPUT_DIR).glob("wandb/offline-run-*")
    (record,) = folder.glob("*.wandb")
    end = time.monotonic() + 60
    while b"total_loss" not in record.read_bytes():  # wandb's own process may write it a moment later
        assert time.monotonic() < end
        time.sleep(0.05)


def test_model_by_name_and_free_vocabulary(make_cfg: MakeCfg) -> None:
    cfg = make_cfg(TEST__SCORES=True)
    register_datasets(cfg.DATASETS.ROOT)
    assert "SAN" in META_ARCH_REGISTRY
    model = build_model(cfg).eval()
    sample = {"image": torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), "height": 25, "width": 35}
    model.set_vocabulary(["cat", "dog", "grass"])
    with torch.no_grad():
        (alone,) = model([sample])
        other = {"image": torch.randint(0, 256, (3, 64, 40), dtype=torch.uint8)}
        together = model([sample, other])
    assert alone["sem_seg"].shape == (3, 25, 35) and alone["sem_seg_labels"].dtype == torch.int64
    assert torch.equal(alone["sem_seg_labels"], alone["sem_seg"].argmax(dim=0))
    assert together[1]["sem_seg_labels"].shape == (64, 40)
    model.set_vocabulary(None)
    with torch.no_grad():
        mixed = model([sample, sample | {"dataset_name": "pcontext_sem_seg_val"}])
    assert [x["sem_seg"].shape[0] for x in mixed] == [20, 59]


def test_registration_can_be_repeated_and_moved(tmp_path: Path, shared_voc: Path) -> None:
    register_datasets(tmp_path)
    register_datasets(shared_voc)
    assert MetadataCatalog.get("voc_sem_seg_val").image_root.startswith(str(shared_voc))
    assert len(MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes) == 150
    assert MetadataCatalog.get("ade20k_full_sem_seg_val").ignore_label == 65535


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_datasets()
    assert MetadataCatalog.get("voc_sem_seg_val").image_root.startswith(str(tmp_path))


def test_shapes_train_on_seen_and_are_tested_on_all_names(make_cfg: MakeCfg, tmp_path: Path) -> None:
    from san.shapes.dataset import ShapesSizes, write_shapes
    from san.shapes.world import NAMES

    write_shapes(tmp_path / "data", ShapesSizes(num_train=4, num_val=2))
    cfg = make_cfg(
        DATASETS__ROOT=str(tmp_path / "data"),
        DATASETS__TRAIN=["shapes_sem_seg_train"],
        DATASETS__TEST=["shapes_sem_seg_val_seen", "shapes_sem_seg_val_novel"],
        SOLVER__MAX_ITER=2,
    )
    results = run(cfg)
    assert list(results) == ["shapes_sem_seg_val_seen", "shapes_sem_seg_val_novel"]
    for name, values in results.items():
        assert {key for key in values if key.startswith("IoU-")} == {f"IoU-{name}" for name in NAMES}
        assert (Path(cfg.OUTPUT_DIR) / "inference" / name / "panel.png").is_file()


def test_missing_shapes_are_written(make_cfg: MakeCfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from san.d2.data.datasets import prepare_shapes

    asked = []
    monkeypatch.setattr("san.shapes.dataset.ensure_written", lambda root, names: asked.append((root, names)))
    prepare_shapes(["voc_sem_seg_train"], tmp_path)
    assert asked == []
    names = ["voc_sem_seg_train", "shapes_sem_seg_val_seen"]
    prepare_shapes(names, tmp_path)
    assert asked == [(tmp_path, names)]
