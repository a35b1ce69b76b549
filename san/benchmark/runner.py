"""Case after case, each in a fresh process, so that memory is its own and nothing is warm from another's."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from san.benchmark.cases import Case
from san.benchmark.measure import Settings

REPO = Path(__file__).resolve().parent.parent.parent

_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")


def run_cases(cases: Iterable[Case], settings: Settings, *, timeout: float = 3600) -> Iterator[dict[str, Any]]:
    """Measures cases one after the other.

    Args:
        cases: what to measure.
        settings: how.
        timeout: seconds that a process may take.

    Yields:
        Per case what `measure` returns, with the other paths' own peak memory; where the plain path failed, without it
        and with "plain_error"; {"case", "error"} where the case failed. An error is one line. The other cases go on.
    """
    for case in cases:
        try:
            record = _measured(case, settings, timeout)
        except RuntimeError as error:
            record = {"case": case.to_dict(), "error": str(error)}
        yield record


def _measured(case: Case, settings: Settings, timeout: float) -> dict[str, Any]:
    """The record of a case; the plain path may fail, as it needs more memory."""
    job = {"case": case.to_dict(), "settings": settings.to_dict()}
    failure = {}
    if settings.plain:
        try:
            return _with_memory(_in_process(job, timeout), job, timeout)
        except RuntimeError as error:
            failure = {"plain_error": str(error)}
            job["settings"] = replace(settings, plain=False).to_dict()
    return _with_memory(_in_process(job, timeout), job, timeout) | failure


def _with_memory(record: dict[str, Any], job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """A record with the peaks of the paths beside the case's own, each of a process that runs nothing else."""
    for path in ("plain", "against"):
        if path in record:
            record[path] |= _in_process(job | {"memory_of": path}, timeout)
    return record


def _in_process(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """What a worker writes for a job.

    Raises:
        RuntimeError: it failed or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "san.benchmark.worker", str(job_file), str(result_file)]
        try:
            done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"took more than {timeout:.0f} s") from error
        if done.returncode != 0:
            raise RuntimeError(_why(done.returncode, done.stderr))
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return result


def _why(code: int, stderr: str) -> str:
    """One line on a process that failed: its exception's first line, or the last that it wrote."""
    if code < 0:
        hint = ", as the system does when memory is used up" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    lines = stderr.strip().splitlines() or ["it said nothing"]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return f"exit code {code}: {(exceptions or lines)[-1][:300]}"
