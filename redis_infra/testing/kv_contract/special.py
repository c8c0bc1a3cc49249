"""Contracts that not every store can show: keys of other types, and a store that is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.exceptions import StoreError, StoreTypeError, TransactionDiscarded
from redis_infra.kv import Handle, KVStore
from redis_infra.testing.kv_contract.calling import StoreCall, StoreFixtures

__all__ = ["FullStoreContract", "OtherTypesContract"]


class OtherTypesContract(StoreFixtures):
    """Lists that others keep under our keys."""

    @pytest.fixture
    def make_list(self) -> Callable[[str], None]:
        """Put a list under a key of the store."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `make_list`")

    @pytest.mark.parametrize("name", ["get", "get_bytes", "incr"])
    def test_a_list_is_refused_and_stays(
        self, store: KVStore, call: StoreCall, make_list: Callable[[str], None], name: str
    ) -> None:
        make_list("list")
        with pytest.raises(StoreTypeError) as caught:
            call(getattr(store, name), "list")
        assert caught.value.index is None
        with pytest.raises(StoreTypeError):
            call(store.incr, "list", op_id="a")
        assert call(store.exists, "list") == 1

    def test_a_list_is_one_error_in_a_pipeline(
        self, store: KVStore, call: StoreCall, make_list: Callable[[str], None]
    ) -> None:
        make_list("list")
        for pipeline in (store.pipeline(), store.transaction()):
            pipeline.set("k", "v")
            pipeline.get("list")
            pipeline.get("k")
            stored, refused, text = call(pipeline.execute)
            assert (stored, text) == (True, "v")
            assert isinstance(refused, StoreTypeError)
            assert refused.index == 1

    def test_what_asks_for_no_value_takes_any_type(
        self, store: KVStore, call: StoreCall, make_list: Callable[[str], None]
    ) -> None:
        make_list("list")
        assert call(store.exists, "list") == 1
        assert call(store.ttl, "list") == -1
        assert call(store.expire, "list", 60) is True
        assert call.scan(store) == ["list"]
        assert call(store.set, "list", "v", nx=True) is False
        assert call(store.delete, "list") == 1

    def test_set_replaces_a_list(
        self, store: KVStore, call: StoreCall, make_list: Callable[[str], None]
    ) -> None:
        make_list("list")
        assert call(store.set, "list", "v", xx=True) is True
        assert call(store.get, "list") == "v"

    def test_mget_has_nothing_for_a_list(
        self, store: KVStore, call: StoreCall, make_list: Callable[[str], None]
    ) -> None:
        """As Redis has it."""
        make_list("list")
        call(store.set, "k", "v")
        assert call(store.mget, "list", "k") == [None, "v"]


class FullStoreContract(StoreFixtures):
    """A store without room refuses what needs some, and forgets nothing that it was not told to."""

    @pytest.fixture
    def full_store(self) -> Any:
        """A store in which ``old`` is ``"old"``, ``n`` is ``1``, and nothing else has room."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `full_store`")

    def test_what_needs_room_is_refused_and_changes_nothing(
        self, full_store: KVStore, call: StoreCall
    ) -> None:
        with pytest.raises(StoreError):
            call(full_store.set, "new", "x" * 100_000)
        with pytest.raises(StoreError):
            call(full_store.mset, {"old": "new", "new": "x" * 100_000})
        assert call(full_store.mget, "old", "new", "n") == ["old", None, "1"]

    def test_a_transaction_without_room_is_discarded_as_a_whole(
        self, full_store: KVStore, call: StoreCall
    ) -> None:
        transaction = full_store.transaction()
        handles: tuple[Handle[Any], ...] = (
            transaction.incr("n"),
            transaction.set("new", "x" * 100_000),
            transaction.delete("old"),
        )
        with pytest.raises(TransactionDiscarded):
            call(transaction.execute)
        for handle in handles:
            with pytest.raises(TransactionDiscarded):
                _ = handle.value
        assert call(full_store.mget, "old", "new", "n") == ["old", None, "1"]
        assert call(transaction.execute) == []

    def test_a_pipeline_does_what_there_is_room_for(self, full_store: KVStore, call: StoreCall) -> None:
        pipeline = full_store.pipeline()
        pipeline.get("old")
        pipeline.set("new", "x" * 100_000)
        pipeline.delete("old")
        text, refused, deleted = call(pipeline.execute)
        assert (text, deleted) == ("old", 1)
        assert isinstance(refused, StoreError)

    def test_what_needs_none_is_served(self, full_store: KVStore, call: StoreCall) -> None:
        assert call(full_store.get, "old") == "old"
        assert call(full_store.exists, "old") == 1
        assert call(full_store.delete, "old") == 1
        assert call.scan(full_store) == ["n"]
