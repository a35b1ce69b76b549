"""Pictures and results between two requests: kept for a moment, and taken once."""

from __future__ import annotations

import numpy as np

from san.demo.mailbox import Mailbox


def test_what_was_put_is_taken_once():
    box = Mailbox(1000)
    token, other = box.put(b"one"), box.put(b"two")
    assert token != other
    assert len(token) >= 40
    assert box.take(token) == b"one"
    for gone in (token, "guess", None, {"path": "/etc/passwd"}, 3):
        assert box.take(gone) is None
    assert box.take(other) == b"two"


def test_items_that_are_not_taken_are_dropped():
    now = [0.0]
    box = Mailbox(100, keep_seconds=60, clock=lambda: now[0])
    box.put(np.zeros((4, 5, 3), np.uint8))
    box.put(np.zeros((4, 5, 3), np.uint8))
    assert len(box) == 1, "the oldest makes room"
    token = box.put(np.zeros((10, 20, 1), np.uint8))
    assert len(box) == 1, "the newest stays"
    now[0] = 61.0
    assert box.take(token) is None
    assert len(box) == 0
