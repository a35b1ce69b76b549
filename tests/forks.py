"""Programs in processes that are forked from this one: everything is imported there already, which saves seconds."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import sys
import time
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
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Of a process that has ended; negative for a signal."""
        code: int | None = self._process.exitcode
        return code

    def communicate(self) -> str:
        """Waits for its end; returns what it has written."""
        self._process.join(HANG)
        if self._process.is_alive():
            self._fail(f"hangs for {HANG} s")
        return self.output.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until something is so; the process must not end before."""
        end = time.monotonic() + HANG
        while not condition():
            if not self._process.is_alive() or time.monotonic() > end:
                self._fail("has ended" if self._process.exitcode is not None else "does not get there")
            time.sleep(0.01)

    def _fail(self, why: str) -> None:
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        raise AssertionError(f"the process {why}:\n{self.output.read_text(errors='replace')}")


def _run(action: Callable[[], Any], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)  # it would wait for threads that it has not inherited
    action()


def script(path: Path, arguments: Sequence[object]) -> Callable[[], Any]:
    """What ``python PATH ARGUMENTS`` does; the processes that the stand-in starts are forked, too."""
    return functools.partial(_run_script, str(path), [str(each) for each in arguments])


def _run_script(path: str, arguments: list[str]) -> None:
    importlib.import_module("san.d2.standin.launch").spawn = fork_as_spawn  # type: ignore[attr-defined]
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def fork_as_spawn(function: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
    """`torch.multiprocessing.spawn` by forks, which get what a spawned process would: what can be pickled."""
    function, args = pickle.loads(pickle.dumps((function, args)))
    start_processes(function, args=args, nprocs=nprocs, start_method="fork")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
