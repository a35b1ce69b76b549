"""A stream cut into overlapping chunks, of which each item belongs to one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def overlapping_chunks(items: Iterable[Item], length: int, overlap: int) -> Iterator[tuple[list[Item], slice]]:
    """Chunks of a stream; no more than one is held at a time.

    The border between two chunks lies in the middle of their overlap: an item of it belongs to the chunk in which it
    has more neighbours.

    Args:
        items: any number of them.
        length: items of a chunk; the last may be shorter.
        overlap: items that a chunk shares with the one before it.

    Yields:
        A chunk, and which of its items belong to it; over all chunks these are the items, each once, in order.

    Raises:
        ValueError: the overlap leaves a chunk nothing new.
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
