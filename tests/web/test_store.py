"""Pictures and results between two requests: kept for a moment, and taken once."""

from __future__ import annotations

import numpy as np

from san.web.store import TokenStore


def test_what_was_put_is_taken_once():
    box = TokenStore(1000, len)
    token, other = box.put(b"one"), box.put(b"two")
    assert token != other
    assert len(token) >= 40
    assert box.take(token) == b"one"
    for gone in (token, "guess", None, {"path": "/etc/passwd"}, 3):
        assert box.take(gone) is None
    assert box.take(other) == b"two"


def test_items_that_are_not_taken_are_dropped():
    now = [0.0]
    box = TokenStore(100, lambda each: each.nbytes, keep_seconds=60, clock=lambda: now[0])
    box.put(np.zeros((4, 5, 3), np.uint8))
    box.put(np.zeros((4, 5, 3), np.uint8))
    assert box.usage()[0] == 1, "the oldest makes room"
    token = box.put(np.zeros((10, 20, 1), np.uint8))
    assert box.usage()[0] == 1, "the newest stays"
    now[0] = 61.0
    assert box.take(token) is None
    assert box.usage()[0] == 0


def test_what_is_used_stays_and_the_longest_unused_goes():
    now = [0.0]
    store = TokenStore(100, len, keep_seconds=60, clock=lambda: now[0])
    first, second = store.put(bytes(40)), store.put(bytes(40))
    now[0] = 50.0
    assert store.get(first) == bytes(40)
    store.put(bytes(40))
    assert store.get(second) is None, "the first was used since"
    assert store.usage() == (2, 80)
    now[0] = 111.0
    assert store.get(first) is None and store.usage() == (0, 0), "61 s after its last use"
    assert store.get(None) is None and store.get({"path": "/etc/passwd"}) is None
