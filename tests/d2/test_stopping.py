"""Signals that ask a run to stop: noted while somebody listens, and the former handlers afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from san.d2 import stopping


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in stopping.SIGNALS]


@pytest.mark.parametrize("answering", [stopping.listening, stopping.passing_on])
def test_handlers_come_back(answering):
    before, during = handlers(), []

    def fail() -> None:
        with answering():
            during.extend(handlers())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not set(during) & set(before)
    assert handlers() == before


def test_what_is_heard_counts_until_the_next_time():
    for number in stopping.SIGNALS:
        with stopping.listening():
            assert not stopping.requested()
            os.kill(os.getpid(), number)
            assert stopping.requested()
    with stopping.listening():
        assert not stopping.requested()
