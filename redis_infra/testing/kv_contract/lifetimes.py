"""Contract of times to live: ex, px, keepttl, expire, ttl and pttl, with Redis' rounding."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from redis_infra.kv import KVStore
from redis_infra.testing.contract.calling import eventually
from redis_infra.testing.kv_contract.calling import SHORT, StoreCall, StoreFixtures

__all__ = ["LifetimesContract"]

SLACK = 5_000
"""Milliseconds within which a test reads what it has set."""
LONGEST = 2**61 - 1
"""Milliseconds that a store can count."""


class LifetimesContract(StoreFixtures):
    """What lives how long."""

    @pytest.mark.parametrize(
        ("named", "milliseconds"),
        [
            ({"ex": 60}, 60_000),
            ({"ex": 60.25}, 60_250),
            ({"ex": timedelta(minutes=2)}, 120_000),
            ({"px": 60_001}, 60_001),
            ({"ex": 10**12}, 10**15),
        ],
        ids=str,
    )
    def test_set_says_how_long_it_lives(
        self, store: KVStore, call: StoreCall, named: dict[str, Any], milliseconds: int
    ) -> None:
        assert call(store.set, "k", "v", **named) is True
        assert milliseconds - SLACK < call(store.pttl, "k") <= milliseconds

    def test_what_has_no_time_to_live_stays(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")
        assert call(store.ttl, "k") == -1
        assert call(store.pttl, "k") == -1

    def test_what_is_missing_has_none(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.ttl, "missing") == -2
        assert call(store.pttl, "missing") == -2

    def test_the_longest_life_can_be_had(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", px=LONGEST)
        assert call(store.pttl, "k") > LONGEST // 2
        assert call(store.get, "k") == "v"

    def test_ttl_is_rounded_to_the_nearest_second(self, store: KVStore, call: StoreCall) -> None:
        """Not down and not up: (ms + 500) // 1000, seen while it goes past the half."""
        call(store.set, "k", "v", px=1_600)
        before = 1_600
        while before >= 1_500:
            before = call(store.pttl, "k")
            seconds = call(store.ttl, "k")
            after = call(store.pttl, "k")
            assert (after + 500) // 1000 <= seconds <= (before + 500) // 1000

    def test_in_its_last_half_second_ttl_is_zero(self, store: KVStore, call: StoreCall) -> None:
        def read() -> int:
            call(store.set, "k", "v", px=450)
            return int(call(store.ttl, "k"))

        assert eventually(lambda: read() == 0)

    @pytest.mark.parametrize(
        "named", [{"px": SHORT}, {"ex": SHORT / 1000}, {"ex": timedelta(milliseconds=SHORT)}], ids=str
    )
    def test_what_has_expired_is_gone(self, store: KVStore, call: StoreCall, named: dict[str, Any]) -> None:
        call(store.set, "k", "v", **named)
        assert eventually(lambda: call(store.get, "k") is None)
        assert call(store.get_bytes, "k") is None
        assert call(store.mget, "k") == [None]
        assert call(store.exists, "k") == 0
        assert call(store.ttl, "k") == -2
        assert call(store.pttl, "k") == -2
        assert call(store.expire, "k", 60) is False
        assert call(store.delete, "k") == 0
        assert call.scan(store) == []

    def test_nothing_goes_before_its_time(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", px=60_000)
        call(store.set, "short", "v", px=SHORT)
        assert eventually(lambda: call(store.get, "short") is None)
        assert call(store.get, "k") == "v"

    def test_the_smallest_time_is_a_millisecond(self, store: KVStore, call: StoreCall) -> None:
        """Of a fraction of one nothing must remain that stays for ever, or is refused."""
        assert call(store.set, "k", "v", ex=0.000_01) is True
        assert eventually(lambda: call(store.get, "k") is None)

    def test_set_ends_the_time_to_live(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", ex=60)
        call(store.set, "k", "w")
        assert call(store.ttl, "k") == -1

    def test_set_begins_a_new_time_to_live(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", ex=60)
        call(store.set, "k", "w", ex=600)
        assert call(store.ttl, "k") > 60

    def test_keepttl_keeps_it(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", ex=60)
        assert call(store.set, "k", "w", keepttl=True) is True
        assert call(store.get, "k") == "w"
        assert 0 < call(store.pttl, "k") <= 60_000

    def test_keepttl_of_what_stays_or_is_missing_stays(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "stays", "v")
        for key in ("stays", "missing"):
            assert call(store.set, key, "w", keepttl=True) is True
            assert call(store.ttl, key) == -1

    def test_keepttl_of_what_has_expired_stays(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", px=SHORT)
        assert eventually(lambda: call(store.get, "k") is None)
        call(store.set, "k", "w", keepttl=True)
        assert call(store.ttl, "k") == -1

    def test_keepttl_goes_with_conditions(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", ex=60)
        assert call(store.set, "k", "w", keepttl=True, nx=True) is False
        assert call(store.set, "k", "w", keepttl=True, xx=True) is True
        assert 0 < call(store.pttl, "k") <= 60_000
        assert call(store.set, "missing", "w", keepttl=True, xx=True) is False

    def test_conditions_go_with_a_time_to_live(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.set, "k", "v", nx=True, ex=60) is True
        assert 0 < call(store.pttl, "k") <= 60_000
        assert call(store.set, "k", "v", xx=True, px=600_000) is True
        assert call(store.pttl, "k") > 60_000

    # expire

    @pytest.mark.parametrize(
        ("seconds", "milliseconds"),
        [(60, 60_000), (60.25, 60_250), (timedelta(minutes=2), 120_000), (10**12, 10**15)],
        ids=str,
    )
    def test_expire_says_how_long_it_still_lives(
        self, store: KVStore, call: StoreCall, seconds: Any, milliseconds: int
    ) -> None:
        call(store.set, "k", "v")
        assert call(store.expire, "k", seconds) is True
        assert milliseconds - SLACK < call(store.pttl, "k") <= milliseconds
        assert call(store.get, "k") == "v"

    def test_expire_replaces_a_time_to_live(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v", ex=60)
        assert call(store.expire, "k", 600) is True
        assert call(store.ttl, "k") > 60
        assert call(store.expire, "k", 60) is True
        assert call(store.ttl, "k") <= 60

    def test_expire_ends_a_life(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")
        call(store.expire, "k", SHORT / 1000)
        assert eventually(lambda: call(store.get, "k") is None)

    def test_expire_of_what_is_missing_is_false(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.expire, "missing", 60) is False
        assert call(store.expire, "missing", 0) is False
        assert call(store.exists, "missing") == 0

    @pytest.mark.parametrize("seconds", [0, -1, -0.000_01, timedelta(0), -(10**12)], ids=str)
    def test_expire_without_time_left_deletes(self, store: KVStore, call: StoreCall, seconds: Any) -> None:
        call(store.set, "k", "v")
        assert call(store.expire, "k", seconds) is True
        assert call(store.exists, "k") == 0
        assert call(store.expire, "k", seconds) is False
