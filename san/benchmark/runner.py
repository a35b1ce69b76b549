"""Case after case, each in a fresh process, so that memory is its own and nothing is warm from another's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from san.benchmark.cases import Case
from san.benchmark.measure import Settings

REPO = Path(__file__).resolve().parent.parent.parent


def run_cases(cases: Iterable[Case], settings: Settings, *, timeout: float = 3600) -> Iterator[dict[str, Any]]:
    """Measures cases one after the other.

    Args:
        cases: what to measure.
        settings: how.
        timeout: seconds that a case may take.

    Yields:
        Per case what `measure` returns, with the plain path's own peak memory; or {"case", "error"} where its process
        failed, with the last line of what it said. The other cases go on.
    """
    for case in cases:
        try:
            record = _in_process({"case": case.to_dict(), "settings": settings.to_dict()}, timeout)
            if "plain" in record:
                job = {"case": case.to_dict(), "settings": settings.to_dict(), "memory_of_plain": True}
                record["plain"] |= _in_process(job, timeout)
        except RuntimeError as error:
            record = {"case": case.to_dict(), "error": str(error)}
        yield record


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
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(f"exit code {done.returncode}: {said[:300]}")
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return result
