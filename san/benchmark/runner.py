"""Runs each case in a new process, so that memory and caches do not affect each other."""

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

_TIMEOUT = 3600
"""Time limit of a process, seconds."""

_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")


def run_cases(cases: Iterable[Case], settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure cases one after the other.

    Args:
        cases: cases to measure.
        settings: settings of the measurement.

    Yields:
        per case the result of `measure`, with the peak memory of the other paths, or with "plain_error" if that path
        failed; {"case", "error"} if the case failed. An error is one line; the other cases continue.
    """
    for case in cases:
        try:
            record = _measured(case, settings)
        except RuntimeError as error:
            record = {"case": case.to_dict(), "error": str(error)}
        yield record


def _measured(case: Case, settings: Settings) -> dict[str, Any]:
    """Return the record of a case; the plain path may fail because it needs more memory."""
    job = {"case": case.to_dict(), "settings": settings.to_dict()}
    failure = {}
    if settings.plain:
        try:
            return _with_memory(_in_process(job), job)
        except RuntimeError as error:
            failure = {"plain_error": str(error)}
            job["settings"] = replace(settings, plain=False).to_dict()
    return _with_memory(_in_process(job), job) | failure


def _with_memory(record: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the peak memory of the other paths, each measured in its own process."""
    for path in ("plain", "against"):
        if path in record:
            record[path] |= _in_process(job | {"memory_of": path})
    return record


def _in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a worker, and return its record.

    Raises:
        RuntimeError: it failed or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "san.benchmark.worker", str(job_file), str(result_file)]
        try:
            done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"took more than {_TIMEOUT} s") from error
        if done.returncode != 0:
            raise RuntimeError(_failure_message(done.returncode, done.stderr))
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return result


def _failure_message(code: int, stderr: str) -> str:
    """Describe a failed process in one line: the first line of its exception, or its last line."""
    if code < 0:
        hint = ", as the system does when memory is used up" if signal.Signals(-code).name == "SIGKILL" else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    lines = stderr.strip().splitlines() or ["it said nothing"]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return f"exit code {code}: {(exceptions or lines)[-1][:300]}"
