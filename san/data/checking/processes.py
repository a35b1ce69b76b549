"""Reading all pairs of a data set in several processes; a file on which a process dies costs only itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from san.data.checking.pair import CheckTarget, Finding, PairResult, Record, check_pair
from san.data.pool import worker_pool

_CHUNK = 8  # pairs a process takes at a time
Job = tuple[int, dict[str, Any]]


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0..count-1, evenly spread; all of them for a limit of 0."""
    if limit <= 0 or limit >= count:
        return list(range(count))
    return [position * count // limit for position in range(limit)]


def check_pairs(
    records: Sequence[Record], target: CheckTarget, *, positions: Sequence[int] | None = None, workers: int = 1
) -> Iterator[PairResult]:
    """Read pairs, in no particular order.

    Args:
        records: the data set.
        target: what to check against.
        positions: which records; all by default.
        workers: processes; 1 reads in this one.

    Yields:
        One result per position.

    Raises:
        RuntimeError: no process can be started.
    """
    jobs: list[Job] = [
        (index, dict(records[index])) for index in (range(len(records)) if positions is None else positions)
    ]
    if workers <= 1:
        for index, record in jobs:
            yield check_pair(index, record, target)
        return
    suspects: list[Job] = []
    chunks = deque(jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK))
    while chunks:
        yield from _in_flight(chunks, target, workers, suspects)
    while suspects:
        yield from _one_by_one(suspects, target)


def _in_flight(
    chunks: deque[list[Job]], target: CheckTarget, workers: int, suspects: list[Job]
) -> Iterator[PairResult]:
    """Reads chunks in processes until none is left or a process died; then those under way become suspects."""
    flying: dict[Future[list[PairResult]], list[Job]] = {}
    with worker_pool(workers) as pool:
        try:
            while chunks or flying:
                while chunks and len(flying) < 2 * workers:
                    flying[pool.submit(_check_chunk, chunks[0], target)] = chunks[0]
                    chunks.popleft()
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    results = future.result()
                    del flying[future]
                    yield from results
        except BrokenProcessPool:
            suspects += [job for chunk in flying.values() for job in chunk]


def _one_by_one(suspects: list[Job], target: CheckTarget) -> Iterator[PairResult]:
    """Reads suspects alone in a process until none is left, or the process died on one, which is then known."""
    with worker_pool(1) as pool:
        try:
            pool.submit(_check_chunk, [], target).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "reading processes end before they read anything; in a script of your own, start the check below "
                '`if __name__ == "__main__":`, or take workers=1'
            ) from error
        while suspects:
            index, record = suspects.pop()
            try:
                results = pool.submit(_check_chunk, [(index, record)], target).result()
            except BrokenProcessPool:
                message = f"the process that read it and {record['sem_seg_file_name']} died (out of memory?)"
                yield PairResult(index, (Finding("unreadable_image", message, str(record["file_name"])),))
                return
            yield from results


def _check_chunk(chunk: list[Job], target: CheckTarget) -> list[PairResult]:
    return [check_pair(index, record, target) for index, record in chunk]
