"""Processes that share no disk act as one, on both engines. This file is also the program two workers run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from san.checkpoint import load_checkpoint_file
from san.d2.api import BACKEND
from tests.d2.conftest import as_arguments
from tests.forks import TRAIN_NET, Fork, free_port, script
from tests.machines import Machine, two_machines

ENGINES = ["standin", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(params=["one address", "two networks"])
def machines(request: pytest.FixtureRequest) -> Iterator[list[Machine]]:
    """Two machines, or one twice."""
    if request.param == "one address":
        yield [Machine(), Machine()]
    else:
        with two_machines() as made:
            yield made


def train_on_two_machines(
    engine: str, options: dict[str, Any], folders: list[Path], machines: list[Machine]
) -> list[tuple[int | None, str]]:
    """Resumes one run of two machines, each with an OUTPUT_DIR of its own; returns exit codes and outputs."""
    url = f"tcp://{machines[0].address}:{free_port()}"
    started = []
    for rank, (folder, machine) in enumerate(zip(folders, machines, strict=True)):
        flags = ["--resume", "--num-machines", "2", "--machine-rank", rank, "--dist-url", url]
        command = machine.on(script(TRAIN_NET, [*flags, *as_arguments(options | {"OUTPUT_DIR": str(folder)})]))
        environment = {"SAN_BACKEND": engine, **machine.environment}
        started.append(Fork(command, folder.with_suffix(".txt"), environment, spawned=engine != BACKEND))
    outputs = [process.communicate()[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def losses(folder: Path) -> dict[int, float]:
    """Iteration -> loss of a run."""
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


@pytest.mark.parametrize("engine", ENGINES)
def test_machines_that_share_no_disk_resume_together(
    engine: str, options: dict[str, Any], reference: Path, tmp_path: Path, machines: list[Machine]
) -> None:
    """The second machine has neither the checkpoint nor the CLIP weights; losses equal those of one machine."""
    folders = [tmp_path / "first", tmp_path / "second"]
    folders[0].mkdir()
    shutil.copy(reference / "model_0000002.pth", folders[0])
    results = train_on_two_machines(engine, options, folders, machines)
    assert [code for code, _ in results] == [0, 0], results
    assert "Resuming at iteration 3 of 6" in (folders[1] / "log.txt.rank1").read_text()
    whole = losses(reference)
    assert losses(folders[0]) == {number: pytest.approx(whole[number], rel=1e-4) for number in (3, 4, 5)}
    assert load_checkpoint_file(folders[0] / "model_final.pth")["iteration"] == 5
    assert not list(folders[1].glob("*.pth"))


@pytest.mark.slow
def test_torchrun_on_two_machines_gives_the_losses_of_one(
    options: dict[str, Any], reference: Path, tmp_path: Path, machines: list[Machine]
) -> None:
    """Two processes on each of two machines, four in all."""
    meeting = ("--master-addr", machines[0].address, "--master-port", str(free_port()))
    started = []
    for rank, machine in enumerate(machines):
        where = ("--nnodes", "2", "--node-rank", str(rank), *meeting, "--nproc-per-node", "2")
        command = ["-m", "torch.distributed.run", *where, str(TRAIN_NET), *as_arguments(options)]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN_NET.parent.parent), **machine.environment}
        action = functools.partial(os.execv, sys.executable, [sys.executable, *command])
        started.append(Fork(machine.on(action), tmp_path / f"{rank}.txt", environment))
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert losses(tmp_path / "run") == {
        number: pytest.approx(loss, rel=1e-4) for number, loss in losses(reference).items()
    }


def outcomes(folder: str) -> None:
    """How workers receive an error or a result of the main process, and different weights or settings."""
    import torch

    from san.d2.api import comm
    from san.d2.config.keys import load_config
    from san.d2.processes.launcher import destroy_groups
    from san.d2.train.across_processes import check_same_settings, check_same_weights, from_main

    found = []

    def heard(action: Any) -> None:
        try:
            found.append(repr(action()))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    def fail(error: Exception) -> None:
        raise error

    rank = comm.get_rank()
    heard(lambda: from_main(lambda: f"of {rank}"))
    heard(lambda: from_main(lambda: fail(FileNotFoundError("gone.pth"))))
    heard(lambda: from_main(lambda: fail(KeyError("a defect"))))
    heard(lambda: check_same_weights(torch.nn.BatchNorm1d(2)))
    model = torch.nn.BatchNorm1d(2)
    model.weight.data[1] += rank
    heard(lambda: check_same_weights(model))
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", f"of_{rank}", "DATALOADER.NUM_WORKERS", str(rank)])
    heard(lambda: check_same_settings(cfg, {"--resume": True}))
    heard(lambda: check_same_settings(cfg, {"--resume": rank == 0}))
    cfg.INPUT.MIN_SIZE_TRAIN = [*range(64, 80), 96 + rank]
    cfg.SOLVER.MAX_ITER = 8 + rank
    heard(lambda: check_same_settings(cfg, {"--resume": True}))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    destroy_groups()


@pytest.mark.parametrize("engine", ENGINES)
def test_all_end_as_one(engine: str, tmp_path: Path) -> None:
    command = script(Path(__file__), [tmp_path])
    process = Fork(command, tmp_path / "output", {"SAN_BACKEND": engine}, spawned=engine != BACKEND)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[:4] == ["'of 0'", "FileNotFoundError: gone.pth", "KeyError: 'a defect'", "None"]
    assert second[:4] == [
        "'of 0'", "ValueError: process 0: gone.pth", "RuntimeError: process 0: 'a defect'", "None",
    ]  # fmt: skip
    assert first[4:] == second[4:]
    assert first[5] == "None"
    assert "process 1 was started with other settings than process 0: --resume is False, not True; start" in first[6]
    assert "INPUT.MIN_SIZE_TRAIN is [64, " in first[7] and "SOLVER.MAX_ITER is 9, not 8" in first[7]
    assert first[4].startswith("ValueError: process 1 of 2 has other weights than process 0 before the first iteration")


if __name__ == "__main__":
    from san.d2.api import launch

    launch(outcomes, 2, dist_url="auto", args=(sys.argv[1],))
