"""Contract of timeouts: zero, negative, ``None``, fractions, text, the alias' default; and touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures, eventually

__all__ = ["TimeoutsContract"]

_SHORT = 0.06  # seconds: long enough to be seen, short enough to wait for
_gone = pytest.mark.parametrize("timeout", [0, -1, -3600, -0.5])


class TimeoutsContract(ContractFixtures):
    """When a key ends."""

    @_gone
    def test_set_without_time_to_live_deletes(self, cache: Any, call: Call, timeout: float) -> None:
        call(cache.set, "k", "old")
        call(cache.set, "k", "new", timeout=timeout)
        assert call(cache.get, "k") is None
        assert call(cache.has_key, "k") is False

    @_gone
    def test_set_many_without_time_to_live_deletes(self, cache: Any, call: Call, timeout: float) -> None:
        call(cache.set, "a", "old")
        assert call(cache.set_many, {"a": 1, "b": 2}, timeout=timeout) == []
        assert call(cache.get_many, ["a", "b"]) == {}

    @_gone
    def test_add_without_time_to_live_succeeds_and_leaves_nothing(
        self, cache: Any, call: Call, timeout: float
    ) -> None:
        assert call(cache.add, "k", 1, timeout=timeout) is True
        assert call(cache.get, "k") is None

    @_gone
    def test_add_without_time_to_live_leaves_what_is_there(
        self, cache: Any, call: Call, timeout: float
    ) -> None:
        call(cache.set, "k", "first")
        assert call(cache.add, "k", "second", timeout=timeout) is False
        assert call(cache.get, "k") == "first"

    @_gone
    def test_touch_without_time_to_live_deletes(self, cache: Any, call: Call, timeout: float) -> None:
        call(cache.set, "k", 1)
        assert call(cache.touch, "k", timeout) is True
        assert call(cache.get, "k") is None
        assert call(cache.touch, "k", timeout) is False

    def test_what_expired_by_zero_can_be_added_again(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old", timeout=0)
        assert call(cache.add, "k", "new") is True
        assert call(cache.get, "k") == "new"

    def test_get_or_set_without_time_to_live_answers_and_stores_nothing(self, cache: Any, call: Call) -> None:
        assert call(cache.get_or_set, "k", lambda: 1, timeout=0) == 1
        assert call(cache.get, "k") is None

    def test_a_key_ends_when_its_time_is_over(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=_SHORT)
        assert eventually(lambda: call(cache.get, "k") is None)
        assert call(cache.has_key, "k") is False
        assert call(cache.add, "k", 2) is True

    def test_keys_of_set_many_and_add_end_too(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a": 1, "b": 2}, timeout=_SHORT)
        call(cache.add, "c", 3, timeout=_SHORT)
        assert eventually(lambda: not call(cache.get_many, ["a", "b", "c"]))

    def test_a_fraction_of_a_second_is_not_zero(self, cache: Any, call: Call) -> None:
        """Cut off to whole seconds, 0.9 would be a delete."""
        call(cache.set, "set", 1, timeout=0.9)
        call(cache.add, "add", 1, timeout=0.9)
        call(cache.set_many, {"many": 1}, timeout=0.9)
        call(cache.set, "touch", 1)
        assert call(cache.touch, "touch", 0.9) is True
        keys = ["set", "add", "many", "touch"]
        assert call(cache.get_many, keys) == dict.fromkeys(keys, 1)

    def test_less_than_a_millisecond_is_not_an_error(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=0.0001)
        assert eventually(lambda: call(cache.get, "k") is None)

    def test_a_timeout_may_be_text(self, cache: Any, call: Call) -> None:
        """As settings and environments deliver it; Django's Redis backend takes it, LocMemCache does not."""
        call(cache.set, "k", 1, timeout="60")
        assert call(cache.get, "k") == 1
        call(cache.set, "k", 1, timeout="0")
        assert call(cache.get, "k") is None

    @pytest.mark.parametrize("timeout", [60 * 60 * 24 * 30 + 1, 10**12, 10**20])
    def test_a_very_long_time_is_not_an_error(self, cache: Any, call: Call, timeout: int) -> None:
        """30 days are where memcached begins to take it for a date; 10**20 s overflow Redis' milliseconds."""
        call(cache.set, "k", 1, timeout=timeout)
        call(cache.add, "added", 1, timeout=timeout)
        call(cache.set_many, {"many": 1}, timeout=timeout)
        assert call(cache.touch, "k", timeout) is True
        assert call(cache.get_many, ["k", "added", "many"]) == {"k": 1, "added": 1, "many": 1}

    def test_none_is_for_ever(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=None)
        call(cache.add, "added", 1, timeout=None)
        call(cache.set_many, {"many": 1}, timeout=None)
        assert call(cache.get_many, ["k", "added", "many"]) == {"k": 1, "added": 1, "many": 1}

    def test_set_for_ever_replaces_a_short_life(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"k": 1, "witness": 1}, timeout=_SHORT)
        call(cache.set, "k", 2, timeout=None)
        assert eventually(lambda: call(cache.get, "witness") is None)
        assert call(cache.get, "k") == 2

    def test_add_does_not_change_the_life_of_what_is_there(self, cache: Any, call: Call) -> None:
        def add_to_what_is_there() -> bool:
            call(cache.set, "k", 1, timeout=_SHORT)
            return call(cache.add, "k", 2, timeout=None) is False

        assert eventually(add_to_what_is_there)
        assert eventually(lambda: call(cache.get, "k") is None)

    def test_without_a_timeout_the_alias_default_holds(
        self, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        default_zero = make_cache(TIMEOUT=0)
        call(default_zero.set, "k", 1)
        call(default_zero.set_many, {"many": 1})
        assert call(default_zero.add, "added", 1) is True
        assert call(default_zero.get_many, ["k", "many", "added"]) == {}

    def test_a_timeout_overrides_the_alias_default(self, call: Call, make_cache: Callable[..., Any]) -> None:
        default_zero = make_cache(TIMEOUT=0)
        call(default_zero.set, "k", 1, timeout=60)
        call(default_zero.set_many, {"many": 1}, timeout=None)
        assert call(default_zero.get_many, ["k", "many"]) == {"k": 1, "many": 1}

    @pytest.mark.parametrize("default", [None, "60", "nonsense"])
    def test_the_alias_default_may_be_none_text_or_nonsense(
        self, call: Call, make_cache: Callable[..., Any], default: Any
    ) -> None:
        """What is no number is Django's 300 seconds."""
        cache = make_cache(TIMEOUT=default)
        call(cache.set, "k", 1)
        assert call(cache.get, "k") == 1

    def test_touch_of_a_missing_key_is_false(self, cache: Any, call: Call) -> None:
        assert call(cache.touch, "missing") is False
        assert call(cache.touch, "missing", 60) is False
        assert call(cache.touch, "missing", None) is False
        assert call(cache.has_key, "missing") is False

    def test_touch_of_a_key_that_is_there_is_true(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        assert call(cache.touch, "k") is True
        assert call(cache.touch, "k", 60) is True
        assert call(cache.touch, "k", None) is True
        assert call(cache.get, "k") == 1

    def test_touch_for_ever_of_what_lives_for_ever_is_true(self, cache: Any, call: Call) -> None:
        """Redis' PERSIST answers 0 here, and other backends pass that on."""
        call(cache.set, "k", 1, timeout=None)
        assert call(cache.touch, "k", None) is True

    @pytest.mark.parametrize("timeout", [60, None])
    def test_touch_lengthens(self, cache: Any, call: Call, timeout: int | None) -> None:
        def touch_what_is_there() -> bool:
            call(cache.set_many, {"k": 1, "witness": 1}, timeout=_SHORT)
            return bool(call(cache.touch, "k", timeout))

        assert eventually(touch_what_is_there)
        assert eventually(lambda: call(cache.get, "witness") is None)
        assert call(cache.get, "k") == 1

    def test_touch_shortens(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=None)
        assert call(cache.touch, "k", _SHORT) is True
        assert eventually(lambda: call(cache.get, "k") is None)

    def test_touch_keeps_the_value(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", {"a": [1, None]})
        call(cache.touch, "k", 60)
        assert call(cache.get, "k") == {"a": [1, None]}

    def test_touch_without_a_timeout_takes_the_alias_default(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        call(cache.set, "k", 1)
        assert call(make_cache(TIMEOUT=0).touch, "k") is True
        assert call(cache.get, "k") is None
