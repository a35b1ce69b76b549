"""`tools/train_net.py` on Detectron2 and on the stand-in: same losses, same metrics, and either resumes the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.d2.conftest import TINY, as_arguments

pytestmark = pytest.mark.detectron2

REPO = Path(__file__).resolve().parents[2]
BOTH = ("detectron2", "standin")
CLOCK = ("time", "data_time")
"""Metrics that no two runs share."""

OPTIONS: dict[str, Any] = TINY | {
    "DATASETS.TEST": ["voc_sem_seg_val"],
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 4,
}


def train(engine: str, folder: Path, voc: Path, *flags: str) -> str:
    """Runs the training script on one engine; returns its log."""
    options = as_arguments(OPTIONS | {"DATASETS.ROOT": str(voc), "OUTPUT_DIR": str(folder)})
    command = [sys.executable, "-W", "ignore", str(REPO / "tools/train_net.py"), *flags, *options]
    environment = {**os.environ, "SAN_BACKEND": engine, "PYTHONPATH": str(REPO)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.json without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def runs(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the same run on either engine."""
    folders = {name: tmp_path_factory.mktemp(name) for name in BOTH}
    for name, folder in folders.items():
        log = train(name, folder, shared_voc)
        assert f"SAN_BACKEND={name}" in log
    return folders


def test_losses_and_metrics_are_the_same(runs):
    real, own = (metrics(runs[name]) for name in BOTH)
    assert real == own
    trained = [line for line in own if "total_loss" in line]
    assert [line["iteration"] for line in trained] == [*range(TINY["SOLVER.MAX_ITER"])]
    assert any("mIoU" in name for line in own for name in line)


def test_checkpoints_are_the_same(runs):
    names = [sorted(path.name for path in runs[name].glob("*.pth")) for name in BOTH]
    assert names[0] == names[1] == ["model_0000002.pth", "model_0000005.pth", "model_final.pth"]
    real, own = (torch.load(runs[name] / "model_final.pth", weights_only=True) for name in BOTH)
    torch.testing.assert_close(real["model"], own["model"], rtol=0, atol=0)
    assert sorted(real) == sorted(own)
    assert sorted(real["trainer"]) == sorted(own["trainer"])
    assert real["iteration"] == own["iteration"] == 5


def test_configurations_are_the_same(runs):
    real, own = ((runs[name] / "config.yaml").read_text().replace(str(runs[name]), "") for name in BOTH)
    assert real == own


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]])
def test_either_resumes_the_other(runs, shared_voc, tmp_path, first, second):
    shutil.copy(runs[first] / "model_0000002.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    log = train(second, tmp_path, shared_voc, "--resume")
    assert "Resuming at iteration 3" in log
    whole = metrics(runs[first])
    # Smoothed over one iteration (LOG_PERIOD 1), so a line does not depend on earlier lines.
    assert metrics(tmp_path) == [line for line in whole if line["iteration"] > 2]
    finals = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (runs[first], tmp_path)]
    torch.testing.assert_close(*finals, rtol=0, atol=0)
