"""A subset of a data set is the same everywhere: evaluation, checks, benchmarks."""

from __future__ import annotations

from san.data.subset import evenly_spread


def test_evenly_spread() -> None:
    records = [{"file_name": str(index)} for index in range(10)]

    def chosen(number: int) -> list[int]:
        return [int(record["file_name"]) for record in evenly_spread(records, number)]

    assert chosen(1) == [5]
    assert chosen(2) == [2, 7]
    assert chosen(3) == [1, 5, 8]
    assert chosen(4) == [1, 3, 6, 8]
    assert chosen(0) == chosen(10) == chosen(11) == list(range(10))
    assert all(len(set(chosen(number))) == number for number in range(1, 11))
    assert evenly_spread([], 3) == []
