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

from san.data.pool import worker_pool

REPO = Path(__file__).resolve().parents[2]


def interrupt(pool: ProcessPoolExecutor) -> None:
    """As Ctrl-C does while a process reads a file that never comes."""
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
from san.data.pool import worker_pool
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
