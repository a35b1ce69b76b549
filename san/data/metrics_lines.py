"""Reads ``metrics.json`` of a run: JSON lines, one of which may be cut off after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from san.io.files import check_file_size

MAX_LINE = 1_000_000
"""Maximum characters of a line; the line of an evaluation of 847 classes has 60,000."""

MAX_BYTES = 200_000_000
"""Maximum size of a file; one line for each of 60,000 iterations takes 40 MB."""

MAX_ITERATION = 2**53


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, float] | None]]:
    """Return each line of a file with its parsed content; see `parse_line`.

    Raises:
        FileNotFoundError: the file does not exist or is not a regular file; reading a pipe could block.
        ValueError: the file is larger than any run writes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"metrics file {path} does not exist; give the metrics.json of a training run")
    check_file_size(path, MAX_BYTES)
    with open(path, encoding="utf-8", errors="replace") as file:
        while line := file.readline(MAX_LINE):
            yield line, parse_line(line)


def parse_line(line: str) -> dict[str, float] | None:
    """Return the numbers of a line by name, including ``iteration``; None if it is not a record of an iteration.

    Values that are not numbers are omitted; NaN and infinity are kept.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # the latter for deeply nested brackets
        return None
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if type(iteration) is not int or not 0 <= iteration < MAX_ITERATION:
        return None
    return {name: value for name, value in content.items() if type(value) is float or _fits(value)}


def _fits(value: object) -> bool:
    """Whether a value is an integer that a float can represent."""
    return type(value) is int and abs(value) < 1e300
