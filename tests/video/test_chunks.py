"""Overlapping chunks: every item once, in order, with the neighbours that it should have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from san.video.chunks import overlapping_chunks


def test_borders_lie_in_the_middle_of_an_overlap() -> None:
    found = [(chunk, chunk[own]) for chunk, own in overlapping_chunks(range(10), 4, 2)]
    assert found == [
        ([0, 1, 2, 3], [0, 1, 2]),
        ([2, 3, 4, 5], [3, 4]),
        ([4, 5, 6, 7], [5, 6]),
        ([6, 7, 8, 9], [7, 8, 9]),
    ]


@pytest.mark.parametrize("count", range(23))
@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (4, 0), (5, 1), (6, 3), (7, 6)])
def test_every_item_belongs_to_one_chunk(count: int, length: int, overlap: int) -> None:
    chunks = list(overlapping_chunks(range(count), length, overlap))
    assert [item for chunk, own in chunks for item in chunk[own]] == list(range(count))
    assert all(len(chunk) == length for chunk, _ in chunks[:-1])
    for (before, _), (after, _) in pairwise(chunks):
        assert before[length - overlap :] == after[:overlap]
        assert len(after) > overlap


def test_a_chunk_is_given_before_the_next_is_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    next(overlapping_chunks(items(), 8, 2))
    assert len(taken) == 9  # one more says that the chunk is not the last


@pytest.mark.parametrize(("length", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_an_overlap_that_leaves_nothing_new_is_refused(length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="below the length"):
        list(overlapping_chunks([1], length, overlap))
