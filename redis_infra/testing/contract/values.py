"""Contract of values: what was stored comes back, type and all; of what cannot be stored the caller hears."""

from __future__ import annotations

import datetime
import decimal
import math
import pickle
import uuid
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures
from redis_infra.testing.contract.counters import Count, Level

__all__ = ["ValuesContract"]

VALUES: list[Any] = [
    0, 1, -1, -5, 2**63 - 1, -(2**63), 2**63, 10**30, -(10**30), True, False, Level.LOW, Count(7),
    0.0, 1.5, -0.25, 1e300, math.inf, -math.inf, 3 + 4j,
    "", "text", "123", "-5", "-", "0", " 7 ", "\u00fcn\u00ef\u00e7\u00f8d\u00e9 \u20ac \U0001f40e",
    "\u0663", "\x00", "\ud800",
    b"", b"bytes", b"123", b"-5", b"-", b"\xc1\x00", b"\x80\x05", bytes(range(256)),
    None, (), (1, "two", (3,)), [], [1, [2, None]], {}, {1: "int key", "1": "text key", (2, 3): None},
    {"a": {"b": [1, 2]}}, {1, 2}, frozenset("a"),
    datetime.datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=datetime.UTC), datetime.timedelta(days=-1),
    decimal.Decimal("1.10"), uuid.UUID(int=7), range(3), len, decimal.Decimal,
]  # fmt: skip
_MEGABYTE = 2**20


class NotStorable(Exception):
    """What a value's own pickling raises."""


class Sour:
    """A value whose pickling fails in a way of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def _unpicklable() -> Any:
    return lambda: None


_PICKLING_ERRORS = (pickle.PicklingError, AttributeError, TypeError)


class ValuesContract(ContractFixtures):
    """What goes in and comes out."""

    @pytest.mark.parametrize("value", VALUES, ids=ascii)
    def test_a_value_comes_back_as_it_was(self, cache: Any, call: Call, value: Any) -> None:
        call(cache.set, "set", value)
        call(cache.add, "added", value)
        call(cache.set_many, {"many": value})
        got = [call(cache.get, "set", "default"), *call(cache.get_many, ["added", "many"]).values()]
        assert got == [value] * 3
        assert {type(each) for each in got} == {type(value)}

    @pytest.mark.parametrize("value", [1, True, "1", b"1", 1.0], ids=repr)
    def test_values_that_look_alike_stay_apart(self, cache: Any, call: Call, value: Any) -> None:
        """A decoder that tries int() first would take most of these for a number."""
        call(cache.set, "k", value)
        assert repr(call(cache.get, "k")) == repr(value)

    def test_a_large_value_comes_back(self, cache: Any, call: Call) -> None:
        value = "x" * _MEGABYTE
        call(cache.set, "k", value)
        assert call(cache.get, "k") == value

    def test_what_is_stored_is_a_copy(self, cache: Any, call: Call) -> None:
        value = [1]
        call(cache.set, "k", value)
        value.append(2)
        assert call(cache.get, "k") == [1]

    def test_what_is_returned_is_a_copy(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", [1])
        call(cache.get, "k").append(2)
        call(cache.get_many, ["k"])["k"].append(2)
        assert call(cache.get, "k") == [1]

    @pytest.mark.parametrize("name", ["set", "add"])
    def test_an_unpicklable_value_is_the_callers_error(self, cache: Any, call: Call, name: str) -> None:
        with pytest.raises(_PICKLING_ERRORS):
            call(getattr(cache, name), "k", _unpicklable())
        assert call(cache.has_key, "k") is False

    def test_an_unpicklable_value_leaves_the_old_one(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old")
        with pytest.raises(_PICKLING_ERRORS):
            call(cache.set, "k", _unpicklable())
        assert call(cache.get, "k") == "old"

    def test_one_unpicklable_value_keeps_set_many_from_storing_any(self, cache: Any, call: Call) -> None:
        call(cache.set, "good", "old")
        with pytest.raises(_PICKLING_ERRORS):
            call(cache.set_many, {"good": "new", "bad": _unpicklable()})
        assert call(cache.get_many, ["good", "bad"]) == {"good": "old"}

    def test_an_unpicklable_value_of_get_or_set_is_the_callers_error(self, cache: Any, call: Call) -> None:
        with pytest.raises(_PICKLING_ERRORS):
            call(cache.get_or_set, "k", _unpicklable)
        assert call(cache.has_key, "k") is False

    @pytest.mark.parametrize(
        "error",
        [NotStorable("mine"), pickle.PickleError("mine"), ConnectionError("mine"), TimeoutError("mine")],
        ids=lambda error: type(error).__name__,
    )
    def test_what_pickling_raises_is_no_fault_of_redis(
        self, cache: Any, call: Call, error: Exception
    ) -> None:
        """Even one that looks like a broken connection reaches the caller, and nobody calls it an outage."""
        call(cache.set, "k", "old")
        before = getattr(cache, "is_degraded", None)
        with pytest.raises(type(error), match="mine"):
            call(cache.set, "k", Sour(error))
        with pytest.raises(type(error), match="mine"):
            call(cache.add, "other", Sour(error))
        assert call(cache.get, "k") == "old"
        assert getattr(cache, "is_degraded", None) == before
