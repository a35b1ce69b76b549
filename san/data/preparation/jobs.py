"""Runs many small file jobs in a few processes, with bounded memory, and gathers what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from san.data.pool import worker_pool

logger = logging.getLogger(__name__)

_CHUNK = 8  # jobs sent to a worker at a time
_AHEAD = 4  # chunks waiting for each worker


@dataclass(frozen=True)
class Job:
    """One file to make or to check.

    Attributes:
        path: the file.
        work: called with `path`; pickled to a worker, so it is a module's function or a partial of one.
        num_bytes: estimate of what it writes.
    """

    path: Path
    work: Callable[[Path], None]
    num_bytes: int = 0


def run_jobs(
    jobs: Sequence[Job], *, workers: int, progress: bool, title: str, max_failures: int = 50
) -> tuple[int, list[str]]:
    """Do all jobs; those whose input is at fault are reported, the others go on.

    Args:
        jobs: in the order to do them.
        workers: processes; 1 stays in this process.
        progress: show a bar on a terminal.
        title: the bar's.
        max_failures: after so many the rest is not tried.

    Returns:
        how many jobs succeeded, and one line for each that failed.

    Raises:
        ValueError: a worker process died.
        OSError: writing failed, for instance on a full disk.
    """
    done, failures = 0, []
    chunks = (tuple(jobs[start : start + _CHUNK]) for start in range(0, len(jobs), _CHUNK))
    results = map(_run_chunk, chunks) if workers == 1 or len(jobs) <= _CHUNK else _in_processes(chunks, workers)
    with tqdm(total=len(jobs), unit="file", desc=title, disable=None if progress else True, mininterval=0.5) as bar:
        for count, wrong in results:
            done += count - len(wrong)
            failures += wrong
            bar.update(count)
            if len(failures) >= max_failures:
                failures.append(f"stopped after {len(failures)} failures; {len(jobs) - bar.n} files were not tried")
                break
    return done, failures


def _run_chunk(jobs: tuple[Job, ...]) -> tuple[int, list[str]]:
    failures = []
    for job in jobs:
        try:
            job.work(job.path)
        except (ValueError, FileNotFoundError) as error:
            failures.append(str(error))
    return len(jobs), failures


def _in_processes(chunks: Iterator[tuple[Job, ...]], workers: int) -> Iterator[tuple[int, list[str]]]:
    """Results as they come."""
    pending: set[Future[tuple[int, list[str]]]] = set()
    try:
        with worker_pool(workers) as pool:
            pending |= {pool.submit(_run_chunk, chunk) for chunk in islice(chunks, workers * _AHEAD)}
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                pending |= {pool.submit(_run_chunk, chunk) for chunk in islice(chunks, len(finished))}
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of {workers} worker processes died, perhaps for want of memory; run again with fewer --workers: "
            "what is written stays"
        ) from error
