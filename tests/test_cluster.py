"""docs/cluster.md and examples/slurm: the scripts with a scheduler that only writes down what it is called with."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from san.shapes.dataset import SHAPES_SPLITS, split_images

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((REPO / "examples/slurm").glob("*.sbatch"))
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_ARRAY_JOB_ID": "6",
    "SLURM_ARRAY_TASK_ID": "3",
}


def start(script: str, folder: Path, *arguments: str, step: str = "exit 0") -> subprocess.Popen[str]:
    """Runs a script in a job; each call of Slurm is a line of the file `calls`.

    Args:
        script: its name.
        folder: of the file and the programs.
        arguments: of the script.
        step: what srun does.
    """
    bodies = {"srun": step, "scontrol": '[ "$1" != show ] || echo n1', "scancel": f"touch {folder}/cancelled"}
    for name, body in bodies.items():
        program = folder / name
        program.write_text(f'#!/bin/bash\nprintf "%q " {name} "$@" >> {folder}/calls\necho >> {folder}/calls\n{body}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **JOB}
    command = ["bash", str(REPO / "examples/slurm" / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_call(folder: Path, name: str) -> None:
    end = time.monotonic() + 60
    while not any(call[0] == name for call in calls(folder)):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_queued_again(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= {*options}
    assert any("--signal=" in option for option in options)
    last = max(index for index, line in enumerate(text.splitlines()) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in text.splitlines()[: last + 1]), "sbatch stops at the first command"


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (75, True)])
def test_a_training_that_was_stopped_is_queued_again(tmp_path: Path, code: int, again: bool) -> None:
    process = start("train.sbatch", tmp_path, "--config-file", "a b.yaml", step=f"exit {code}")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    step, *more = calls(tmp_path)
    assert step[-5:] == ["san", "train", "--resume", "--config-file", "a b.yaml"]
    assert more == ([["scontrol", "requeue", "7"]] if again else [])


def test_torchrun_is_stopped_by_sigterm_and_the_job_queued_again(tmp_path: Path) -> None:
    wait = f"while [ ! -e {tmp_path}/cancelled ]; do sleep 0.05; done; exit 1"
    process = start("train_torchrun.sbatch", tmp_path, "OUTPUT_DIR", "a b", step=wait)
    wait_for_call(tmp_path, "srun")
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    (step,) = (call for call in calls(tmp_path) if call[0] == "srun")
    meeting = ["--nnodes", "2", "--nproc-per-node", "4", "--master-addr", "n1", "--master-port", "15007"]
    assert step[-14:] == [*meeting, "-m", "san", "train", "--resume", "OUTPUT_DIR", "a b"]
    assert calls(tmp_path)[-2:] == [["scancel", "--signal=TERM", "7.0"], ["scontrol", "requeue", "7"]], output


def test_torchrun_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    process = start("train_torchrun.sbatch", tmp_path, step="exit 1")
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert [call[:2] for call in calls(tmp_path) if call[0] == "scontrol"] == [["scontrol", "show"]]


def test_an_array_gives_each_job_its_shard(tmp_path: Path) -> None:
    process = start("shards.sbatch", tmp_path, "label", "my photos", step="exit 3")
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert calls(tmp_path)[0][-6:] == ["san", "label", "my photos", "--quiet", "--shard", "3/16"]
    (tmp_path / "calls").unlink()
    process = start("shards.sbatch", tmp_path, "label", "photos", step="sleep 1")
    wait_for_call(tmp_path, "srun")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert calls(tmp_path)[-1] == ["scontrol", "requeue", "6_3"]


def test_the_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With submitit's executor that runs jobs in this process."""
    pytest.importorskip("submitit")
    page = (REPO / "docs/cluster.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "photos").mkdir()
    for index, array in enumerate(split_images(SHAPES_SPLITS[0], 0, range(2))[0]):
        Image.fromarray(array).save(tmp_path / f"photos/{index}.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet.replace('cluster="slurm"', 'cluster="debug"'), scope)
    assert (scope["codes"], scope["merged"]) == ([0] * 4, 0)
    assert len([*(tmp_path / "labels/coco/images").iterdir()]) == 2
