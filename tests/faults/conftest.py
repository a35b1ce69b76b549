"""The tiny model and data of tests/d2, processes that are really killed, and ways of spoiling files."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.tensorboard  # once, not in every forked process

from tests.d2.conftest import (
    as_arguments,
    forked_workers,
    make_cfg,
    no_charts,
    options,
    own_voc,
    reference_run,
    shared_voc,
    without_charts,
)
from tests.forks import HANG, Fork

__all__ = ["forked_workers", "make_cfg", "no_charts", "options", "own_voc", "shared_voc"]

REPO = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Forked processes must not wait for threads that they have not inherited; one thread also fixes the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="session")
def reference(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture of tests/d2, with the settings of this folder."""
    with single_threaded(), one_id(), without_charts():
        return reference_run(shared_voc, tmp_path_factory.mktemp("reference"))


@contextlib.contextmanager
def one_id() -> Iterator[None]:
    """All runs get one id, so that equal runs write equal checkpoints, byte for byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("san.d2.train.trainer.new_run_id", lambda: "0" * 16)
        yield


@pytest.fixture(autouse=True, scope="module")
def same_run_id() -> Iterator[None]:
    with one_id():
        yield


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("san.d2.data.loaders.RETRY_PAUSE", 0.01)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.json, but for what the clock says."""
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in ("time", "data_time")} for row in found]


def silently(action: Callable[[], Any]) -> None:
    """Runs a function without output, in its own process."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    action()


def in_a_process(action: Callable[[], Any]) -> int | None:
    """Runs something in a forked process, silently; returns its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=silently, args=(action,))
    process.start()
    process.join(HANG)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"the process hung for {HANG} s")
    return process.exitcode


def killed_after(action: Callable[[], Any], seconds: float) -> bool:
    """Runs something in a forked process and kills it after so many seconds of its own; False if it ended before.

    Seconds of computing, so that a busy machine does not move all kills into the start of a run.
    """
    process = multiprocessing.get_context("fork").Process(target=silently, args=(action,))
    start = time.monotonic()
    process.start()
    assert process.pid is not None
    while process.is_alive() and _computed(process.pid, start) < seconds:
        time.sleep(0.005)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def _computed(pid: int, start: float) -> float:
    """Seconds that a process has computed; where the system does not tell, those since its start."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - start
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train_net(options: dict[str, Any], *arguments: str, torchrun: int = 0) -> subprocess.Popen[str]:
    """Starts tools/train_net.py as a user does, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)] if torchrun else []
    command = [sys.executable, *launcher, "tools/train_net.py", *arguments, *as_arguments(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | Fork) -> None:
    """Waits until something is so; the process must not end before."""
    end = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
