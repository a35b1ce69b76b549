"""Loading processes: their errors, signals while the main process waits for them, and their end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from san.d2.data import batches
from san.d2.data.loaders import build_eval_loader
from san.d2.processes import stopping
from tests.faults.conftest import in_a_process

RECORDS = [{"file_name": str(index)} for index in range(8)]


def without_key(record: dict[str, Any]) -> Any:
    return record["sem_seg_file_name"]


def not_to_be_sent(record: dict[str, Any]) -> Any:
    return {"function": lambda: record}


def with_tensor(record: dict[str, Any]) -> Any:
    return {"image": torch.zeros(1000)}


def stopped(record: dict[str, Any]) -> Any:
    os.kill(os.getpid(), signal.SIGSTOP)
    return record


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def test_a_defect_in_a_loading_process_ends_this_one() -> None:
    """The traceback keeps the loader, as that of an error which ends a program does."""
    with pytest.raises(KeyError, match="sem_seg_file_name"):
        list(build_eval_loader(RECORDS, without_key, num_workers=2))
    assert in_a_process(lambda: list(build_eval_loader(RECORDS, without_key, num_workers=2))) == 1


def test_an_iteration_that_was_not_ended_ends_with_the_process() -> None:
    """Its workers ignore the SIGTERM that Python sends at exit before it waits for them."""

    def leave_open() -> None:
        globals()["kept"] = source = iter(build_eval_loader(RECORDS, dict, num_workers=2))
        next(source)

    assert in_a_process(leave_open) == 0


def test_a_batch_that_cannot_be_sent_is_an_error() -> None:
    """For instance a full /dev/shm or too many open files; Python prints the error and drops the batch."""
    with pytest.raises(OSError, match=r"cannot send its samples .*pickle.*; increase /dev/shm"):
        list(build_eval_loader(RECORDS, not_to_be_sent, num_workers=1))


def test_waiting_has_a_limit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(batches, "WARN_AFTER", 0.2)
    monkeypatch.setattr(batches, "POLL_INTERVAL", 0.1)
    with pytest.raises(TimeoutError, match=r"no batch arrived from the 2 .*DATALOADER.TIMEOUT 0.5.*NUM_WORKERS 0"):
        list(build_eval_loader(RECORDS, stopped, num_workers=2, timeout=0.5))
    assert "DATALOADER.TIMEOUT is 0.5 s" in caplog.text


def test_waiting_for_a_tensors_memory_has_a_limit() -> None:
    """The main process asks a stopped one for it, where a `DataLoader` knows no limit."""
    source = iter(build_eval_loader(RECORDS, with_tensor, num_workers=1, timeout=1))
    next(source)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match="DATALOADER.TIMEOUT 1"):
        list(source)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_waiting(number: int, error: type[BaseException]) -> None:
    with stopping.recording_signals():
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(error):
            next(iter(build_eval_loader(RECORDS, stopped, num_workers=1)))


def test_a_loader_outside_a_run_knows_nothing_of_an_earlier_ones_signals() -> None:
    with stopping.recording_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.requested()
    assert len(list(build_eval_loader(RECORDS, dict))) == 8
