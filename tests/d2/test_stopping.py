"""Signals that ask a run to stop: recorded in the context, and the former handlers afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from san.d2.checkpoints import checkpointer
from san.d2.processes import stopping
from tests.faults.conftest import in_a_process


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in stopping.SIGNALS]


@pytest.mark.parametrize("answering", [stopping.recording_signals, stopping.forwarding_signals])
def test_handlers_come_back(answering):
    before, during = handlers(), []

    def fail() -> None:
        with answering():
            during.extend(handlers())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not set(during) & set(before)
    assert handlers() == before


def test_a_recorded_signal_counts_until_the_next_recording():
    for number in stopping.SIGNALS:
        with stopping.recording_signals():
            assert not stopping.requested()
            os.kill(os.getpid(), number)
            assert stopping.requested()
    with stopping.recording_signals():
        assert not stopping.requested()


def blocked() -> None:
    """Like a process that waits inside PyTorch, where Python runs no signal handler."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=100))
    threading.Thread(target=signals, daemon=True).start()
    store.get("never set")


def deaf() -> None:
    """Like code that treats Ctrl-C as a failure of its own."""
    threading.Thread(target=signals, daemon=True).start()
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(10)


sent = signal.SIGTERM


def signals() -> None:
    while True:
        time.sleep(0.3)
        os.kill(os.getpid(), sent)


@pytest.mark.parametrize("answering", [stopping.recording_signals, stopping.forwarding_signals])
@pytest.mark.parametrize("action", [blocked, deaf])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_second_signal_ends_the_process(answering, action, number, monkeypatch):
    monkeypatch.setattr(stopping, "SECOND_SIGNAL_AFTER", 0.1)
    monkeypatch.setitem(globals(), "sent", number)

    def run() -> None:
        with answering():
            action()

    assert in_a_process(run) == 128 + number


def test_signals_close_together_count_as_one():
    """A launcher passes on what a scheduler has sent to all processes."""

    def run() -> None:
        with stopping.recording_signals():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            assert stopping.requested()

    assert in_a_process(run) == 0


def test_an_interrupt_that_was_lost_is_raised_again():
    def check() -> None:
        with stopping.recording_signals():
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            stopping.requested()

    with pytest.raises(KeyboardInterrupt):
        check()


def test_ctrl_c_in_a_checkpoints_write_is_no_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointer._ErrorRecorder, "write", lambda self, data: os.kill(os.getpid(), signal.SIGINT))
    with stopping.recording_signals(), pytest.raises(KeyboardInterrupt):
        checkpointer.write_checkpoint({"model": {}}, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
