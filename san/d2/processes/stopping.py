"""Stopping when asked to: SIGTERM and SIGUSR1, as cluster schedulers send them before they take a machine away, Ctrl-C.

The first SIGTERM or SIGUSR1 is noted, and the run saves and ends after what it is at; while it waits for data it stops
waiting. The first Ctrl-C raises KeyboardInterrupt. A second signal, `AGAIN_AFTER` seconds later or more, ends the
process and those that it has started at once, whatever its main thread waits for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from san.d2.api import comm

EXIT_CODE = 75
"""Of a run that was asked to stop and did: "temporary failure, try again", which --resume does (sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

AGAIN_AFTER = 1.0
"""Seconds. Signals that are closer together count as one: a launcher passes on what a scheduler has sent to all."""

PATIENCE = 3.0
"""Seconds that a process which only waits for its workers gives them to end by a second signal, which they get too."""

Handler = Callable[[int, FrameType | None], None]

_asked: list[int] = []  # filled by the signal handler, which can do nothing else safely
_interrupted: list[int] = []  # the same for Ctrl-C
_waiting: list[None] = []  # not empty while the main thread waits for data


class StopRequested(SystemExit):
    """The run was asked to stop, has saved what it had, and ends with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While this lasts, SIGTERM and SIGUSR1 are noted instead of ending the process; for a process's main thread."""
    _forget()
    with _handling({**dict.fromkeys(SIGNALS, _note), signal.SIGINT: _interrupt}), ending_at_the_second(patience=0):
        try:
            yield
        finally:
            _forget()


@contextlib.contextmanager
def passing_on() -> Iterator[None]:
    """While this lasts, a process that only waits for its workers sends them the signals it gets.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was among them.
    """
    _forget()
    with _handling(dict.fromkeys((*SIGNALS, signal.SIGINT), _pass_on)), ending_at_the_second(patience=PATIENCE):
        yield
    check_interrupted()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """While this lasts, a request to stop raises `StopRequested` at once, and so does an earlier one."""
    _waiting.append(None)
    try:
        if requested():
            raise StopRequested
        yield
    finally:
        _waiting.clear()


def requested() -> bool:
    """Whether this process was asked to stop.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and what ran then has lost the exception (torch.save does).
    """
    check_interrupted()
    return bool(_asked)


def requested_anywhere() -> bool:
    """Whether any worker was asked to stop; all get the same answer. Every worker must call it."""
    return any(comm.all_gather(requested()))


def check_interrupted() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed."""
    if _interrupted:
        raise KeyboardInterrupt


def leave_to_main_process() -> None:
    """For a loading worker: a signal to all processes is the main one's to answer; a second one counts."""
    signal.set_wakeup_fd(-1)  # inherited; what is sent to this process is not sent to the main one
    for number in SIGNALS:
        signal.signal(number, _ignore_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def ending_at_the_second(*, patience: float) -> Iterator[None]:
    """While this lasts, a second signal ends this process and those it has started, with status 128 + its number.

    A thread does it, as the main thread may be inside a library's call, such as waiting for other processes, where
    Python runs no signal handler.

    Args:
        patience: seconds that the started processes have to end by themselves.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    former = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_the_second, args=(heard, patience), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(told)  # ends the thread
        thread.join()
        os.close(heard)


def _end_at_the_second(heard: int, patience: float) -> None:
    """Reads the numbers of the signals that this process gets."""
    first: float | None = None
    while number := os.read(heard, 1):
        if number[0] not in (*SIGNALS, signal.SIGINT):
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first >= AGAIN_AFTER:
            _end_now(number[0], patience)


def _end_now(number: int, patience: float) -> None:
    os.write(2, b"A second signal: ends at once, without saving.\n")
    children = multiprocessing.active_children()
    end = time.monotonic() + patience
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
    for child in children:
        child.kill()
    os._exit(128 + number)


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """While this lasts, signals go to functions; afterwards to what they went to before."""
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def _forget() -> None:
    for noted in (_asked, _interrupted, _waiting):
        noted.clear()


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    if _waiting:
        raise StopRequested


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _interrupted:  # a launcher may pass on what the terminal has sent already
        _interrupted.append(number)
        raise KeyboardInterrupt


def _pass_on(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        _interrupted.append(number)
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
