"""Stopping when asked to: SIGTERM and SIGUSR1, as cluster schedulers send them before they take a machine away."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from san.d2.api import comm

EXIT_CODE = 75
"""Of a run that was asked to stop and did: "temporary failure, try again", which --resume does (sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_asked: list[int] = []  # filled by the signal handler, which can do nothing else safely


class StopRequested(SystemExit):
    """The run was asked to stop, has saved what it had, and ends with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While this lasts, SIGTERM and SIGUSR1 are noted instead of ending the process; for a process's main thread."""
    _asked.clear()
    with _handling(_note):
        yield


@contextlib.contextmanager
def passing_on() -> Iterator[None]:
    """While this lasts, a process that only waits for its workers sends them the signals it gets."""
    with _handling(_pass_on):
        yield


def requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_asked)


def requested_anywhere() -> bool:
    """Whether any worker was asked to stop; all get the same answer. Every worker must call it."""
    return any(comm.all_gather(requested()))


def leave_to_main_process() -> None:
    """For a loading worker: a signal to all processes is the main one's to answer; a second one counts."""
    for number in SIGNALS:
        signal.signal(number, _ignore_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While this lasts, both signals go to a function; afterwards to what they went to before."""
    former = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)


def _pass_on(number: int, frame: FrameType | None) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
