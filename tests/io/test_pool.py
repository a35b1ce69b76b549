"""The pool of processes: its end by Ctrl-C, and with a main process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from san.io.pool import run_in_processes, worker_pool

REPO = Path(__file__).resolve().parents[2]


def _square(number: int) -> int:
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    if number < 0:
        raise ValueError(f"number is {number}; give 0 or more")
    return number**2


def _none(number: int) -> int:
    return -number


@pytest.mark.parametrize("count", [1, 18, 60])
def test_an_item_that_kills_its_process_costs_only_itself(count: int) -> None:
    found = run_in_processes(_square, range(count), workers=2, lost=_none)
    assert sorted(found) == sorted(-17 if number == 17 else number**2 for number in range(count))


def test_an_error_of_the_function_is_that_of_the_caller() -> None:
    with pytest.raises(ValueError, match="number is -1"):
        list(run_in_processes(_square, [1, -1, 3], workers=2, lost=_none))


def _touch(path: Path) -> Path:
    path.touch()
    return path


def test_work_waits_for_a_consumer(tmp_path: Path) -> None:
    """Few results wait in memory, however many items there are."""
    results = run_in_processes(_touch, [tmp_path / str(number) for number in range(1000)], workers=2, lost=_touch)
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) <= 2 * 2 * 8
    results.close()


def interrupt(pool: ProcessPoolExecutor) -> None:
    """Like Ctrl-C while a process reads a file that never arrives."""
    pool.submit(time.sleep, 1000)
    raise KeyboardInterrupt


def test_ctrl_c_does_not_wait_for_the_jobs_under_way() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        interrupt(pool)
    assert time.monotonic() - start < 500


def test_a_consumer_that_stops_early_waits_for_them() -> None:
    def results() -> object:
        with worker_pool(1) as pool:
            job = pool.submit(os.getpid)
            yield job.result()
            done.append(pool.submit(time.sleep, 0.1))

    done: list[object] = []
    source = results()
    assert next(source) != os.getpid()
    source.close()
    assert not done


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to see processes in")
def test_processes_end_with_a_killed_main_process() -> None:
    code = """
import os, signal, time
from san.io.pool import worker_pool
if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 1000)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    worker, end = Path("/proc") / done.stdout.strip(), time.monotonic() + 100
    while worker.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not worker.exists()
