"""tools/train_net.py as a program: options, several processes, errors without a stack trace."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
SCRIPT = str(REPO / "tools/train_net.py")


def start(*arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*launcher, SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=600, check=False
    )


@pytest.fixture
def config_file(options: dict[str, Any], tmp_path: Path) -> str:
    """A YAML file with the options of a tiny run."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        *sections, leaf = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(nested))
    return str(path)


@pytest.fixture(scope="module")
def train_net() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("train_net", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(folder: Path) -> list[float]:
    """The total loss of every iteration."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [line["total_loss"] for line in lines if "total_loss" in line][:6]


def summary(folder: Path) -> dict[str, float]:
    """The metrics of the last evaluation."""
    found: dict[str, float] = json.loads((folder / "inference/voc_sem_seg_val/metrics.json").read_text())
    return found


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "launch": lambda *arguments: start(*arguments[:2], "--num-gpus", "2", "--dist-url", "auto", *arguments[2:]),
    "torchrun": lambda *arguments: start(
        *arguments, launcher=(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_do_what_one_does(launcher: str, config_file: str, reference: Path, tmp_path: Path) -> None:
    done = LAUNCHERS[launcher](
        "--config-file", config_file, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "voc_sem_seg_val",
        "SOLVER.ACCUMULATION_STEPS", "2" if launcher == "torchrun" else "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 x" in done.stdout
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-5)
    ours, theirs = summary(tmp_path / "run"), summary(reference)
    assert ours["pACC"] == pytest.approx(theirs["pACC"], abs=0.5)


def test_two_processes_count_what_one_counts(config_file: str, reference: Path, tmp_path: Path) -> None:
    done = LAUNCHERS["launch"](
        "--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", str(reference / "model_final.pth"),
        "DATASETS.TEST", "voc_sem_seg_val", "TEST.SAVE_RLE", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(tmp_path / "run") == summary(reference)
    entries = json.loads((tmp_path / "run/inference/voc_sem_seg_val/sem_seg_predictions.json").read_text())
    assert {Path(entry["file_name"]).stem for entry in entries} == {"val_000", "val_001", "val_002"}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_error_is_one_line(config_file: str, processes: str) -> None:
    done = start(
        "--config-file", config_file, "--num-gpus", processes, "--dist-url", "auto", "MODEL.WEIGHTS", "gone.pth"
    )
    assert done.returncode == 1
    assert "error: checkpoint gone.pth does not exist" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "gone.yaml"], "configuration file gone.yaml does not exist"),
        (["SOLVER.MAX_ITR", "3"], "did you mean SOLVER.MAX_ITER?"),
        (["DATASETS.TRAIN", "coco"], "unknown data set 'coco'"),
        ([], "DATASETS.TRAIN is empty"),
        (["--eval-only", "DATASETS.TEST", "voc_sem_seg_val"], "--eval-only needs weights"),
    ],
)
def test_errors_of_the_command_line(
    train_net: ModuleType, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train_net.main([*arguments, *(["MODEL.DEVICE", "cpu"] if "--config-file" not in arguments else [])])
    assert isinstance(caught.value.code, str) and caught.value.code.startswith("error: ")
    assert message in caught.value.code and "\n" not in caught.value.code


def test_missed_results_end_with_status_1(config_file: str, reference: Path, train_net: ModuleType) -> None:
    with pytest.raises(SystemExit) as caught:
        train_net.main(
            ["--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", str(reference / "model_final.pth"),
             "DATASETS.TEST", "voc_sem_seg_val", "TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 99.0, 0.5]]"]
        )  # fmt: skip
    assert caught.value.code == 1


def test_help_names_the_options(train_net: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_net.main(["--help"])
    shown = capsys.readouterr().out
    for option in ("--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url", "--resume"):
        assert option in shown
    assert "--eval-only" in shown and "torchrun" in shown
