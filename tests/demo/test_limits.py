"""Sizes and rates."""

from __future__ import annotations

import pytest

from san.demo.limits import Limits, RateLimit, visitor_of


def test_every_limit_must_be_positive():
    for name in ("max_bytes", "max_pixels", "max_seconds", "requests_per_minute"):
        with pytest.raises(ValueError, match=f"{name} is 0 but must be positive"):
            Limits(**{name: 0})


def test_a_bucket_empties_and_refills():
    now = [0.0]
    rate = RateLimit(6, clock=lambda: now[0])
    assert [rate.admit("a") for _ in range(7)] == [True] * 6 + [False]
    assert rate.admit("b"), "one address does not pay for another"
    now[0] = 10.0  # one request's worth
    assert [rate.admit("a") for _ in range(2)] == [True, False]
    now[0] = 1e6
    assert [rate.admit("a") for _ in range(7)] == [True] * 6 + [False], "a bucket holds a minute's worth at most"


def test_addresses_are_forgotten():
    rate = RateLimit(1, clock=lambda: 0.0, max_addresses=2)
    assert not [rate.admit(each) for each in "aabc"][1]
    assert rate.admit("a"), "the longest unused was dropped"


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_whom_limits_count(address, visitor):
    assert visitor_of(address) == visitor
