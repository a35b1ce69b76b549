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

from tests.forks import TRAIN_NET, Fork, free_port, script

REPO = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCH = ("--num-gpus", "2", "--dist-url", "auto")
Done = tuple[int | None, str]
"""Exit code and output."""


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> Done:
    """Runs the program as its users do, in processes of its own that import everything."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *launcher, TRAIN_NET, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, timeout=600, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def start_forked(folder: Path, *arguments: str) -> Done:
    """Runs it in processes that are forked from this one."""
    process = Fork(script(TRAIN_NET, arguments), folder / "output")
    output = process.communicate()[0]
    return process.returncode, output


def start_as_torchrun(folder: Path, *arguments: str) -> Done:
    """Two forks that have the environment which torchrun gives."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        Fork(script(TRAIN_NET, arguments), folder / f"output{rank}", common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    outputs = [process.communicate()[0] for process in processes]
    return max(process.returncode or 0 for process in processes), "".join(outputs)


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
    spec = importlib.util.spec_from_file_location("train_net", TRAIN_NET)
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


LAUNCHERS: dict[str, Callable[..., Done]] = {
    "launch": start_forked,
    "launch, spawned": lambda folder, *arguments: start(*arguments),
    "as torchrun": start_as_torchrun,
    "torchrun": lambda folder, *arguments: start(*arguments, launcher=TORCHRUN),
}


@pytest.mark.parametrize(
    "launcher",
    [
        "launch",
        "as torchrun",
        *(pytest.param(launcher, marks=pytest.mark.slow) for launcher in ("launch, spawned", "torchrun")),
    ],
)
def test_two_processes_do_what_one_does(launcher: str, config_file: str, reference: Path, tmp_path: Path) -> None:
    code, output = LAUNCHERS[launcher](
        tmp_path, "--config-file", config_file, *(() if "torchrun" in launcher else LAUNCH), "MODEL.DEVICE", "cpu",
        "DATASETS.TEST", "voc_sem_seg_val", "SOLVER.ACCUMULATION_STEPS", "2" if "torchrun" in launcher else "1",
    )  # fmt: skip
    assert code == 0, output
    assert "2 x" in output
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-5)
    ours, theirs = summary(tmp_path / "run"), summary(reference)
    assert ours["pACC"] == pytest.approx(theirs["pACC"], abs=0.5)


def test_two_processes_count_what_one_counts(config_file: str, reference: Path, tmp_path: Path) -> None:
    code, output = start_forked(
        tmp_path, "--config-file", config_file, *LAUNCH, "--eval-only", "MODEL.WEIGHTS",
        str(reference / "model_final.pth"), "DATASETS.TEST", "voc_sem_seg_val", "TEST.SAVE_RLE", "true",
    )  # fmt: skip
    assert code == 0, output
    assert summary(tmp_path / "run") == summary(reference)
    entries = json.loads((tmp_path / "run/inference/voc_sem_seg_val/sem_seg_predictions.json").read_text())
    assert {Path(entry["file_name"]).stem for entry in entries} == {"val_000", "val_001", "val_002"}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_error_is_one_line(config_file: str, processes: str, tmp_path: Path) -> None:
    launch = ("--num-gpus", processes, "--dist-url", "auto")
    code, output = start_forked(tmp_path, "--config-file", config_file, *launch, "MODEL.WEIGHTS", "gone.pth")
    assert code == 1
    assert "error: checkpoint gone.pth does not exist" in output
    assert "Traceback" not in output


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
