"""Splits a stream into overlapping chunks; each item belongs to one chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def overlapping_chunks(items: Iterable[Item], length: int, overlap: int) -> Iterator[tuple[list[Item], slice]]:
    """Split a stream into chunks; only one is in memory at a time.

    The border between two chunks is in the middle of their overlap, so an item belongs to the chunk in which it has
    more neighbours.

    Args:
        items: any number of them.
        length: number of items of a chunk; the last may be shorter.
        overlap: number of items that a chunk shares with the previous one.

    Yields:
        a chunk, and which of its items belong to it. Over all chunks, every item belongs to one, in order.

    Raises:
        ValueError: the overlap is negative, or not below the length.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"an overlap of {overlap} in chunks of {length}; it must be 0 or more, and below the length")
    chunk: list[Item] = []
    first = 0
    for item in items:
        if len(chunk) == length:
            yield chunk, slice(first, length - overlap + overlap // 2)
            chunk, first = chunk[length - overlap :], overlap // 2
        chunk.append(item)
    if chunk:
        yield chunk, slice(first, len(chunk))
