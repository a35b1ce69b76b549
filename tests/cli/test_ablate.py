"""`san ablate`: the plan, what is skipped, resumed and reported, with runs that only write what a run leaves; and two
real ones."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from san.cli import ablation_runs
from san.cli.ablation_runs import SharedRunOptions, plan_ablation
from san.cli.main import main
from tests.d2.conftest import TINY, write_voc
from tests.forks import Fork


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two answers and two stages, of the tiny model."""
    monkeypatch.chdir(tmp_path)
    options = TINY | {
        "DATASETS.TEST": ["voc_sem_seg_val"],
        "DATASETS.ROOT": str(tmp_path / "datasets"),
        "SOLVER.MAX_ITER": 2,
    }
    write(tmp_path / "q/base.yaml", options)
    write(tmp_path / "q/few.yaml", {"_BASE_": "base.yaml", "MODEL.SIDE_ADAPTER.NUM_QUERIES": 2})
    write(tmp_path / "q/bad.yaml", {"_BASE_": "base.yaml", "MODEL.CLIP.SHALLOW_DEPTH": 4})  # CLIP tiny has 4 blocks
    terms = {"MODEL.LOSS.TERMS": ["masks"], "OUTPUT_DIR": "output/first"}
    write(tmp_path / "s/first.yaml", {"_BASE_": "../q/base.yaml", **terms})
    weights = {"MODEL.WEIGHTS": "output/first/model_final.pth", "OUTPUT_DIR": "output/second"}
    write(tmp_path / "s/second.yaml", {"_BASE_": "../q/base.yaml", **weights})
    return tmp_path


def write(path: Path, options: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for key, value in options.items():
        node = tree
        for section in key.split(".")[:-1]:
            node = node.setdefault(section, {})
        node[key.split(".")[-1]] = value
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(tree))


def option(command: Sequence[str], name: str) -> str:
    return command[list(command).index(name) + 1]


class FakeRuns:
    """Leaves what a run leaves: metrics by configuration and seed; those in `failing` leave an error."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.failing: dict[tuple[str, str], int] = {}

    def __call__(self, command: Sequence[str], log: Path) -> int:
        from san.d2.config.keys import load_config

        self.commands.append([*command])
        options = list(command[command.index("--resume") + 1 :])
        imports = [options[at + 1] for at, each in enumerate(options) if each == "--import"]
        cfg = load_config(option(command, "--config-file"), options[2 * len(imports) :], imports=imports)
        (log.parent / "config.yaml").write_text(cfg.dump())
        name = Path(option(command, "--config-file")).stem
        if status := self.failing.get((name, option(command, "SEED"))):
            log.write_text("iteration 1\nerror: the disk is full\n")
            return status
        value = {"base": 50.0, "few": 40.0}.get(name, 30.0) + int(option(command, "SEED"))
        lines = [{"iteration": 1, "total_loss": 1.0}, {"iteration": 2, "voc_sem_seg_val/mIoU": value}]
        (log.parent / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (log.parent / "model_final.pth").touch()
        return 0

    @property
    def done(self) -> list[tuple[str, str]]:
        return [(Path(option(each, "--config-file")).stem, option(each, "SEED")) for each in self.commands]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    runs = FakeRuns()
    monkeypatch.setattr(ablation_runs, "run_command", runs)
    return runs


def test_a_dry_run_prints_commands_that_run(folder: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["q/base.yaml", "q/few.yaml", "--seeds", "3,5", "--num-gpus", "2", "SOLVER.MAX_ITER", "4", "--dry-run"]
    assert main(["ablate", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not fake.commands and not (folder / "output").exists()
    assert shlex.split(lines[3])[1:] == [
        "-m", "san", "train", "--config-file", "q/few.yaml", "--resume", "--num-gpus", "2", "SOLVER.MAX_ITER", "4",
        "SEED", "5", "OUTPUT_DIR", "output/ablate/q/few/seed5",
    ]  # fmt: skip


def test_what_is_finished_is_skipped_and_what_failed_is_tried_again(
    folder: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", "q/base.yaml", "q/few.yaml", "--seeds", "0,1", "--out", "out"]
    fake.failing["base", "1"] = 1
    assert main(command) == 1
    assert fake.done == [("base", "0"), ("base", "1"), ("few", "0"), ("few", "1")]
    shown = capsys.readouterr().out
    assert "[2/4] q/base, seed 1: failed with exit status 1 (the disk is full)" in shown
    table = (folder / "out/ablation.md").read_text()
    assert "| q/base (base) | 1 | 50.0 |  |" in table
    assert "| q/few | 2 | 40.5 ± 0.7 | -10.0 |" in table
    assert "- q/base, seed 1: failed with exit status 1 (the disk is full)" in table
    fake.failing, fake.commands = {("base", "1"): 75}, []
    assert main(command) == 1
    assert fake.done == [("base", "1")] and "--resume" in fake.commands[0]
    assert (
        "q/base, seed 1: stopped by a signal; the same command resumes it" in (folder / "out/ablation.md").read_text()
    )
    fake.failing, fake.commands = {}, []
    assert main(command) == 0
    assert fake.done == [("base", "1")] and "Missing" not in (folder / "out/ablation.md").read_text()
    fake.commands = []
    assert main([*command, "--collect"]) == 0 and not fake.commands
    assert (folder / "out/ablation.png").is_file()
    assert "q/base,voc_sem_seg_val/mIoU,50.0000,51.0000,50.5000" in (folder / "out/ablation.csv").read_text()


def test_another_base_and_an_unknown_metric(folder: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", "q/few.yaml", "--base", "q/base.yaml", "--seeds", "0", "--out", "out"]
    assert main(command) == 0
    assert fake.done == [("base", "0"), ("few", "0")]
    assert "| q/few | 1 | 40.0 | -10.0 |" in capsys.readouterr().out
    assert main([*command, "--metric", "mIoU"]) == 1
    assert "--metric 'mIoU' is not a metric of these runs; there are voc_sem_seg_val/mIoU" in capsys.readouterr().err


def test_a_run_with_other_settings_is_neither_counted_nor_resumed(folder: Path, fake: FakeRuns) -> None:
    command = ["ablate", "q/base.yaml", "q/few.yaml", "--seeds", "0", "--out", "out"]
    assert main(command) == 0
    assert main([*command, "SOLVER.BASE_LR", "0.5", "MODEL.DEVICE", "cpu"]) == 1
    assert len(fake.commands) == 2
    table = (folder / "out/ablation.md").read_text()
    assert "contains a run with other settings (SOLVER.BASE_LR is 0.001 there and 0.5 here); give" in table
    assert "| q/base (base) | 0 | – |" in table


def test_runs_with_parts_of_the_users_are_counted_too(folder: Path, fake: FakeRuns, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "parts_to_ablate.py").touch()
    command = ["ablate", "q/base.yaml", "--seeds", "0", "--import", "parts_to_ablate", "--out", "out"]
    assert main(command) == 0 and main(command) == 0
    assert len(fake.commands) == 1
    assert main([*command[:4], *command[6:]]) == 1  # without --import it is another run
    assert "MODEL.IMPORTS is ['parts_to_ablate'] there and [] here" in (folder / "out/ablation.md").read_text()


def test_a_second_stage_gets_the_weights_of_its_seed(folder: Path, fake: FakeRuns) -> None:
    """Also if it is listed first; it does not run if the first stage is not finished."""
    command = ["ablate", "s/second.yaml", "s/first.yaml", "--seeds", "0,1", "--out", "out"]
    fake.failing["first", "1"] = 1
    assert main(command) == 1
    assert fake.done == [("first", "0"), ("second", "0"), ("first", "1")]
    assert option(fake.commands[1], "MODEL.WEIGHTS") == "out/s/first/seed0/model_final.pth"
    assert "MODEL.WEIGHTS" not in fake.commands[0]
    assert (
        "- s/second, seed 1: not run, as s/first, whose weights it starts from"
        in (folder / "out/ablation.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration is given; name YAML files"),
        (["q/gone.yaml"], "gone.yaml does not exist"),
        (["q/base.yaml", "SOLVER.MAXITER", "3"], "did you mean SOLVER.MAX_ITER"),
        (["q/base.yaml", "DATASETS.TEST", "[]"], "q/base.yaml: DATASETS.TEST is empty"),
        (["q/base.yaml", "copy/q/base.yaml"], "q/base.yaml and copy/q/base.yaml would both be called q/base"),
        (["q/base.yaml", "--job", "gpu"], "--job 'gpu' is not KEY=VALUE"),
    ],
)
def test_wrong_input_is_one_line_before_any_run(
    folder: Path, fake: FakeRuns, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "copy").mkdir()
    (folder / "copy/q").mkdir()
    (folder / "copy/q/base.yaml").write_text("_BASE_: ../../q/base.yaml\n")
    assert main(["ablate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not fake.commands


@pytest.mark.parametrize("seeds", ["a", "1,,2", "-1"])
def test_wrong_seeds_are_a_wrong_command_line(seeds: str) -> None:
    assert main(["ablate", "x.yaml", f"--seeds={seeds}"]) == 2


def run_forked(command: Sequence[str], log: Path) -> int:
    """As `run_command`, in a process that has imported everything already."""
    assert command[:3] == (sys.executable, "-m", "san")
    process = Fork(lambda: sys.exit(main(command[3:])), log)
    process.communicate()
    assert process.returncode is not None
    return process.returncode


def test_real_runs_of_which_one_cannot_work(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation_runs, "run_command", run_forked)
    write_voc(folder / "datasets", train=4, val=2)
    command = ["ablate", "q/bad.yaml", "q/base.yaml", "--base", "q/base.yaml", "--seeds", "0", "--out", "out"]
    assert main(command) == 1
    shown = capfd.readouterr().out
    assert "q/bad, seed 0: failed with exit status 1 (K = 4 shallow blocks leave none" in shown
    assert "q/base, seed 0: finished" in shown
    assert "| q/base (base) | 1 | " in (folder / "out/ablation.md").read_text()
    assert main(command) == 1
    assert "q/base, seed 0: finished before" in capfd.readouterr().out


CHILD = (
    "import pathlib, signal, sys, time\n"
    "def stop(*_): time.sleep(0.3); pathlib.Path('saved').touch(); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, stop); pathlib.Path('ready').touch(); time.sleep(60)"
)
"""A run that notes SIGTERM, and takes a moment to save."""


def wait_for(path: Path) -> bool:
    for _ in range(600):
        if path.exists():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_reaches_the_run_and_waits_for_it(tmp_path: Path, number: signal.Signals) -> None:
    """The run has ended before the command does; if the command is killed, it ends too, and saves."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has ended")
    parent = (
        "import sys; from pathlib import Path; from san.cli.ablation_runs import run_command\n"
        f"run_command([sys.executable, '-c', {CHILD!r}], Path('log'))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path)
    assert wait_for(tmp_path / "ready")
    process.send_signal(number)
    assert process.wait(timeout=30) == (75 if number == signal.SIGTERM else -number)
    assert wait_for(tmp_path / "saved") if number == signal.SIGKILL else (tmp_path / "saved").exists()


def test_a_job_saves_before_its_time_limit_and_goes_on(tmp_path: Path) -> None:
    """As submitit does it: its signal reaches the job and its run, and a handler asks for a job that resumes."""
    pytest.importorskip("submitit")
    job = (
        "import os, signal, sys; from pathlib import Path; from san.cli.ablation_runs import TrainingJob\n"
        f"job = TrainingJob((sys.executable, '-c', {CHILD!r}), Path('log'))\n"
        "def limit(*_):\n"
        "    next_one = job.checkpoint().function\n"
        "    assert Path('saved').exists() and (next_one.command, next_one.log) == (job.command, job.log)\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGUSR2, limit); os.setpgid(0, 0); job()"
    )
    process = subprocess.Popen([sys.executable, "-c", job], cwd=tmp_path)
    assert wait_for(tmp_path / "ready")
    os.killpg(process.pid, signal.SIGUSR2)
    assert process.wait(timeout=30) == 3


def test_a_killed_run_is_not_blamed_on_an_earlier_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run, other) = plan_ablation([Path("q/base.yaml"), Path("q/few.yaml")], [0], SharedRunOptions(Path("out")))
    for each in (run, other):
        each.folder.mkdir(parents=True)
        (each.folder / "ablate.log").write_text("error: of the run before\n")

    def execute(command: Sequence[str], log: Path) -> int:
        with log.open("a") as file:
            file.write("no room\n")
        return -9 if command == run.command else 1

    monkeypatch.setattr(ablation_runs, "run_command", execute)
    found = ablation_runs.run_serially([run, other], lambda line: None)
    assert found["q/base", 0] == "was killed by signal 9; the same command resumes it"
    assert found["q/few", 0] == "failed with exit status 1 (no room)"


def test_without_submitit_the_error_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["ablate", "q/base.yaml", "--submit", "slurm"]) == 1
    assert 'pip install "san-segmentation[slurm]"' in capsys.readouterr().err


def test_each_unfinished_run_is_a_job(folder: Path, fake: FakeRuns) -> None:
    """On this machine, with a run of one second without a model."""
    submitit = pytest.importorskip("submitit")
    (first, second) = plan_ablation([Path("q/base.yaml")], [0, 1], SharedRunOptions(Path("out")))
    first.folder.mkdir(parents=True)
    fake(first.command, first.folder / "ablate.log")
    child = [replace(second, command=(sys.executable, "-c", "print('error: no room'); raise SystemExit(1)"))]
    found = ablation_runs.submit_jobs([first, *child], "local", folder / "jobs", {"timeout_min": 1})
    assert set(found) == {("q/base", 1)}
    job = submitit.LocalJob(folder / "jobs", found["q/base", 1])
    assert "exit status 1: no room" in str(job.exception())
    with pytest.raises(ValueError, match="which jobs of this machine do not wait for"):
        ablation_runs.submit_jobs([*child, replace(child[0], name="b", after=child[0])], "local", folder / "jobs", {})


def test_jobs_of_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second stage waits for the first; what the scheduler refuses is one error, which names what it took."""
    pytest.importorskip("submitit")
    programs = folder / "bin"
    programs.mkdir()
    script = '#!/bin/sh\ncp "$1" $(mktemp {0}/script.XXXXXX)\necho Submitted batch job $(ls {0} | grep -c script)\n'
    (programs / "sbatch").write_text(script.format(programs))
    (programs / "srun").touch()
    for each in programs.iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    runs = plan_ablation([Path("s/first.yaml"), Path("s/second.yaml")], [0], SharedRunOptions(Path("out")))
    assert ablation_runs.submit_jobs(runs, "slurm", folder / "jobs", {"slurm_partition": "gpu"}) == {
        ("s/first", 0): "1",
        ("s/second", 0): "2",
    }
    written = [path.read_text() for path in programs.glob("script.*")]
    assert sum("--dependency=afterok:1" in text for text in written) == 1
    assert all("--partition=gpu" in text and "--signal=USR2@90" in text for text in written)
    with pytest.raises(ValueError, match=r"s/first, seed 0 cannot be submitted .*partitoin.*; correct --job"):
        ablation_runs.submit_jobs(runs, "slurm", folder / "jobs", {"slurm_partitoin": "gpu"})
    refuse = script.format(programs) + f"test $(ls {programs} | grep -c script) -lt 4 || exit 1\n"
    (programs / "sbatch").write_text(refuse)
    with pytest.raises(
        ValueError, match=r"s/second, seed 0 cannot be submitted .*Submitted before: s/first, seed 0: job 3"
    ):
        ablation_runs.submit_jobs(runs, "slurm", folder / "jobs", {})
