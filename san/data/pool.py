"""A pool of processes that ends with the main one: by an error, by Ctrl-C, and when the main one is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait as wait_for


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters (spawn), since forking a process with threads may hang.

    After an error or Ctrl-C the processes are killed, as one may be stopped or read a file that never comes; a consumer
    that wants no more results waits for the jobs under way.

    Args:
        workers: number of processes.

    Yields:
        The pool.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        yield pool
    except (Exception, KeyboardInterrupt):
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """In a process of the pool: leave Ctrl-C to the main one, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
