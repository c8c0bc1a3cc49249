"""Contract of namespaces: clear and delete_pattern remove what is theirs, and nothing of anybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures
from redis_infra.testing.contract.keys import hashed

__all__ = ["NamespacesContract"]

_HASHED = f"{hashed.__module__}.{hashed.__name__}"
# Prefixes, one of which a careless pattern takes for another.
_NEIGHBOURS = [("", "other"), ("site", "site2"), ("a*", "ab"), ("a?", "ab"), ("[ab]", "a"), ("a\\", "a")]
_neighbours = pytest.mark.parametrize(("mine", "theirs"), _NEIGHBOURS)


class NamespacesContract(ContractFixtures):
    """What is under an alias' prefix."""

    @_neighbours
    def test_clear_leaves_other_prefixes_alone(
        self, call: Call, make_cache: Callable[..., Any], mine: str, theirs: str
    ) -> None:
        own, other = make_cache(KEY_PREFIX=mine), make_cache(KEY_PREFIX=theirs)
        call(own.set_many, {"a": 1, "b": 2})
        call(other.set_many, {"a": 3, "b": 4})
        call(own.clear)
        assert call(own.get_many, ["a", "b"]) == {}
        assert call(other.get_many, ["a", "b"]) == {"a": 3, "b": 4}

    def test_clear_follows_a_prefix_that_was_reassigned(
        self, cache: Any, call: Call, monkeypatch: Any
    ) -> None:
        call(cache.set, "k", "old prefix")
        monkeypatch.setattr(cache, "key_prefix", "other")
        call(cache.set, "k", "new prefix")
        call(cache.clear)
        assert call(cache.get, "k") is None
        monkeypatch.undo()
        assert call(cache.get, "k") == "old prefix"

    def test_clear_removes_all_versions(self, cache: Any, call: Call) -> None:
        for version in (0, 1, 2, 10):
            call(cache.set, "k", version, version=version)
        call(cache.clear)
        assert not any(call(cache.has_key, "k", version=version) for version in (0, 1, 2, 10))

    def test_clear_under_a_key_function_of_the_sites_own(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        own = make_cache(KEY_FUNCTION=_HASHED, KEY_PREFIX="p")
        other = make_cache(KEY_FUNCTION=_HASHED, KEY_PREFIX="p2")
        for each in (own, other, cache):
            call(each.set_many, {"a": 1, "b": 2})
        call(own.set, "a", 1, version=2)
        call(own.clear)
        assert call(own.get_many, ["a", "b"]) == {}
        assert call(own.has_key, "a", version=2) is False
        assert call(other.get_many, ["a", "b"]) == call(cache.get_many, ["a", "b"]) == {"a": 1, "b": 2}

    def test_delete_pattern_removes_and_counts_what_matches(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"user:1": 1, "user:2": 2, "room:1": 3})
        assert call(cache.delete_pattern, "user:*") == 2
        assert call(cache.get_many, ["user:1", "user:2", "room:1"]) == {"room:1": 3}

    def test_delete_pattern_that_matches_nothing_counts_zero(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        assert call(cache.delete_pattern, "missing*") == 0
        assert call(cache.get, "k") == 1

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("k?", {"k", "k10", "other"}),
            ("k[12]", {"k", "k10", "k3", "other"}),
            ("k[^12]", {"k", "k1", "k10", "k2", "other"}),
            ("k[1-2]*", {"k", "k3", "other"}),
            ("*", set()),
            ("k", {"k1", "k10", "k2", "k3", "other"}),
        ],
    )
    def test_patterns_are_redis_patterns(self, cache: Any, call: Call, pattern: str, left: set[str]) -> None:
        keys = ["k", "k1", "k2", "k3", "k10", "other"]
        call(cache.set_many, dict.fromkeys(keys, 1))
        assert call(cache.delete_pattern, pattern) == len(keys) - len(left)
        assert set(call(cache.get_many, keys)) == left

    def test_a_backslash_escapes_in_a_pattern(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {"a*": 1, "ab": 2})
        assert call(cache.delete_pattern, r"a\*") == 1
        assert call(cache.get_many, ["a*", "ab"]) == {"ab": 2}

    @_neighbours
    def test_delete_pattern_takes_the_prefix_literally(
        self, call: Call, make_cache: Callable[..., Any], mine: str, theirs: str
    ) -> None:
        own, other = make_cache(KEY_PREFIX=mine), make_cache(KEY_PREFIX=theirs)
        call(own.set_many, {"a": 1, "b": 2})
        call(other.set_many, {"a": 3, "b": 4})
        assert call(own.delete_pattern, "*") == 2
        assert call(other.get_many, ["a", "b"]) == {"a": 3, "b": 4}

    def test_delete_pattern_keeps_to_one_version(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        call(cache.set, "k", 2, version=2)
        assert call(cache.delete_pattern, "k*") == 1
        assert call(cache.get, "k", version=2) == 2
        assert call(cache.delete_pattern, "k*", version=2) == 1

    def test_delete_pattern_takes_a_batch_size(self, cache: Any, call: Call) -> None:
        call(cache.set_many, {f"k{number}": 1 for number in range(30)})
        assert call(cache.delete_pattern, "k*", itersize=2) == 30

    def test_delete_pattern_under_a_key_function_of_the_sites_own(
        self, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        own = make_cache(KEY_FUNCTION=_HASHED, KEY_PREFIX="p")
        call(own.set_many, {"a1": 1, "a2": 2, "b1": 3})
        assert call(own.delete_pattern, "a*") == 2
        assert call(own.get_many, ["a1", "a2", "b1"]) == {"b1": 3}
