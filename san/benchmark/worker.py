"""Measures one case in its own process: `python -m san.benchmark.worker JOB.json RESULT.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from san.allocator import keep_large_buffers


def main(job_file: str, result_file: str) -> None:
    """Read a job ({"case", "settings", "memory_of"}), run it, and write the record.

    The allocator is configured before torch is imported, as in the commands.
    """
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    kept = keep_large_buffers() if job["settings"]["malloc"] == "keep" else False

    from san.benchmark.cases import Case
    from san.benchmark.measure import Settings, measure, measure_memory

    case, settings = Case.from_dict(job["case"]), Settings(**job["settings"])
    if job.get("memory_of"):
        result = {"peak_bytes": measure_memory(case, settings, path=job["memory_of"])}
    else:
        result = measure(case, settings) | {"large_buffers_kept": kept}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
