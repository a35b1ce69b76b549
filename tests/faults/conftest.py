"""The tiny model and data of tests/d2, processes that are really killed, and ways of spoiling files."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.d2.conftest import as_arguments, make_cfg, options, own_voc, reference, shared_voc

__all__ = ["make_cfg", "options", "own_voc", "reference", "shared_voc"]

REPO = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Forked processes must not wait for threads that they have not inherited."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("san.d2.loaders.RETRY_PAUSE", 0.01)


def in_a_process(action: Callable[[], Any], seconds: float = 240) -> int | None:
    """Runs something in a forked process, silently; returns its exit code, negative for a signal."""

    def quietly() -> None:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        action()

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"the process hung for {seconds} s")
    return process.exitcode


def train_net(options: dict[str, Any], *arguments: str, torchrun: int = 0) -> subprocess.Popen[str]:
    """Starts tools/train_net.py as a user does, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)] if torchrun else []
    command = [sys.executable, *launcher, "tools/train_net.py", *arguments, *as_arguments(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Waits until something is so; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
