"""How images share the threads of a CPU."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from san.devices import MOST_STREAMS, image_streams, in_streams


class Foreign(nn.Module):
    """Of no package that is known to bear several threads."""


@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 2), (8, 8), (12, 6), (16, 8), (20, 6), (64, 8)])
def test_streams_of_a_cpu(threads: int, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are used where the numbers allow it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert image_streams([nn.Linear(2, 2)]) == streams <= MOST_STREAMS


def test_one_stream_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    compiled = nn.Sequential(nn.Linear(2, 2))
    compiled[0].compile()
    assert image_streams([nn.Linear(2, 2, device="meta")]) == image_streams([compiled]) == 1
    assert image_streams([nn.Linear(2, 2), nn.Sequential(Foreign(), nn.Linear(2, 2))]) == 1


def test_threads_are_shared_and_given_back() -> None:
    """The first item has all of them, in the calling thread; items are taken a bounded number ahead."""
    before, taken, seen = torch.get_num_threads(), [], {}

    def items():
        for index in range(20):
            taken.append(index)
            yield index

    def work(index: int) -> int:
        seen[index] = (threading.current_thread().name.split("_")[0], torch.get_num_threads())
        return 2 * index

    torch.set_num_threads(4)
    try:
        for position, result in enumerate(in_streams(work, items(), 2)):
            assert result == 2 * position and len(taken) <= position + 5
        assert torch.get_num_threads() == 4
        assert seen == {0: ("MainThread", 4)} | dict.fromkeys(range(1, 20), ("san-network", 2))
        assert list(in_streams(work, items(), 1)) == [2 * index for index in range(20)]
        assert set(seen.values()) == {("MainThread", 4)}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("end", ["error", "close"])
def test_an_end_by_force_stops_all_threads(end: str) -> None:
    before = torch.get_num_threads()
    results = in_streams(lambda index: 1 // (index - 3), range(-100, 100), 2)
    if end == "close":
        assert next(results) == next(results) == -1
        results.close()
    else:
        with pytest.raises(ZeroDivisionError):
            list(results)
    assert torch.get_num_threads() == before
    assert not [each for each in threading.enumerate() if each.name.startswith("san-network")]
