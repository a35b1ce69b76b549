"""Reads all pairs of a data set, in one or several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from san.data.checking.pair import CheckTarget, Finding, ImagePair, PairResult, check_pair
from san.data.pairing import label_file
from san.io.pool import run_in_processes


def check_pairs(
    records: Sequence[ImagePair], target: CheckTarget, *, positions: Sequence[int] | None = None, workers: int = 1
) -> Iterator[PairResult]:
    """Read pairs, in no particular order; if a file kills its process, only that file is reported.

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
    indices = range(len(records)) if positions is None else positions
    items = [(index, dict(records[index])) for index in indices]
    return run_in_processes(partial(_check_item, target=target), items, workers=workers, lost=_lost)


def _check_item(item: tuple[int, ImagePair], *, target: CheckTarget) -> PairResult:
    return check_pair(*item, target)


def _lost(item: tuple[int, ImagePair]) -> PairResult:
    index, record = item
    message = f"the process that read it and {label_file(record)} died (out of memory?)"
    return PairResult(index, (Finding("unreadable_image", message, str(record["file_name"])),))
