"""Contract of many keys at once: get_many, set_many, delete_many, clear."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["ManyContract"]

# The shapes in which callers hand over keys. Some can be read once only, some know no length.
SHAPES: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "dict": dict.fromkeys,
    "keys": lambda keys: dict.fromkeys(keys).keys(),
    "iterator": iter,
    "generator": lambda keys: (key for key in keys),
}
_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


class ManyContract(ContractFixtures):
    """Many keys in one call."""

    def test_get_many_leaves_out_what_is_missing(self, cache: Any, call: Call) -> None:
        call(cache.set, "a", 1)
        call(cache.set, "b", "two")
        assert call(cache.get_many, ["a", "b", "missing"]) == {"a": 1, "b": "two"}

    def test_get_many_of_what_is_missing_is_an_empty_dict(self, cache: Any, call: Call) -> None:
        assert call(cache.get_many, ["missing", "too"]) == {}

    @_shapes
    def test_get_many_takes_any_iterable(self, cache: Any, call: Call, shape: Callable[..., Any]) -> None:
        call(cache.set_many, {"a": 1, "b": 2})
        assert call(cache.get_many, shape(["a", "b", "c"])) == {"a": 1, "b": 2}

    @_shapes
    def test_get_many_of_no_keys_is_an_empty_dict(
        self, cache: Any, call: Call, shape: Callable[..., Any]
    ) -> None:
        assert call(cache.get_many, shape([])) == {}

    def test_get_many_answers_a_key_named_twice_once(self, cache: Any, call: Call) -> None:
        call(cache.set, "a", 1)
        assert call(cache.get_many, ["a", "missing", "a"]) == {"a": 1}

    def test_get_many_answers_by_the_callers_keys(self, cache: Any, call: Call) -> None:
        call(cache.set, 5, "five")
        assert call(cache.get_many, [5]) == {5: "five"}

    def test_set_many_stores_all(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a": 1, "b": "two", "c": None})
        assert call(cache.get_many, ["a", "b", "c"]) == {"a": 1, "b": "two", "c": None}

    def test_set_many_returns_the_keys_that_failed_which_are_none(self, cache: Any, call: Call) -> None:
        assert call(cache.set_many, {"a": 1, "b": 2}) == []

    def test_set_many_of_nothing_returns_an_empty_list(self, cache: Any, call: Call) -> None:
        assert call(cache.set_many, {}) == []

    def test_set_many_takes_any_mapping(self, cache: Any, call: Call) -> None:
        call(cache.set_many, MappingProxyType({"a": 1}))
        assert call(cache.get, "a") == 1

    def test_set_many_replaces(self, cache: Any, call: Call) -> None:
        call(cache.set, "a", "old")
        call(cache.set_many, {"a": "new"})
        assert call(cache.get, "a") == "new"

    def test_many_more_keys_than_one_command_should_hold(self, cache: Any, call: Call) -> None:
        data = {f"k{number}": number for number in range(1100)}
        assert call(cache.set_many, data) == []
        assert call(cache.get_many, data) == data
        call(cache.delete_many, data)
        assert call(cache.get_many, data) == {}

    def test_delete_many_removes_what_it_names(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a": 1, "b": 2, "c": 3})
        call(cache.delete_many, ["a", "b", "missing"])
        assert call(cache.get_many, ["a", "b", "c"]) == {"c": 3}

    @_shapes
    def test_delete_many_takes_any_iterable(self, cache: Any, call: Call, shape: Callable[..., Any]) -> None:
        call(cache.set_many, {"a": 1, "b": 2, "c": 3})
        call(cache.delete_many, shape(["a", "b"]))
        assert call(cache.get_many, ["a", "b", "c"]) == {"c": 3}

    @_shapes
    def test_delete_many_of_no_keys_is_none(self, cache: Any, call: Call, shape: Callable[..., Any]) -> None:
        call(cache.set, "a", 1)
        assert call(cache.delete_many, shape([])) is None
        assert call(cache.get, "a") == 1

    def test_delete_many_counts_what_was_there(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a": 1, "b": 2})
        assert call(cache.delete_many, ["a", "b", "missing"]) == 2

    def test_delete_many_counts_a_key_named_twice_once(self, cache: Any, call: Call) -> None:
        call(cache.set, "a", 1)
        assert call(cache.delete_many, ["a", "a"]) == 1

    def test_delete_many_of_what_is_missing_counts_zero(self, cache: Any, call: Call) -> None:
        assert call(cache.delete_many, ["missing", "too"]) == 0

    def test_clear_removes_all(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a": 1, "b": None})
        call(cache.set, "forever", 1, timeout=None)
        assert call(cache.clear) in (None, True)
        assert call(cache.get_many, ["a", "b", "forever"]) == {}

    def test_clear_of_nothing_is_fine(self, cache: Any, call: Call) -> None:
        call(cache.clear)
        assert call(cache.clear) in (None, True)
