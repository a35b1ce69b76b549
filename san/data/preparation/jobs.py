"""Makes many files in a few processes, and gathers what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from san.data.pool import run_in_processes


@dataclass(frozen=True)
class FileJob:
    """One file to make.

    Attributes:
        path: the file.
        work: called with `path`; pickled to a worker, so it is a module's function or a partial of one.
        num_bytes: estimate of what it writes.
    """

    path: Path
    work: Callable[[Path], None]
    num_bytes: int = 0


def run_jobs(
    jobs: Sequence[FileJob], *, workers: int, progress: bool, title: str, max_failures: int = 50
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
        RuntimeError: no worker process can be started.
        OSError: writing failed, for instance on a full disk.
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
                failures.append(f"stopped after {len(failures)} failures; {len(jobs) - bar.n} files were not tried")
                break
    return done, failures


def _failure(job: FileJob) -> str | None:
    """Does a job; returns why it failed."""
    try:
        job.work(job.path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _lost(job: FileJob) -> str:
    return f"{job.path}: the process that worked on it died (out of memory?); repeat the command with --workers 1"
