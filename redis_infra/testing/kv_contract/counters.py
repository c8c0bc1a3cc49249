"""Contract of counters: incr without an op_id. Exact, atomic, within 64 bits, the time to live kept."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.exceptions import CounterOverflow, StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.contract.calling import eventually
from redis_infra.testing.kv_contract.calling import BINARY, SHORT, StoreCall, StoreFixtures

__all__ = ["MAX", "MIN", "NO_INTEGERS", "CountersContract"]

MAX, MIN = 2**63 - 1, -(2**63)
NO_INTEGERS: list[str | bytes] = [
    "", "text", " 1", "1 ", "+1", "01", "-0", "--1", "-", "1.0", "1e3", "0x1", "1_000", "1\n",
    "\u0663", "\u00b2",
    "9223372036854775808", "-9223372036854775809", "1" * 30, "9" * 5000, BINARY, b"1\x00",
]  # fmt: skip


class CountersContract(StoreFixtures):
    """Numbers that several callers change."""

    def test_incr_creates_at_one(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.incr, "n") == 1
        assert call(store.get, "n") == "1"
        assert call(store.ttl, "n") == -1

    def test_incr_adds_and_returns_the_sum(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "n", 41)
        assert call(store.incr, "n") == 42
        assert call(store.incr, "n", 10) == 52
        assert call(store.incr, "n", by=-60) == -8
        assert call(store.get, "n") == "-8"

    @pytest.mark.parametrize("by", [5, -5, 0, MAX, MIN])
    def test_incr_creates_with_what_is_added(self, store: KVStore, call: StoreCall, by: int) -> None:
        assert call(store.incr, "n", by) == by
        assert call(store.get, "n") == str(by)

    def test_a_count_is_an_int(self, store: KVStore, call: StoreCall) -> None:
        assert type(call(store.incr, "n")) is int

    @pytest.mark.parametrize("value", ["41", b"41", 41])
    def test_digits_count_however_they_came(self, store: KVStore, call: StoreCall, value: Any) -> None:
        call(store.set, "n", value)
        assert call(store.incr, "n") == 42

    def test_what_mset_set_counts(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"n": 41})
        assert call(store.incr, "n") == 42

    @pytest.mark.parametrize("value", [2**53, -(2**53), 2**62 + 1])
    def test_numbers_that_a_float_cannot_hold_are_exact(
        self, store: KVStore, call: StoreCall, value: int
    ) -> None:
        """Some have JSON or a script on their way, whose numbers are floats."""
        call(store.set, "n", value)
        assert call(store.incr, "n") == value + 1
        assert call(store.incr, "n", -2) == value - 1
        assert call(store.get, "n") == str(value - 1)
        assert call(store.incr, "m", value + 1) == value + 1

    def test_the_ends_of_64_bits_can_be_reached(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"up": MAX - 1, "down": MIN + 1})
        assert call(store.incr, "up") == MAX
        assert call(store.incr, "down", -1) == MIN
        assert call(store.incr, "up", MIN) == -1
        assert call(store.get, "down") == str(MIN)

    @pytest.mark.parametrize(("value", "by"), [(MAX, 1), (MIN, -1), (1, MAX), (-2, MAX * -1), (MAX, MAX)])
    def test_beyond_64_bits_is_an_overflow_and_changes_nothing(
        self, store: KVStore, call: StoreCall, value: int, by: int
    ) -> None:
        call(store.set, "n", value, ex=60)
        with pytest.raises(CounterOverflow) as caught:
            call(store.incr, "n", by)
        assert isinstance(caught.value, OverflowError)
        assert isinstance(caught.value, StoreTypeError)
        assert call(store.get, "n") == str(value)
        assert 0 < call(store.pttl, "n") <= 60_000

    @pytest.mark.parametrize("value", NO_INTEGERS, ids=lambda value: ascii(value[:24]))
    def test_what_is_no_integer_is_refused_and_stays(
        self, store: KVStore, call: StoreCall, value: str | bytes
    ) -> None:
        call(store.set, "k", value)
        with pytest.raises(StoreTypeError) as caught:
            call(store.incr, "k")
        assert not isinstance(caught.value, CounterOverflow)
        assert call(store.get_bytes, "k") == (value.encode() if isinstance(value, str) else value)

    def test_a_huge_value_is_refused_and_stays(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "1" * 2**20)
        with pytest.raises(StoreTypeError):
            call(store.incr, "k")
        assert call(store.get, "k") == "1" * 2**20

    def test_incr_keeps_the_time_to_live(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "n", 1, ex=60)
        assert call(store.incr, "n") == 2
        assert 0 < call(store.pttl, "n") <= 60_000

    def test_incr_of_what_has_expired_begins_again_and_stays(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "n", 41, px=SHORT)
        assert eventually(lambda: call(store.get, "n") is None)
        assert call(store.incr, "n") == 1
        assert call(store.ttl, "n") == -1

    def test_incr_does_not_lengthen_a_life(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "n", 1, px=SHORT)
        call(store.incr, "n")
        call(store.expire, "n", SHORT / 1000)
        assert eventually(lambda: call(store.get, "n") is None)

    def test_a_window_counter_ends(self, store: KVStore, call: StoreCall) -> None:
        """As limiters count: begin with a time to live where nothing is, and count within."""
        call(store.set, "n", 0, nx=True, px=SHORT)
        assert eventually(lambda: call(store.set, "n", 10, nx=True, ex=60))
        assert call(store.incr, "n") == 11
