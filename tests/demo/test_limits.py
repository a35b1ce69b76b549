"""Sizes and rates."""

from __future__ import annotations

import asyncio

import pytest

from san.demo.limits import Limits, RateLimit
from san.web.limits import ConcurrencyLimit, visitor_of


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


def test_turns_of_one_address_leave_room_for_others():
    async def crowd() -> list[str]:
        turns, holding, done = ConcurrencyLimit(3, 2), asyncio.Event(), []

        async def visit(address: str, stays: bool) -> None:
            async with turns.take(address):
                if stays:
                    await holding.wait()
                done.append(address)

        greedy = [asyncio.create_task(visit("a", True)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.wait_for(visit("b", False), 5)
        assert done == ["b"], "the address that holds all its turns does not hold those of others"
        holding.set()
        await asyncio.gather(*greedy)
        assert not turns._of_address, "addresses are forgotten"
        return done

    assert asyncio.run(crowd()) == ["b", *"aaaaa"]


def test_addresses_take_turns():
    async def line() -> list[str]:
        turns, done = ConcurrencyLimit(1, 1), []

        async def visit(address: str) -> None:
            async with turns.take(address[0]):
                await asyncio.sleep(0)
                done.append(address)

        await asyncio.gather(*(visit(each) for each in ("a1", "a2", "a3", "b1", "c1")))
        return done

    assert asyncio.run(line()) == ["a1", "b1", "c1", "a2", "a3"]


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
