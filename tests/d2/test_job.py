"""The place of a process in a job: torchrun's environment, Slurm's, and what is missing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from san.d2.api import BACKEND
from san.d2.processes import launcher
from san.d2.processes.job import JobRank, find_rank, first_host
from tests.d2.conftest import as_arguments
from tests.forks import TRAIN_NET, Fork, script

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07,09]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
TORCHRUN = {
    "RANK": "2",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key not in names}


def test_torchrun() -> None:
    place = find_rank(TORCHRUN)
    assert place == JobRank(2, 4, 0, 2, "first", 29500, "the launcher")
    assert place.as_variables() == TORCHRUN


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        without(STEP, "SLURM_STEP_ID"),  # in the script of a batch job
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation of four tasks
    ],
)
def test_alone(environment: dict[str, str]) -> None:
    assert find_rank(environment) is None


def test_srun() -> None:
    place = find_rank(STEP)
    assert place == JobRank(3, 4, 1, 2, "gpu07", 15000 + 1234 + 2 * 997, "srun")
    assert find_rank(STEP | {"MASTER_ADDR": "other", "MASTER_PORT": "7"}) == JobRank(3, 4, 1, 2, "other", 7, "srun")


def test_srun_on_one_machine_needs_no_name() -> None:
    place = find_rank(without(STEP, "SLURM_STEP_TASKS_PER_NODE") | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3"})
    assert place is not None and (place.local_rank, place.local_world_size, place.address) == (3, 4, "127.0.0.1")


def test_older_names_of_slurm() -> None:
    environment = without(STEP, *(key for key in STEP if "STEP_N" in key or "STEP_T" in key))
    environment |= {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "a1-[3-4],b"}
    place = find_rank(environment)
    assert place is not None and (place.world_size, place.local_world_size, place.address) == (4, 2, "a1-3")


def test_a_launcher_under_slurm_is_completed() -> None:
    """Like scripts that export RANK and WORLD_SIZE from Slurm's variables."""
    place = find_rank(STEP | {"RANK": "3", "WORLD_SIZE": "4"})
    assert place is not None and (place.rank, place.local_rank, place.local_world_size) == (3, 1, 2)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_a_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=f"but not {missing}; start with torchrun or srun, set {missing}, or unset"):
        find_rank(without(TORCHRUN, missing))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "RANK is 4 but WORLD_SIZE is 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2 but LOCAL_WORLD_SIZE is 2"),
        ({"RANK": "-1"}, "variable RANK is '-1'"),
        ({"MASTER_PORT": "http"}, "variable MASTER_PORT is 'http'"),
        ({"LOCAL_WORLD_SIZE": "3"}, "4 processes are not a multiple of 3 per machine"),
    ],
)
def test_variables_that_make_no_sense(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_rank(TORCHRUN | changes)


def test_uneven_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unevenly over nodes \(3,1\)"):
        find_rank(STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"})


@pytest.mark.parametrize(
    ("listed", "first"),
    [("a", "a"), ("a,b", "a"), ("n[3,5-7],m", "n3"), ("n[003-010]", "n003"), ("r[1-2]n[5,7]-ib,x", "r1n5-ib")],
)
def test_the_first_host_of_a_list(listed: str, first: str) -> None:
    assert first_host(listed) == first


def test_options_win_over_srun(make_cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    url = {"dist_url": "tcp://127.0.0.1:29511"}
    started: list[Any] = []
    monkeypatch.setattr(launcher, "launch", lambda main, *workers, **_: started.append(workers))
    args = argparse.Namespace(num_gpus=2, num_machines=2, machine_rank=1, **url)
    launcher.start_workers(print, make_cfg(), args)
    assert started == [(2, 2, 1, "tcp://127.0.0.1:29511")]
    with pytest.raises(ValueError, match="--num-gpus is 2, but srun has started 4 tasks"):
        launcher.start_workers(
            print, make_cfg(), argparse.Namespace(**vars(args) | {"num_machines": 1, "machine_rank": 0})
        )


ENGINES = ["standin", pytest.param("detectron2", marks=[pytest.mark.detectron2, pytest.mark.slow])]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_tasks_of_srun_are_one_run(engine: str, options: dict[str, Any], tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NUM_NODES": "1", "SAN_BACKEND": engine}
    command = script(TRAIN_NET, as_arguments(options | {"SOLVER.MAX_ITER": 2}))
    tasks = [
        Fork(
            command, tmp_path / rank, step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}, spawned=engine != BACKEND
        )
        for rank in "01"
    ]  # fmt: skip
    outputs = [task.communicate()[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    folder = tmp_path / "run"
    assert "2 x " in (folder / "log.txt").read_text() and (folder / "log.txt.rank1").is_file()
