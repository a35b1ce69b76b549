"""Stops a run on Ctrl-C, and on SIGTERM and SIGUSR1, which cluster schedulers send before they reclaim a machine.

On the first SIGTERM or SIGUSR1, the run saves and ends after the current step; a wait for data is interrupted. The
first Ctrl-C raises KeyboardInterrupt. A second signal, at least `SECOND_SIGNAL_AFTER` seconds later, ends the process
and its children at once, even if the main thread is blocked.
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
"""Exit code after a requested stop: "temporary failure, try again" (sysexits.h), which --resume does."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # no USR1 on Windows

SECOND_SIGNAL_AFTER = 1.0
"""Seconds. Closer signals count as one: a launcher forwards a signal that a scheduler has sent to all processes."""

GRACE_SECONDS = 3.0
"""Seconds that workers have to end after a second signal before the launching process kills them."""

Handler = Callable[[int, FrameType | None], None]

_stop_signals: list[int] = []  # filled by the signal handler, which cannot safely do more
_interrupted: list[int] = []  # the same for Ctrl-C
_waiting: list[None] = []  # not empty while the main thread waits for data


class StopRequested(SystemExit):
    """A stop was requested and the run has saved its state; exits with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextlib.contextmanager
def recording_signals() -> Iterator[None]:
    """Context manager that records SIGTERM and SIGUSR1 instead of ending the process; main thread only."""
    _clear()
    with _handlers({**dict.fromkeys(SIGNALS, _record), signal.SIGINT: _interrupt}), exiting_on_second_signal(grace=0):
        try:
            yield
        finally:
            _clear()


@contextlib.contextmanager
def forwarding_signals() -> Iterator[None]:
    """Context manager that forwards signals to the workers; for a process that only waits for them.

    Raises:
        KeyboardInterrupt: on exit, if Ctrl-C was one of them.
    """
    _clear()
    with _handlers(dict.fromkeys((*SIGNALS, signal.SIGINT), _forward)), exiting_on_second_signal(grace=GRACE_SECONDS):
        yield
    check_interrupted()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Context manager in which a requested stop, also an earlier one, raises `StopRequested` at once."""
    _waiting.append(None)
    try:
        if requested():
            raise StopRequested
        yield
    finally:
        _waiting.clear()


def requested() -> bool:
    """Whether a stop of this process was requested.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed and the exception was lost, as in torch.save.
    """
    check_interrupted()
    return bool(_stop_signals)


def requested_anywhere() -> bool:
    """Whether a stop of any worker was requested; collective, every worker must call it."""
    return any(comm.all_gather(requested()))


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed."""
    if _interrupted:
        raise KeyboardInterrupt


def ignore_first_signal() -> None:
    """Ignore the first signal in a loader worker, where the main process handles it; a second one ends the worker."""
    signal.set_wakeup_fd(-1)  # inherited; signals to this process are not for the main one
    for number in SIGNALS:
        signal.signal(number, _ignore_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def exiting_on_second_signal(*, grace: float) -> Iterator[None]:
    """Context manager in which a second signal ends this process and its children, with status 128 + its number.

    A thread handles it, because Python runs no signal handler while the main thread is in a library call, such as
    waiting for other processes.

    Args:
        grace: seconds that the children have to end by themselves.
    """
    reader, writer = os.pipe()
    if hasattr(os, "set_blocking"):  # on Windows since Python 3.12; before, it does not block there
        os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch_signals, args=(reader, grace), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writer)  # ends the thread
        thread.join()
        os.close(reader)


def _watch_signals(reader: int, grace: float) -> None:
    """Read the numbers of the signals that this process gets; end it on the second."""
    first: float | None = None
    while number := os.read(reader, 1):
        if number[0] not in (*SIGNALS, signal.SIGINT):
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first >= SECOND_SIGNAL_AFTER:
            _exit_now(number[0], grace)


def _exit_now(number: int, grace: float) -> None:
    os.write(2, b"Second signal: exiting at once, without saving.\n")
    children = multiprocessing.active_children()
    end = time.monotonic() + grace
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
    for child in children:
        child.kill()
    os._exit(128 + number)


@contextlib.contextmanager
def _handlers(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Context manager that sets signal handlers and restores the previous ones."""
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def _clear() -> None:
    for signals in (_stop_signals, _interrupted, _waiting):
        signals.clear()


def _record(number: int, frame: FrameType | None) -> None:
    _stop_signals.append(number)
    if _waiting:
        raise StopRequested


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _interrupted:  # a launcher may forward a signal that the terminal has already sent
        _interrupted.append(number)
        raise KeyboardInterrupt


def _forward(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        _interrupted.append(number)
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
