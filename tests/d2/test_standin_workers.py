"""Several workers on the CPU, on both engines: `launch` and `comm`. This file is also the program the workers run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from san.d2.api import BACKEND
from tests.forks import Fork, script

ENGINES = ["standin", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def load_comm_and_launch(engine: str) -> tuple[Any, Any]:
    """`comm` and `launch` of one engine."""
    if engine == "standin":
        from san.d2.standin import comm, launch
    else:
        from detectron2.engine import launch
        from detectron2.utils import comm
    return comm, launch


def talk(engine: str, folder: str) -> None:
    """Every worker writes what it received."""
    import torch

    from san.d2.processes import launcher

    comm, _ = load_comm_and_launch(engine)
    rank = comm.get_rank()
    heard: dict[str, Any] = {
        "rank": rank,
        "local": comm.get_local_rank(),
        "world": comm.get_world_size(),
        "main": comm.is_main_process(),
        "gather": comm.gather({"from": rank}),
        "gather_to_1": comm.gather(rank, dst=1),
        "all_gather": comm.all_gather("x" * rank),
        "one_seed": len(set(comm.all_gather(comm.shared_random_seed()))),
        "backend": torch.distributed.get_backend(),
    }
    threads = Path("/proc/self/task")
    before = {thread: (thread / "comm").read_text() for thread in threads.iterdir()}
    launcher.destroy_groups()
    after = set(threads.iterdir())
    heard["threads ended"] = len(after) < len(before)
    # older releases of torch give Gloo's threads no name
    heard["threads"] = [name for thread, name in before.items() if thread in after and "gloo" in name]
    Path(folder, f"{rank}.json").write_text(json.dumps(heard))


def fail(engine: str, folder: str) -> None:
    """Worker 1 fails while worker 0 waits for it."""
    comm, _ = load_comm_and_launch(engine)
    if comm.get_rank() == 1:
        raise RuntimeError("worker 1 stumbled")
    comm.synchronize()


def run(task: str, engine: str, folder: Path, *, workers: int = 2) -> tuple[int | None, str]:
    """Runs a task of this file in several workers; returns the exit code and the output."""
    command = script(Path(__file__), [task, engine, folder, workers])
    process = Fork(command, folder / "output", {"SAN_BACKEND": engine}, spawned=engine != BACKEND)
    output = process.communicate()[0]
    return process.returncode, output


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_talk(engine, tmp_path):
    code, output = run("talk", engine, tmp_path)
    assert code == 0, output
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    everyone = {
        "world": 2,
        "all_gather": ["", "x"],
        "one_seed": 1,
        "backend": "gloo",
        "threads ended": True,
        "threads": [],
    }
    main = {"main": True, "gather": [{"from": 0}, {"from": 1}], "gather_to_1": []}
    other = {"main": False, "gather": [], "gather_to_1": [0, 1]}
    assert heard[0] == {**everyone, **main, "rank": 0, "local": 0}
    assert heard[1] == {**everyone, **other, "rank": 1, "local": 1}


def test_a_failing_worker_ends_all(tmp_path):
    code, output = run("fail", "standin", tmp_path)
    assert code != 0
    assert "worker 1 stumbled" in output


@pytest.mark.parametrize("engine", ENGINES)
def test_auto_port_is_for_one_machine(engine):
    _, launch = load_comm_and_launch(engine)
    with pytest.raises((ValueError, AssertionError), match="auto"):
        launch(print, 1, num_machines=2, dist_url="auto")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_worker_runs_in_this_process(engine):
    _, launch = load_comm_and_launch(engine)
    seen: list[tuple[int, int]] = []
    launch(lambda a, b: seen.append((a, b)), 1, args=(1, 2))
    assert seen == [(1, 2)]


if __name__ == "__main__":
    _task, _engine, _folder, _workers = sys.argv[1:]
    _, _launch = load_comm_and_launch(_engine)
    _launch(globals()[_task], int(_workers), dist_url="auto", args=(_engine, _folder))
