"""Contract of counters: incr, decr and incr_or_create. Atomic, never silent about overflow, TTL kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

import pytest

from redis_infra.exceptions import CounterOverflow
from redis_infra.testing.contract.calling import Call, ContractFixtures, eventually

__all__ = ["CountersContract"]

_SHORT = 0.06  # seconds
_MAX, _MIN = 2**63 - 1, -(2**63)


class Level(IntEnum):
    """An integer that is not only an integer."""

    LOW = 1


class Count(int):
    """A subclass of int, as ORMs and type checkers make them."""


class CountersContract(ContractFixtures):
    """Numbers that several callers change."""

    def test_incr_adds_and_returns_the_sum(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 41)
        assert call(cache.incr, "n") == 42
        assert call(cache.incr, "n", 10) == 52
        assert call(cache.incr, "n", -2) == 50
        assert call(cache.get, "n") == 50

    def test_decr_subtracts_and_returns_the_difference(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 43)
        assert call(cache.decr, "n") == 42
        assert call(cache.decr, "n", 10) == 32
        assert call(cache.decr, "n", -2) == 34
        assert call(cache.get, "n") == 34

    def test_a_counter_may_be_negative(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1)
        assert call(cache.decr, "n", 3) == -2
        assert call(cache.incr, "n", 1) == -1
        assert call(cache.get, "n") == -1

    def test_incr_by_zero_reads(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 7)
        assert call(cache.incr, "n", 0) == 7

    def test_counters_return_ints(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1)
        assert type(call(cache.incr, "n")) is int
        assert type(call(cache.decr, "n")) is int
        assert type(call(cache.get, "n")) is int

    @pytest.mark.parametrize("name", ["incr", "decr"])
    def test_a_missing_counter_is_a_value_error_and_stays_missing(
        self, cache: Any, call: Call, name: str
    ) -> None:
        with pytest.raises(ValueError, match="missing"):
            call(getattr(cache, name), "missing")
        assert call(cache.has_key, "missing") is False

    def test_an_expired_counter_is_missing(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1, timeout=_SHORT)
        assert eventually(lambda: call(cache.get, "n") is None)
        with pytest.raises(ValueError, match="n"):
            call(cache.incr, "n")

    def test_an_added_counter_counts(self, cache: Any, call: Call) -> None:
        call(cache.add, "n", 5)
        assert call(cache.incr, "n") == 6

    def test_a_counter_of_set_many_counts(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"n": 5})
        assert call(cache.incr, "n") == 6

    def test_incr_past_64_bits_is_an_overflow_and_changes_nothing(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", _MAX)
        with pytest.raises(CounterOverflow):
            call(cache.incr, "n")
        assert call(cache.get, "n") == _MAX

    def test_decr_past_64_bits_is_an_overflow_and_changes_nothing(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", _MIN)
        with pytest.raises(CounterOverflow):
            call(cache.decr, "n")
        assert call(cache.get, "n") == _MIN

    @pytest.mark.parametrize("delta", [2**63, -(2**63) - 1, 10**30])
    def test_a_delta_of_more_than_64_bits_is_an_overflow(self, cache: Any, call: Call, delta: int) -> None:
        call(cache.set, "n", 1 if delta > 0 else -1)
        with pytest.raises(CounterOverflow):
            call(cache.incr, "n", delta)
        assert call(cache.get, "n") == (1 if delta > 0 else -1)

    def test_counting_on_from_more_than_64_bits_is_exact_or_an_overflow(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 10**30)
        with suppress(CounterOverflow):
            assert call(cache.incr, "n") == 10**30 + 1
        assert call(cache.get, "n") in (10**30, 10**30 + 1)

    @pytest.mark.parametrize("value", [2**53, -(2**53), 2**62 + 1])
    def test_numbers_that_a_float_cannot_hold_are_exact(self, cache: Any, call: Call, value: int) -> None:
        """A script's numbers are floats; a reply that has been one is off by one from here on."""
        call(cache.set, "n", value)
        assert call(cache.incr, "n") == value + 1
        assert call(cache.decr, "n", 2) == value - 1
        assert call(cache.get, "n") == value - 1

    def test_incr_or_create_is_exact_where_a_float_is_not(self, cache: Any, call: Call) -> None:
        assert call(cache.incr_or_create, "n", 2**53 + 1) == 2**53 + 1
        assert call(cache.incr_or_create, "n", 2**53 + 2) == 2**54 + 3

    def test_the_overflow_is_an_overflow_error_and_no_value_error(self, cache: Any, call: Call) -> None:
        """A ValueError would read as "missing", which callers answer by starting again at one."""
        call(cache.set, "n", _MAX)
        with pytest.raises(OverflowError) as caught:
            call(cache.incr, "n")
        assert not isinstance(caught.value, ValueError)

    def test_the_ends_of_64_bits_can_be_reached(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"up": _MAX - 1, "down": _MIN + 1})
        assert call(cache.incr, "up") == _MAX
        assert call(cache.decr, "down") == _MIN

    def test_floats_count(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1.5)
        assert call(cache.incr, "n") == 2.5
        assert call(cache.decr, "n", 2) == 0.5
        assert call(cache.get, "n") == 0.5

    def test_a_fractional_delta_counts(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1)
        assert call(cache.incr, "n", 0.5) == 1.5
        assert call(cache.get, "n") == 1.5

    @pytest.mark.parametrize(
        ("value", "total"), [(True, 2), (False, 1), (Level.LOW, 2), (Count(4), 5)], ids=str
    )
    def test_what_is_an_int_in_python_counts(self, cache: Any, call: Call, value: int, total: int) -> None:
        call(cache.set, "n", value)
        assert call(cache.incr, "n") == total
        assert call(cache.get, "n") == total

    @pytest.mark.parametrize("value", ["text", "12", None, [1]], ids=repr)
    def test_what_is_no_number_is_a_type_error_and_stays(self, cache: Any, call: Call, value: Any) -> None:
        call(cache.set, "k", value)
        with pytest.raises(TypeError):
            call(cache.incr, "k")
        with pytest.raises(TypeError):
            call(cache.decr, "k")
        assert call(cache.get, "k", "default") == value

    def test_incr_does_not_lengthen_a_life(self, cache: Any, call: Call) -> None:
        def count_what_is_there() -> bool:
            call(cache.set, "n", 1, timeout=_SHORT)
            return _counts(call, cache.incr, "n")

        assert eventually(count_what_is_there)
        assert eventually(lambda: call(cache.get, "n") is None)

    def test_incr_of_a_float_does_not_lengthen_a_life(self, cache: Any, call: Call) -> None:
        def count_what_is_there() -> bool:
            call(cache.set, "n", 1.5, timeout=_SHORT)
            return _counts(call, cache.incr, "n")

        assert eventually(count_what_is_there)
        assert eventually(lambda: call(cache.get, "n") is None)

    def test_concurrent_incr_counts_each_once(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 0)
        assert sorted(call.at_once(50, cache.incr, "n")) == list(range(1, 51))
        assert call(cache.get, "n") == 50

    def test_concurrent_decr_counts_each_once(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 50)
        assert sorted(call.at_once(50, cache.decr, "n")) == list(range(50))

    def test_concurrent_incr_of_a_float_counts_each_once(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 0.5)
        assert sorted(call.at_once(20, cache.incr, "n")) == [number + 0.5 for number in range(1, 21)]

    def test_incr_or_create_creates_with_the_delta(self, cache: Any, call: Call) -> None:
        assert call(cache.incr_or_create, "n") == 1
        assert call(cache.incr_or_create, "m", 5) == 5
        assert call(cache.incr_or_create, "o", delta=-2) == -2
        assert call(cache.get_many, ["n", "m", "o"]) == {"n": 1, "m": 5, "o": -2}

    def test_incr_or_create_counts_on(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 40)
        assert call(cache.incr_or_create, "n", 2) == 42
        assert call(cache.incr, "n") == 43

    def test_incr_or_create_ends_what_it_created(self, cache: Any, call: Call) -> None:
        assert call(cache.incr_or_create, "n", timeout=_SHORT) == 1
        assert eventually(lambda: call(cache.get, "n") is None)

    def test_incr_or_create_does_not_lengthen_a_life(self, cache: Any, call: Call) -> None:
        def count_twice() -> bool:
            call(cache.delete, "n")
            call(cache.incr_or_create, "n", timeout=_SHORT)
            return bool(call(cache.incr_or_create, "n", timeout=None) == 2)

        assert eventually(count_twice)
        assert eventually(lambda: call(cache.get, "n") is None)

    def test_incr_or_create_takes_a_version(self, cache: Any, call: Call) -> None:
        assert call(cache.incr_or_create, "n", version=2) == 1
        assert call(cache.get, "n") is None
        assert call(cache.get, "n", version=2) == 1

    def test_incr_or_create_without_a_timeout_takes_the_alias_default(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        assert call(make_cache(TIMEOUT=None).incr_or_create, "n") == 1
        assert call(cache.get, "n") == 1

    def test_incr_or_create_past_64_bits_is_an_overflow(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", _MAX)
        with pytest.raises(CounterOverflow):
            call(cache.incr_or_create, "n")
        assert call(cache.get, "n") == _MAX

    def test_concurrent_incr_or_create_counts_each_once(self, cache: Any, call: Call) -> None:
        assert sorted(call.at_once(50, cache.incr_or_create, "n")) == list(range(1, 51))


def _counts(call: Call, method: Callable[..., Any], key: str) -> bool:
    """Count, and say whether the counter was still there."""
    try:
        call(method, key)
    except ValueError:
        return False
    return True
