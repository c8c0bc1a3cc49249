"""Contract of batch: a pipeline given as data."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.exceptions import StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.kv_contract.calling import BINARY, StoreCall, StoreFixtures

__all__ = ["BatchesContract"]

WRONG: list[tuple[Any, type[Exception]]] = [
    ("get", ValueError), (b"get", ValueError), (5, ValueError), (None, ValueError), ((), ValueError),
    ([], ValueError), ({"get": "k"}, ValueError), (("flushall",), ValueError), (("execute",), ValueError),
    (("scan", ""), ValueError), (("_taken",), ValueError), ((5, "k"), ValueError), ((None,), ValueError),
    (("get",), TypeError), (("get", "k", "extra"), TypeError), (("get", "k", {"ex": 5}), TypeError),
    (("get", 5), TypeError), (("set", "k"), TypeError), (("set", "k", None), TypeError),
    (("set", "k", "v", {"ttl": 5}), TypeError), (("set", "k", "v", 60), TypeError),
    (("set", "k", "v", {"ex": 0}), ValueError), (("set", "k", "v", {"nx": True, "xx": True}), ValueError),
    (("incr", "k", "1"), TypeError), (("mset", {}), ValueError), (("delete",), ValueError),
    (("mget",), ValueError),
]  # fmt: skip


class BatchesContract(StoreFixtures):
    """Calls as data."""

    def test_calls_are_executed_in_their_order(self, store: KVStore, call: StoreCall) -> None:
        calls = [
            ("set", "n", 41),
            ("incr", "n"),
            ("get", "n"),
            ("get_bytes", "n"),
            ("delete", "n"),
            ("get", "n"),
        ]
        assert call(store.batch, calls) == [True, 42, "42", b"42", 1, None]

    @pytest.mark.parametrize(
        ("item", "answer"),
        [
            (("set", "k", "v", {"ex": 60}), True),
            (["set", "k", BINARY, {"px": 5, "nx": True}], False),
            (("SET", "k", 1.5, {"keepttl": True}), True),
            (("set", "k", "v", {}), True),
            (("incr", "n", 5), 46),
            (("incr", "n", {"by": 5, "op_id": "a"}), 46),
            (("incr", "n", 5, {"op_id": "a"}), 46),
            (("mset", {"a": 1, "b": BINARY}), None),
            (("mset", {"a": 1}, {}), None),
            (("mget", "n", "missing"), ["41", None]),
            (("mget", ["n", "k"]), ["41", "v"]),
            (("delete", "n", "k"), 2),
            (("del", "n"), 1),
            (("DEL", ["n", "missing"]), 1),
            (("exists", "n", "n"), 2),
            (("expire", "n", 60), True),
            (("ttl", "n"), -1),
            (("pttl", "missing"), -2),
        ],
        ids=str,
    )
    def test_a_call_is_written_as_one_calls(
        self, store: KVStore, call: StoreCall, item: Any, answer: Any
    ) -> None:
        call(store.mset, {"k": "v", "n": 41})
        assert call(store.batch, [item]) == [answer]

    def test_options_are_heeded(self, store: KVStore, call: StoreCall) -> None:
        call(store.batch, [("set", "k", "v", {"ex": 60})])
        assert 0 < call(store.pttl, "k") <= 60_000

    def test_calls_may_come_from_an_iterator(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.batch, (("incr", "n") for _ in range(3))) == [1, 2, 3]

    def test_no_calls_are_no_answers(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.batch, []) == []

    def test_a_call_that_fails_is_one_error_among_the_answers(self, store: KVStore, call: StoreCall) -> None:
        stored, failed, count = call(store.batch, [("set", "k", "text"), ("incr", "k"), ("incr", "n")])
        assert (stored, count) == (True, 1)
        assert isinstance(failed, StoreTypeError)
        assert failed.index == 1

    @pytest.mark.parametrize(("item", "error"), WRONG, ids=lambda value: str(value)[:40])
    def test_what_is_no_call_is_named_by_its_place_and_nothing_is_executed(
        self, store: KVStore, call: StoreCall, item: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="item 1"):
            call(store.batch, [("set", "before", 1), item, ("set", "after", 1)])
        assert call.scan(store) == []
