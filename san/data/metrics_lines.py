"""Reads ``metrics.json`` of a run: JSON lines, of which a stopped machine may have cut one short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from san.io.files import check_file_size

MAX_LINE = 1_000_000
"""Characters of a line; that of an evaluation of 847 classes has 60,000."""

MAX_BYTES = 200_000_000
"""Size of a file; a line for each of 60,000 iterations takes 40 MB."""

MAX_ITERATION = 2**53


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, float] | None]]:
    """The lines of a file as they are, and what each says; see `parse_line`.

    Raises:
        FileNotFoundError: the file does not exist, or it is not a regular one: a pipe would be waited for.
        ValueError: it is larger than any run writes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"metrics file {path} does not exist; give the metrics.json of a training run")
    check_file_size(path, MAX_BYTES)
    with open(path, encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_LINE):
            yield line, parse_line(line)


def parse_line(line: str) -> dict[str, float] | None:
    """The numbers of a line by name, ``iteration`` among them; None where it is not a record of an iteration.

    Values that are not numbers are left out; NaN and infinite ones are numbers.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # the latter of brackets in each other
        return None
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if type(iteration) is not int or not 0 <= iteration < MAX_ITERATION:
        return None
    return {name: value for name, value in content.items() if type(value) is float or _fits(value)}


def _fits(value: object) -> bool:
    """Whether it is an integer that a float can hold."""
    return type(value) is int and abs(value) < 1e300
