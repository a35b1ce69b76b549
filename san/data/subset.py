"""Selects the images of a subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly_spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return a number of items, evenly spread over a sequence; deterministic.

    Args:
        items: N items, such as the records of a data set.
        number: number of items; 0, or N and more, returns all.

    Returns:
        min(number, N) items in order: the middle one of each of that many equal parts.
    """
    total = len(items)
    if number == 0 or number >= total:
        return list(items)
    return [items[(2 * part + 1) * total // (2 * number)] for part in range(number)]
