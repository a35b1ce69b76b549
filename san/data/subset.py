"""Which images of a data set stand for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly_spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many items, spread evenly over all; always the same ones.

    Args:
        items: N items, such as the records of a data set.
        number: how many; 0, or N and more, take all.

    Returns:
        min(number, N) items in their order: of as many equal parts of the sequence, the middle of each.
    """
    total = len(items)
    if number == 0 or number >= total:
        return list(items)
    return [items[(2 * part + 1) * total // (2 * number)] for part in range(number)]
