"""Programs in processes that are forked from this one: everything is imported there already, which saves seconds."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

TRAIN_NET = Path(__file__).resolve().parent.parent / "tools/train_net.py"

HANG = 900
"""Seconds after which something hangs: no measure of speed, as a busy machine may need a hundred times as long."""


class Fork:
    """A process, used as a `subprocess.Popen` is, that leads a process group of its own and writes into a file.

    Args:
        action: what it does; its exit code is that of a program's main module.
        output: the file.
        environment: variables that it has in addition.
        spawned: whether it imports everything itself, for another engine than that of this process.
    """

    def __init__(
        self, action: Callable[[], Any], output: Path, environment: dict[str, str] | None = None, spawned: bool = False
    ) -> None:
        context: Any = multiprocessing.get_context("spawn" if spawned else "fork")
        self.output = output
        self._process = context.Process(target=_run, args=(action, str(output), environment or {}))
        self._process.start()
        atexit.register(self._process.kill)  # where a test has failed, this process must not wait for it
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Of a process that has ended; negative for a signal."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.returncode

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()

    def communicate(self, timeout: float = HANG) -> tuple[str, None]:
        """Waits for its end; returns what it has written."""
        self._process.join(timeout)
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
            raise AssertionError(f"a process hangs for {timeout} s: {self.output.read_text(errors='replace')}")
        return self.output.read_text(errors="replace"), None


def _run(action: Callable[[], Any], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)  # it would wait for threads that it has not inherited
    action()


def script(path: Path, arguments: Sequence[object]) -> Callable[[], Any]:
    """What ``python PATH ARGUMENTS`` does."""
    return functools.partial(_run_script, str(path), [str(each) for each in arguments])


def _run_script(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def fork_as_spawn(function: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
    """`torch.multiprocessing.spawn` by forks, which get what a spawned process would: what can be pickled."""
    given = pickle.loads(pickle.dumps((function, args)))
    start_processes(_run_one, args=given, nprocs=nprocs, start_method="fork")


def _run_one(rank: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(rank, *args)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
