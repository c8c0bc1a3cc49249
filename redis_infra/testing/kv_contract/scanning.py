"""Contract of scan: every key that begins with a prefix, once, and no other's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from redis_infra.kv import KVStore
from redis_infra.kv.commands import Commands
from redis_infra.testing.contract.calling import eventually
from redis_infra.testing.kv_contract.calling import SHORT, StoreCall, StoreFixtures
from redis_infra.testing.kv_contract.values import KEYS

__all__ = ["ScanningContract"]

MANY = 3_000
PATTERNS = ["*", "?", "[ab]", "[^a]", "[", "]", "\\", "\\*", "^", "-", "%", "_", "{a}", "a*b", "**", "."]


class ScanningContract(StoreFixtures):
    """Finding keys."""

    def test_an_empty_store_has_no_keys(self, store: KVStore, call: StoreCall) -> None:
        assert call.scan(store) == []
        assert call.scan(store, "prefix") == []

    def test_keys_are_found_by_how_they_begin(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"user:1": 1, "user:2": 2, "User:3": 3, "a:user:": 4, "user": 5})
        assert sorted(call.scan(store, "user:")) == ["user:1", "user:2"]
        assert sorted(call.scan(store, "user")) == ["user", "user:1", "user:2"]
        assert call.scan(store, "user:1") == ["user:1"]
        assert call.scan(store, "missing") == []

    def test_every_key_begins_with_nothing(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": 1, "b": 2, "": 3})
        assert sorted(call.scan(store)) == ["", "a", "b"]
        assert sorted(call.scan(store, "")) == ["", "a", "b"]

    def test_the_prefix_may_be_named(self, store: KVStore) -> None:
        store.mset({"a": 1, "b": 2})
        assert list(store.scan(prefix="a")) == ["a"]

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_a_prefix_is_no_pattern(self, store: KVStore, call: StoreCall, pattern: str) -> None:
        call(store.mset, {f"{pattern}k": 1, "ak": 2, "ab": 3, "a": 4, "xb": 5, "\\ak": 6, "axxb": 7})
        expected = {f"{pattern}k"} | ({"\\ak"} if pattern == "\\" else set())
        assert set(call.scan(store, pattern)) == expected

    def test_odd_keys_are_found_as_they_are(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, dict.fromkeys(KEYS, "v"))
        assert sorted(call.scan(store)) == sorted(KEYS)

    @pytest.mark.parametrize(
        "prefix", ["ü", "ключ", "\U0001f40e", "\x00", "\uffff", "\U0010ffff", "\n", "\x7f"], ids=ascii
    )
    def test_any_text_is_a_prefix(self, store: KVStore, call: StoreCall, prefix: str) -> None:
        keys = [prefix, f"{prefix}\x00", f"{prefix}a", f"{prefix}\U0010ffff"]
        call(store.mset, dict.fromkeys([*keys, "other", f"a{prefix}"], "v"))
        assert sorted(call.scan(store, prefix)) == sorted(keys)

    def test_thousands_of_keys_come_once_each(self, store: KVStore, call: StoreCall) -> None:
        keys = {f"user:{number}" for number in range(MANY)}
        call(store.mset, {**dict.fromkeys(keys, "v"), **{f"other:{number}": 1 for number in range(500)}})
        found = call.scan(store, "user:")
        assert len(found) == MANY
        assert set(found) == keys

    def test_what_has_expired_is_not_found(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "stays", 1)
        call(store.set, "gone", 1, px=SHORT)
        assert eventually(lambda: call(store.get, "gone") is None)
        assert call.scan(store) == ["stays"]

    def test_what_was_deleted_and_set_again_comes_once(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": 1, "b": 1})
        assert sorted(call.scan(store)) == ["a", "b"]
        call(store.delete, "a")
        assert call.scan(store) == ["b"]
        call(store.mset, {"a": 2, "c": 2})
        assert sorted(call.scan(store)) == ["a", "b", "c"]

    def test_keys_of_others_are_not_found(self, store: KVStore, call: StoreCall) -> None:
        """Of other sites, of the caches, of what only begins alike."""
        home = store.commands.home
        others = [Commands(each) for each in ("", f"{home[:-1]}2:", f"x{home}", home.upper(), home[1:])]
        call(store.set, "k", "ours")
        for other in others:
            call(store.call, other.set("foreign", "theirs"))
        try:
            assert call.scan(store) == ["k"]
            assert call.scan(store, "foreign") == []
            assert call(store.get, "foreign") is None
        finally:
            for other in others:
                call(store.call, other.delete("foreign"))

    def test_what_stays_is_found_while_others_come_and_go(self, store: KVStore, call: StoreCall) -> None:
        stays = {f"stays:{number}" for number in range(1_500)}
        call(store.mset, {**{f"goes:{number}": 1 for number in range(1_500)}, **dict.fromkeys(stays, 1)})

        def come_and_go(mine: StoreCall) -> None:
            for start in range(0, 1_500, 100):
                mine(store.delete, [f"goes:{number}" for number in range(start, start + 100)])
                mine(store.mset, {f"comes:{number}": 1 for number in range(start, start + 100)})

        with call.beside(come_and_go) as changing:
            done = False
            while not done:
                done = changing.done()
                found = call.scan(store)
                assert len(found) == len(set(found))
                assert stays <= set(found)

    def test_what_a_scan_finds_can_be_deleted_meanwhile(self, store: KVStore) -> None:
        """The way in which people delete by prefix."""
        store.mset({f"k{number}": 1 for number in range(2_500)})
        for key in store.scan("k"):
            store.delete(key)
        assert list(store.scan()) == []

    def test_a_scan_can_be_left_and_two_go_on_side_by_side(self, store: KVStore) -> None:
        keys = {f"k{number}" for number in range(2_500)}
        store.mset(dict.fromkeys(keys, 1))
        left, one, other = store.scan(), store.scan(), store.scan()
        next(left)
        assert {*one, *other} == keys
        assert next(left) in keys

    def test_an_async_scan_can_be_left(self, store: KVStore) -> None:
        store.mset({f"k{number}": 1 for number in range(2_500)})

        async def first() -> Any:
            scan = store.ascan("k")
            try:
                return await anext(aiter(scan))
            finally:
                await scan.aclose()  # type: ignore[attr-defined]

        assert asyncio.run(first()).startswith("k")
