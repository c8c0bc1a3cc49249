"""Contract of one key: get, set, add, delete, has_key, and what a stored ``None`` is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from django.core.cache.backends.base import BaseCache

from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["BasicsContract"]

# As Django's own code and documentation call a cache: positional arguments as well as named ones.
_CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "add": [(("k", 1, 60, 2), {}), (("k",), {"value": 1, "timeout": 60, "version": 2})],
    "get": [(("k", None, 2), {}), (("k",), {"default": None, "version": 2})],
    "set": [(("k", 1, 60, 2), {}), (("k",), {"value": 1, "timeout": 60, "version": 2})],
    "touch": [(("k", 60, 2), {}), (("k",), {"timeout": 60, "version": 2})],
    "delete": [(("k", 2), {}), (("k",), {"version": 2})],
    "get_many": [((["k"], 2), {}), ((), {"keys": ["k"], "version": 2})],
    "get_or_set": [(("k", 1, 60, 2), {}), (("k",), {"default": 1, "timeout": 60, "version": 2})],
    "has_key": [(("k", 2), {}), (("k",), {"version": 2})],
    "incr": [(("k", 1, 2), {}), (("k",), {"delta": 1, "version": 2})],
    "decr": [(("k", 1, 2), {}), (("k",), {"delta": 1, "version": 2})],
    "set_many": [(({"k": 1}, 60, 2), {}), ((), {"data": {"k": 1}, "timeout": 60, "version": 2})],
    "delete_many": [((["k"], 2), {}), ((), {"keys": ["k"], "version": 2})],
    "incr_version": [(("k", 1, 2), {}), (("k",), {"delta": 1, "version": 2})],
    "decr_version": [(("k", 1, 2), {}), (("k",), {"delta": 1, "version": 2})],
}


class BasicsContract(ContractFixtures):
    """One key at a time."""

    def test_is_a_django_cache(self, cache: Any) -> None:
        assert isinstance(cache, BaseCache)

    @pytest.mark.parametrize("prefix", ["", "a"])
    @pytest.mark.parametrize("name", _CALLS)
    def test_takes_the_arguments_that_django_passes(self, cache: Any, name: str, prefix: str) -> None:
        """By position and by name, in Django's order; django-redis' ``**kwargs`` would take anything."""
        signature = inspect.signature(getattr(cache, prefix + name))
        for args, kwargs in _CALLS[name]:
            signature.bind(*args, **kwargs)

    def test_a_missing_key_is_none(self, cache: Any, call: Call) -> None:
        assert call(cache.get, "missing") is None

    def test_a_missing_key_is_the_callers_default(self, cache: Any, call: Call) -> None:
        default = object()
        assert call(cache.get, "missing", default) is default
        assert call(cache.get, "missing", default=default) is default

    def test_what_was_set_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "value")
        assert call(cache.get, "k", "default") == "value"

    def test_set_replaces(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old")
        call(cache.set, "k", "new")
        assert call(cache.get, "k") == "new"

    def test_set_returns_none_or_true(self, cache: Any, call: Call) -> None:
        """None as Django's backends do, True as django-redis does; never False for a plain set."""
        assert call(cache.set, "k", 1) in (None, True)

    def test_set_nx_stores_where_nothing_is(self, cache: Any, call: Call) -> None:
        assert call(cache.set, "k", 1, nx=True) is True
        assert call(cache.get, "k") == 1

    def test_set_nx_leaves_what_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "first")
        assert call(cache.set, "k", "second", nx=True) is False
        assert call(cache.get, "k") == "first"

    def test_set_xx_replaces_what_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "first")
        assert call(cache.set, "k", "second", xx=True) is True
        assert call(cache.get, "k") == "second"

    def test_set_xx_stores_nothing_where_nothing_is(self, cache: Any, call: Call) -> None:
        assert call(cache.set, "k", 1, xx=True) is False
        assert call(cache.has_key, "k") is False

    def test_add_stores_where_nothing_is(self, cache: Any, call: Call) -> None:
        assert call(cache.add, "k", "first") is True
        assert call(cache.get, "k") == "first"

    def test_add_leaves_what_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "first")
        assert call(cache.add, "k", "second") is False
        assert call(cache.get, "k") == "first"

    def test_add_lets_one_of_many_in(self, cache: Any, call: Call) -> None:
        assert sorted(call.at_once(20, cache.add, "k", 1)) == [False] * 19 + [True]

    def test_add_after_delete_stores_again(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old")
        call(cache.delete, "k")
        assert call(cache.add, "k", "new") is True
        assert call(cache.get, "k") == "new"

    def test_delete_tells_whether_something_was_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        assert call(cache.delete, "k") is True
        assert call(cache.delete, "k") is False

    def test_what_was_deleted_is_gone(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"k": 1, "other": 2})
        call(cache.delete, "k")
        assert call(cache.get, "k") is None
        assert call(cache.get, "other") == 2

    def test_has_key_is_a_bool(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 0)
        assert call(cache.has_key, "k") is True
        assert call(cache.has_key, "missing") is False

    def test_in_is_has_key(self, cache: Any) -> None:
        cache.set("k", 0)
        assert "k" in cache
        assert "missing" not in cache

    def test_a_stored_none_is_no_miss(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", None)
        assert call(cache.get, "k", "default") is None
        assert call(cache.has_key, "k") is True

    def test_a_stored_none_is_in_get_many(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", None)
        assert call(cache.get_many, ["k", "missing"]) == {"k": None}

    def test_add_does_not_replace_a_stored_none(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", None)
        assert call(cache.add, "k", 1) is False
        assert call(cache.get, "k", "default") is None

    def test_add_stores_none(self, cache: Any, call: Call) -> None:
        assert call(cache.add, "k", None) is True
        assert call(cache.get, "k", "default") is None

    def test_delete_of_a_stored_none_is_true(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", None)
        assert call(cache.delete, "k") is True
