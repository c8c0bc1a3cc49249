"""Entries of the query cache as bytes: what goes in comes out, and what is none of ours is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.querycache import entries
from redis_infra.querycache.entries import NOBODY, Entry, new_token, pack_entry, placeholder, read_entry
from redis_infra.querycache.loading import judge

TOKENS = st.binary(min_size=8, max_size=8).filter(lambda token: token != NOBODY)
STAMPS = st.lists(st.binary(min_size=8, max_size=8), max_size=5)
MOMENTS = st.integers(0, 2**63)


def packed(**changes: Any) -> bytes:
    facts = {"fresh": 2000, "dead": 3000, "cost": 0.5, "version": 1, "stamps": [], "payload": b"value"}
    return pack_entry(b"tokentok", **{**facts, **changes})


def entry(**changes: Any) -> Entry:
    found = read_entry(packed(**changes))
    assert found is not None
    return found


@given(TOKENS, MOMENTS, MOMENTS, st.floats(0, 4000), st.integers(1, 65535), STAMPS, st.binary(max_size=50))
def test_what_goes_in_comes_out(
    token: bytes, fresh: int, dead: int, cost: float, version: int, stamps: list[bytes], payload: bytes
) -> None:
    raw = pack_entry(
        token, fresh=fresh, dead=dead, cost=cost, version=version, stamps=stamps, payload=payload
    )
    assert read_entry(raw) == (token, fresh, dead, int(cost * 1e6), version, b"".join(stamps), payload)
    assert entries.is_entry(raw)
    assert entries.filler_of(raw) == token


def test_a_very_dear_value_is_as_dear_as_there_is_room_for() -> None:
    assert entry(cost=1e9).cost == 2**32 - 1


@given(st.binary(max_size=80))
def test_what_is_none_of_ours_is_none(raw: bytes) -> None:
    assert read_entry(raw) is None or raw.startswith(b"\xc1\x51\x01")


@pytest.mark.parametrize("size", range(60))
def test_half_an_entry_is_none(size: int) -> None:
    whole = packed(payload=b"")
    assert (read_entry(whole[:size]) is None) == (size < len(whole))


def test_a_placeholder_has_no_value() -> None:
    assert read_entry(placeholder()) is None
    assert entries.is_entry(placeholder())
    assert entries.filler_of(placeholder()) == NOBODY


@given(TOKENS, st.integers(0, 10**13 - 1))
def test_a_lease_changes_nothing_else(token: bytes, ends: int) -> None:
    raw = packed(stamps=[b"stampsta"])
    leased = entries.with_lease(raw, token, ends)
    assert entries.lease_of(leased) == (token, ends)
    assert read_entry(leased) == read_entry(raw)
    assert len(leased) == len(raw)


def test_tokens_are_eight_bytes_that_nobody_has_had() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {8}


@pytest.mark.parametrize(
    ("version", "stamps", "now", "is_good"),
    [
        (1, b"", 2999, True),
        (1, b"", 3000, False),
        (2, b"", 0, False),
        (1, b"stampsta", 0, False),
    ],
)
def test_an_entry_is_good_for_its_version_and_its_stamps_until_it_is_dead(
    version: int, stamps: bytes, now: int, is_good: bool
) -> None:
    assert entry().is_good(version, stamps, now) == is_good


@given(st.floats(0, 1, exclude_max=True))
def test_an_expired_entry_is_due_for_everybody(draw: float) -> None:
    assert entry().is_due(2000, lambda: draw)


@pytest.mark.parametrize(
    ("now", "draw", "is_due"),
    [
        (1900, 0.99, True),  # 100 ms before its end a value of 500 ms is anybody's turn, nearly
        (1900, 0.1, False),
        (1000, 0.99, True),
        (1000, 0.5, False),
        (0, 0.99, True),
        (0, 0.9, False),
    ],
)
def test_early_is_likelier_the_nearer_the_end(now: int, draw: float, is_due: bool) -> None:
    assert entry().is_due(now, lambda: draw) == is_due


def test_what_cost_nothing_is_not_computed_early() -> None:
    assert not entry(cost=0).is_due(1999, lambda: 1 - 2**-53)


def test_long_before_the_end_no_lot_is_drawn() -> None:
    """The hit path has no time for a logarithm."""

    def never() -> float:
        raise AssertionError("drawn")

    assert not entry(fresh=100_000, dead=100_000).is_due(0, never)


@pytest.mark.parametrize("stamps", [[None], [b"otherone"], [b"stampsta", b"stampsta"], []])
def test_another_stamp_or_none_makes_an_entry_worthless(stamps: list[bytes | None]) -> None:
    now = entries.now_ms()
    raw = packed(fresh=now + 9000, dead=now + 9000, cost=0, stamps=[b"stampsta"])
    assert judge(raw, stamps, 1) == (None, True, b"tokentok")
    assert judge(raw, [b"stampsta"], 1).entry is not None


@pytest.mark.parametrize("raw", [None, b"", b"plain", placeholder()])
def test_what_has_no_value_is_due(raw: bytes | None) -> None:
    assert judge(raw, [], 1) == (None, True, NOBODY)
