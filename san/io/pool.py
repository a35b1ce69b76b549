"""Runs work in several processes: unordered results, bounded memory, isolation of items that kill their process.

Every command that spreads files over processes uses `run_in_processes`: checking and preparing data sets, and drawing
predictions.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_CHUNK = 8  # items per chunk
_CHUNKS_AHEAD = 2  # per process: the current one and the next


def run_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    lost: Callable[[Item], Result],
) -> Generator[Result, None, None]:
    """Call a function with each item, in several processes.

    If a process dies (out of memory, a crash of a decoder), only the item that kills it is lost: the items in progress
    are repeated, one at a time in a separate process.

    Args:
        function: picklable; may be called twice with an item.
        items: picklable; sent to the processes a few at a time.
        workers: number of processes; 1 runs in this process.
        lost: result for an item that kills its process again when it is repeated alone.

    Yields:
        One result per item, in no particular order.

    Raises:
        RuntimeError: no process can be started.
        Exception: any exception of the function; the processes are killed, as after Ctrl-C.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    size = max(1, min(_MAX_CHUNK, len(items) // (4 * workers)))  # with few items, each process gets some
    chunks = deque(items[start : start + size] for start in range(0, len(items), size))
    suspects: list[Item] = []
    while chunks:
        yield from _run_chunks(function, chunks, min(workers, len(chunks)), suspects)
    while suspects:
        yield from _run_alone(function, suspects, lost)


def _run_chunks(
    function: Callable[[Item], Result], chunks: deque[Sequence[Item]], workers: int, suspects: list[Item]
) -> Iterator[Result]:
    """Process chunks until none is left or a process dies; then the items in progress become suspects."""
    pending: dict[Future[list[Result]], Sequence[Item]] = {}
    with worker_pool(workers) as pool:
        try:
            while chunks or pending:
                while chunks and len(pending) < _CHUNKS_AHEAD * workers:
                    pending[pool.submit(_run_chunk, function, chunks[0])] = chunks[0]
                    chunks.popleft()
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    results = future.result()
                    del pending[future]
                    yield from results
        except BrokenProcessPool:
            suspects += [item for chunk in pending.values() for item in chunk]


def _run_alone(
    function: Callable[[Item], Result], suspects: list[Item], lost: Callable[[Item], Result]
) -> Iterator[Result]:
    """Process suspects in one process, one at a time, until none is left or the process dies on one."""
    with worker_pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "worker processes end before they have done anything; in a script of your own, start the work below "
                '`if __name__ == "__main__":`, or set workers=1'
            ) from error
        while suspects:
            item = suspects.pop()
            try:
                results = pool.submit(_run_chunk, function, [item]).result()
            except BrokenProcessPool:
                yield lost(item)
                return
            yield from results


def _run_chunk(function: Callable[[Item], Result], chunk: Sequence[Item]) -> list[Result]:
    return [function(item) for item in chunk]


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of new interpreters (spawn), because forking a process with threads may hang.

    After an error or Ctrl-C the processes are killed, because one may be stopped or blocked on a file; a consumer that
    stops early waits for the jobs in progress. The processes end with the main process, also if it is killed.

    Args:
        workers: number of processes.

    Yields:
        the pool.
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
    """Initialize a pool process: ignore Ctrl-C, which the main process handles, and exit when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
