"""Contract of versions: each is a namespace of its own, 0 is one of them, and a key can move between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures, eventually

__all__ = ["VersionsContract"]

_SHORT = 0.06  # seconds


class VersionsContract(ContractFixtures):
    """Key versions."""

    @pytest.mark.parametrize("version", [0, 2, 10, -1])
    def test_a_version_is_a_namespace_of_its_own(self, cache: Any, call: Call, version: int) -> None:
        call(cache.set, "k", "default")
        call(cache.set, "k", "versioned", version=version)
        assert call(cache.get, "k") == "default"
        assert call(cache.get, "k", version=version) == "versioned"

    def test_version_zero_is_not_the_default_version(self, cache: Any, call: Call) -> None:
        """``version or default`` is what other backends do."""
        call(cache.set, "k", 1)
        assert call(cache.get, "k", version=0) is None
        assert call(cache.has_key, "k", version=0) is False
        assert call(cache.delete, "k", version=0) is False
        assert call(cache.add, "k", 2, version=0) is True
        assert call(cache.get, "k") == 1

    def test_every_operation_takes_a_version(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"n": 1, "k": "x"}, version=2)
        assert call(cache.get_many, ["n", "k"]) == {}
        assert call(cache.incr, "n", version=2) == 2
        assert call(cache.decr, "n", version=2) == 1
        assert call(cache.touch, "k", version=2) is True
        assert call(cache.touch, "k") is False
        assert call(cache.has_key, "k", version=2) is True
        assert call(cache.get_or_set, "k", "y", version=2) == "x"
        assert call(cache.get_many, ["n", "k"], version=2) == {"n": 1, "k": "x"}
        call(cache.delete_many, ["n", "k"], version=1)
        assert call(cache.has_key, "n", version=2) is True
        call(cache.delete_many, ["n", "k"], version=2)
        assert call(cache.has_key, "n", version=2) is False

    def test_the_alias_version_is_the_default(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        second = make_cache(VERSION=2)
        call(second.set, "k", 1)
        assert call(cache.get, "k") is None
        assert call(cache.get, "k", version=2) == 1
        assert call(second.get, "k", version=1) is None

    def test_incr_version_moves_the_key_and_returns_its_version(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "value")
        assert call(cache.incr_version, "k") == 2
        assert call(cache.get, "k") is None
        assert call(cache.get, "k", version=2) == "value"

    def test_incr_version_by_more_and_from_elsewhere(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "value", version=2)
        assert call(cache.incr_version, "k", delta=3, version=2) == 5
        assert call(cache.get, "k", version=2) is None
        assert call(cache.get, "k", version=5) == "value"

    def test_decr_version_moves_the_key_back(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "value", version=2)
        assert call(cache.decr_version, "k", version=2) == 1
        assert call(cache.get, "k") == "value"
        assert call(cache.decr_version, "k") == 0
        assert call(cache.get, "k", version=0) == "value"

    @pytest.mark.parametrize("name", ["incr_version", "decr_version"])
    def test_the_version_of_a_missing_key_is_a_value_error(self, cache: Any, call: Call, name: str) -> None:
        with pytest.raises(ValueError, match="missing"):
            call(getattr(cache, name), "missing")
        with pytest.raises(ValueError, match="missing"):
            call(getattr(cache, name), "missing", version=2)

    @pytest.mark.parametrize("name", ["incr_version", "decr_version"])
    def test_a_stored_none_can_change_its_version(self, cache: Any, call: Call, name: str) -> None:
        call(cache.set, "k", None)
        version = call(getattr(cache, name), "k")
        assert call(cache.has_key, "k") is False
        assert call(cache.get, "k", "default", version=version) is None

    @pytest.mark.parametrize("value", [7, 1.5, {"a": [1]}, b"\xc1"], ids=repr)
    def test_any_value_can_change_its_version(self, cache: Any, call: Call, value: Any) -> None:
        call(cache.set, "k", value)
        assert call(cache.get, "k", version=call(cache.incr_version, "k")) == value

    def test_incr_version_replaces_what_is_in_the_other_version(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "new")
        call(cache.set, "k", "old", version=2)
        assert call(cache.incr_version, "k") == 2
        assert call(cache.get, "k", version=2) == "new"

    def test_a_delta_of_zero_keeps_the_key(self, cache: Any, call: Call) -> None:
        """Get, set and delete in that order would lose it."""
        call(cache.set, "k", "value")
        assert call(cache.incr_version, "k", 0) == 1
        assert call(cache.get, "k") == "value"

    def test_a_new_version_does_not_lengthen_a_life(self, cache: Any, call: Call) -> None:
        def move_what_is_there() -> bool:
            call(cache.set, "k", 1, timeout=_SHORT)
            try:
                return bool(call(cache.incr_version, "k") == 2)
            except ValueError:
                return False

        assert eventually(move_what_is_there)
        assert eventually(lambda: call(cache.get, "k", version=2) is None)
