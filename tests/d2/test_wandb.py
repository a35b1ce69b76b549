"""Weights & Biases, with a fake module: one run for any number of resumes, and no question at the terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from san.d2.api import EventStorage
from san.d2.checkpoints.run_folder import recorded_run
from san.d2.config.keys import load_config
from san.d2.run import run
from san.d2.train.report_writer import NewReports, as_markdown
from san.d2.train.writers import WandbWriter

REPO = Path(__file__).resolve().parents[2]
TOKEN = "hf_planted1234567890"


class Server:
    """The logged steps of a run, in order."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def init(self, **options: Any) -> Any:
        if options["mode"] == "online" and sys.stdin.isatty():
            raise AssertionError("somebody would be asked for a key")
        self.starts.append(options)
        step = self.rows[-1][0] + 1 if self.rows else 0
        return types.SimpleNamespace(
            step=step, log=lambda row, step: self.rows.append((step, row)), finish=lambda: None
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    settings = type("Settings", (), {"model_fields": {}})
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=found.init, Settings=settings))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_resumed_run_goes_on_as_the_same_run(make_cfg: Any, server: Server, mode: str) -> None:
    """Though it was killed two iterations after its checkpoint; those are done again and logged once."""
    changes = {"WANDB__ENABLED": True, "WANDB__MODE": mode, "SOLVER__CHECKPOINT_PERIOD": 3}
    cfg = make_cfg(**changes)
    folder = Path(cfg.OUTPUT_DIR)
    run(make_cfg(**changes, SOLVER__MAX_ITER=5))
    (folder / "model_final.pth").unlink()
    run(cfg, resume=True)
    first, second = server.starts
    assert first["id"] == second["id"] == recorded_run(folder)
    assert first["resume"] == second["resume"] == "allow"
    steps = [step for step, row in server.rows if "total_loss" in row]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in server.rows] == sorted(step for step, _ in server.rows)


def test_an_evaluation_that_is_made_after_resuming_is_logged(server: Server, tmp_path: Path) -> None:
    """It has the number of an existing iteration."""
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    writer = WandbWriter(cfg, "a", 7)
    with EventStorage(7) as storage:
        storage.put_scalars(lr=0.1, **{"voc/mIoU": 3.0}, smoothing_hint=False)
        writer.write()
        storage.iter = 8
        storage.put_scalar("lr", 0.2, smoothing_hint=False)
        writer.write()
    assert server.rows == [(8, {"voc/mIoU": 3.0}), (8, {"lr": 0.2})]


def test_a_missing_key_is_an_error_before_training(
    make_cfg: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    cfg = make_cfg(WANDB__ENABLED=True, WANDB__MODE="online")
    with pytest.raises(ValueError, match=r"cannot start with WANDB.MODE online \(No API key configured.\); .*API_KEY"):
        run(cfg)
    assert not (Path(cfg.OUTPUT_DIR) / "config.yaml").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are Unix's")
def test_the_real_wandb_asks_no_question(make_cfg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a terminal and without a key."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ValueError, match=r"cannot start with WANDB.MODE online .*WANDB.MODE offline"):
        WandbWriter(make_cfg(WANDB__ENABLED=True, WANDB__MODE="online"), "a", -1)


def evaluated(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """The files of an evaluation of the data set voc in a run's folder."""
    report = folder / "inference/voc"
    report.mkdir(parents=True, exist_ok=True)
    rows = [f"{index},{name},5,6,50.0000," for index, name in enumerate(classes)]
    (report / "per_class.csv").write_text("\n".join(["index,class,label_pixels,predicted_pixels,IoU,ACC", *rows, ""]))
    Image.new("RGB", (64, 32), (255, 0, 0)).save(report / "panel.png")


def test_each_evaluation_is_given_once(tmp_path: Path) -> None:
    reports = NewReports(tmp_path, ["voc", "ade"])
    with EventStorage(3) as storage:
        assert reports.take() == []
        storage.put_scalars(**{"voc/mIoU": 3.0, "ade/mIoU": 3.0}, smoothing_hint=False)
        assert reports.take() == []  # its files could not be written
        evaluated(tmp_path)
        (report,) = reports.take()
        assert (report.dataset, report.iteration, report.panel) == ("voc", 3, tmp_path / "inference/voc/panel.png")
        assert report.rows == [["cat", 5.0, 6.0, 50.0, None], ["dog", 5.0, 6.0, 50.0, None]]
        assert reports.take() == []
        storage.iter = 7
        storage.put_scalar("voc/mIoU", 4.0, smoothing_hint=False)
        assert [report.iteration for report in reports.take()] == [7]
    assert as_markdown([["a|b", 5.0, 6.0, 50.0, None]]).splitlines()[-1] == "| a\\|b | 5 | 6 | 50.00 |  |"


def test_tensorboard_shows_panels_and_tables_of_a_run(make_cfg: Any) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = {"TEST__EVAL_PERIOD": 3, "DATASETS__TEST": ["voc_sem_seg_val"]}
    cfg = make_cfg(TEST__LOG_REPORTS=True, **changes)
    run(cfg)
    (path,) = Path(cfg.OUTPUT_DIR).glob("*.reports")
    events = event_accumulator.EventAccumulator(str(path)).Reload()
    assert events.Tags()["images"] == ["voc_sem_seg_val/panel"]
    assert [each.step for each in events.Images("voc_sem_seg_val/panel")] == [2, 6]
    (tag,) = events.Tags()["tensors"]
    assert tag == "voc_sem_seg_val/per_class/text_summary"
    assert b"| aeroplane |" in events.Tensors(tag)[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("asked", [True, False])
def test_reports_and_weights_go_to_wandb_where_asked(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, offline. Names of classes are redacted; of the machine nothing is in the files that are sent."""
    pytest.importorskip("wandb")
    home = tmp_path / "home/ursula"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pairs = ["TEST.LOG_REPORTS", str(asked), "WANDB.LOG_CHECKPOINT", str(asked), "OUTPUT_DIR", str(home / "run")]
    cfg = load_config("", ["MODEL.DEVICE", "cpu", *pairs, "DATASETS.TEST", "voc"])
    evaluated(home / "run", ("cat", f"{TOKEN} in {home}"))
    torch.save({"model": {"a": torch.ones(3)}}, home / "run/model_final.pth")
    writer = WandbWriter(cfg, "a1b2", -1)
    with EventStorage(3) as storage:
        storage.put_scalar("voc/mIoU", 3.0, smoothing_hint=False)
        writer.write()
        writer.write()
    writer.close()
    (folder,) = (home / "run/wandb").glob("offline-run-*")
    end = time.monotonic() + 30  # on a busy machine W&B's own process writes a moment later
    while b"mIoU" not in (log := (folder / "run-a1b2.wandb").read_bytes()) and time.monotonic() < end:
        time.sleep(0.2)
    media = sorted(folder.glob("files/media/*/voc/*"))
    assert [path.suffix for path in media] == ([".png", ".json"] if asked else [])
    assert (b"weights-a1b2" in log) == (b"model_final.pth" in log) == asked
    if asked:
        table = json.loads(media[1].read_text())
        assert table["data"] == [["cat", 5, 6, 50, None], ["*** in ~", 5, 6, 50, None]]
    # where wandb keeps its copies until it uploads them: a place on this machine, for this machine
    log = re.sub(rb"[^\x00-\x1f]*/artifacts/staging/\w+", b"", log)
    for content in (log, *(path.read_bytes() for path in media)):
        assert not any(secret.encode() in content for secret in (TOKEN, "ursula", str(tmp_path)))


def test_the_sweep_runs_a_command_that_san_reads(tmp_path: Path) -> None:
    """The agent's command line, by wandb's own functions, up to the configuration of the run."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    path = REPO / "configs/sweeps/shapes.yaml"
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    chosen = {"SOLVER.BASE_LR": 0.0004, "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.WARMUP_ITERS": 50}
    chosen["MODEL.SIDE_ADAPTER.NUM_QUERIES"] = 8
    assert chosen.keys() == sweep["parameters"].keys()
    found = sweeps.create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    command = []
    for part in sweeps.create_sweep_command(sweep["command"]):
        command += found[part[2:-1]] if re.fullmatch(r"\$\{\w+\}", part) else [part]
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "x1"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    script, option, config, *pairs = shown.splitlines()
    assert (REPO / script).is_file() and option == "--config-file"
    cfg = load_config(str(REPO / config), [*pairs, "MODEL.DEVICE", "cpu"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.WARMUP_ITERS) == (4e-4, "WarmupCosineLR", 50)
    assert (cfg.MODEL.SIDE_ADAPTER.NUM_QUERIES, cfg.OUTPUT_DIR) == (8, "output/sweeps/x1")
    assert cfg.WANDB.ENABLED and sweep["metric"]["name"].split("/")[0] in cfg.DATASETS.TEST
