"""Writes many files in worker processes, and collects the failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from san.io.pool import run_in_processes


@dataclass(frozen=True)
class FileJob:
    """One file to write.

    Attributes:
        path: the file.
        work: called with `path`; must be picklable (a module's function or a partial of one).
        num_bytes: estimated size of the file it writes.
    """

    path: Path
    work: Callable[[Path], None]
    num_bytes: int = 0


def run_jobs(
    jobs: Sequence[FileJob], *, workers: int, progress: bool, title: str, max_failures: int = 50
) -> tuple[int, list[str]]:
    """Run all jobs. A job with invalid input is reported and the others continue.

    Args:
        jobs: jobs in the order to run.
        workers: number of worker processes; 1 runs in this process.
        progress: show a progress bar on a terminal.
        title: title of the progress bar.
        max_failures: stop after this number of failures.

    Returns:
        the number of jobs that succeeded, and one line per failed job.

    Raises:
        RuntimeError: no worker process can be started.
        OSError: a file cannot be written, for instance because the disk is full.
    """
    done, failures = 0, []
    results = run_in_processes(_failure, jobs, workers=workers, lost=_lost)
    with tqdm(total=len(jobs), unit="file", desc=title, disable=None if progress else True, mininterval=0.5) as bar:
        for failure in results:
            bar.update()
            if failure is None:
                done += 1
                continue
            failures.append(failure)
            if len(failures) >= max_failures:
                failures.append(f"stopped after {len(failures)} failures; {len(jobs) - bar.n} files were skipped")
                break
    return done, failures


def _failure(job: FileJob) -> str | None:
    """Run a job; return the reason if it failed."""
    try:
        job.work(job.path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _lost(job: FileJob) -> str:
    return f"{job.path}: the worker process died (out of memory?); repeat the command with --workers 1"
