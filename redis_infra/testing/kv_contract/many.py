"""Contract of several keys: mget, mset, delete, exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from redis_infra.exceptions import StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.contract.calling import eventually
from redis_infra.testing.kv_contract.calling import BINARY, SHORT, StoreCall, StoreFixtures

__all__ = ["ManyContract"]

MANY = 3_000
SHAPES: dict[str, Callable[[list[str]], tuple[Any, ...]]] = {
    "arguments": tuple,
    "a list": lambda keys: (keys,),
    "a tuple": lambda keys: (tuple(keys),),
    "an iterator": lambda keys: (iter(keys),),
    "the keys of a dict": lambda keys: (dict.fromkeys(keys),),
    "both": lambda keys: (keys[0], keys[1:]),
}


class ManyContract(StoreFixtures):
    """Several keys at a time."""

    def test_mget_is_in_the_order_of_the_keys(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": "1", "b": "2"})
        assert call(store.mget, "b", "missing", "a", "b") == ["2", None, "1", "2"]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_keys_come_in_any_shape(self, store: KVStore, call: StoreCall, shape: str) -> None:
        def keys() -> Iterable[Any]:
            return SHAPES[shape](["a", "b", "c"])

        call(store.mset, {"a": 1, "b": 2})
        assert call(store.mget, *keys()) == ["1", "2", None]
        assert call(store.exists, *keys()) == 2
        assert call(store.delete, *keys()) == 2
        assert call.scan(store) == []

    def test_mget_of_bytes_that_are_no_text_is_refused(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": "text", "b": BINARY})
        with pytest.raises(StoreTypeError):
            call(store.mget, "a", "b")
        assert call(store.mget, "a") == ["text"]

    def test_mget_of_an_empty_value_is_no_none(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "")
        assert call(store.mget, "k") == [""]

    def test_mset_sets_whatever_set_does(self, store: KVStore, call: StoreCall) -> None:
        values = {"text": "ü€", "bytes": BINARY, "number": -7, "float": 1.5, "empty": "", "": "empty key"}
        assert call(store.mset, values) is None
        assert call(store.mget, "text", "number", "float", "empty", "") == [
            "ü€",
            "-7",
            "1.5",
            "",
            "empty key",
        ]
        assert call(store.get_bytes, "bytes") == BINARY

    def test_mset_replaces_and_ends_times_to_live(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "old", ex=60)
        call(store.mset, {"k": "new", "other": 1})
        assert call(store.get, "k") == "new"
        assert call(store.ttl, "k") == -1

    def test_delete_counts_what_was_there(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": 1, "b": "", "other": 3})
        assert call(store.delete, "a", "b", "missing", "a") == 2
        assert call(store.mget, "a", "b", "other") == [None, None, "3"]
        assert call(store.delete, "a") == 0

    def test_exists_counts_a_key_as_often_as_it_is_named(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"a": 1, "b": ""})
        assert call(store.exists, "a", "b", "missing", "a") == 3
        assert call(store.exists, "missing") == 0

    def test_counts_are_ints(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", 1)
        assert type(call(store.exists, "k")) is int
        assert type(call(store.delete, "k")) is int

    def test_what_has_expired_does_not_count(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "gone", 1, px=SHORT)
        call(store.set, "k", 1)
        assert eventually(lambda: call(store.exists, "gone") == 0)
        assert call(store.mget, "gone", "k") == [None, "1"]
        assert call(store.delete, "gone", "k") == 1

    def test_thousands_of_keys(self, store: KVStore, call: StoreCall) -> None:
        values = {f"k{number}": str(number) for number in range(MANY)}
        call(store.mset, values)
        assert call(store.mget, values) == list(values.values())
        assert call(store.exists, values) == MANY
        assert call(store.delete, values) == MANY

    def test_megabytes(self, store: KVStore, call: StoreCall) -> None:
        values = {f"k{number}": str(number) * 2**20 for number in range(3)}
        call(store.mset, values)
        assert call(store.mget, values) == list(values.values())
