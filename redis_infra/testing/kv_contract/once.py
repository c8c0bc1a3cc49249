"""Contract of operations that count once: incr with an op_id, asked for again, with the same answer."""

from __future__ import annotations

import pytest

from redis_infra.exceptions import CounterOverflow, StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.kv_contract.calling import StoreCall, StoreFixtures
from redis_infra.testing.kv_contract.counters import MAX, MIN, NO_INTEGERS

__all__ = ["OnceContract"]


class OnceContract(StoreFixtures):
    """What was done is not done again."""

    def test_an_operation_counts_once_with_one_answer(self, store: KVStore, call: StoreCall) -> None:
        assert [call(store.incr, "n", op_id="a") for _ in range(3)] == [1, 1, 1]
        assert call(store.get, "n") == "1"

    def test_operations_are_told_apart(self, store: KVStore, call: StoreCall) -> None:
        assert [call(store.incr, "n", op_id=name) for name in ("a", "b", "a", "A", "b")] == [1, 2, 1, 3, 2]

    def test_the_answer_stays_what_it_was(self, store: KVStore, call: StoreCall) -> None:
        """Whatever has happened to the counter since; it is the answer to that operation."""
        assert call(store.incr, "n", 5, op_id="a") == 5
        call(store.incr, "n", 10)
        assert call(store.incr, "n", 5, op_id="a") == 5
        assert call(store.get, "n") == "15"
        call(store.delete, "n")
        assert call(store.incr, "n", 5, op_id="a") == 5
        assert call(store.get, "n") is None

    def test_it_is_the_operation_that_counts_and_not_its_arguments(
        self, store: KVStore, call: StoreCall
    ) -> None:
        assert call(store.incr, "n", 5, op_id="a") == 5
        assert call(store.incr, "n", 7, op_id="a") == 5
        assert call(store.get, "n") == "5"

    def test_an_operation_is_one_of_its_counter(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.incr, "n", op_id="a") == 1
        assert call(store.incr, "m", 2, op_id="a") == 2
        assert call(store.mget, "n", "m") == ["1", "2"]

    @pytest.mark.parametrize(
        "pair", [("n:a", "b", "n", "a:b"), ("{n}x", "a", "{n}y", "a"), ("n", "a", "{n}", "a")]
    )
    def test_counters_and_operations_are_not_mixed_up(
        self, store: KVStore, call: StoreCall, pair: tuple[str, str, str, str]
    ) -> None:
        """Where the mark of an operation is made of both names, others must not come to the same."""
        key, op_id, other_key, other_op_id = pair
        assert call(store.incr, key, op_id=op_id) == 1
        assert call(store.incr, other_key, 10, op_id=other_op_id) == 10

    def test_an_operation_by_nothing_is_remembered_too(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.incr, "n", 0, op_id="a") == 0
        call(store.incr, "n")
        assert call(store.incr, "n", 0, op_id="a") == 0

    def test_it_counts_on_from_what_is_there(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "n", 41, ex=60)
        assert call(store.incr, "n", op_id="a") == 42
        assert 0 < call(store.pttl, "n") <= 60_000

    @pytest.mark.parametrize("value", [2**53, -(2**53), MAX - 1, MIN])
    def test_the_answer_is_exact_where_a_float_is_not(
        self, store: KVStore, call: StoreCall, value: int
    ) -> None:
        call(store.set, "n", value)
        assert [call(store.incr, "n", op_id="a") for _ in range(2)] == [value + 1] * 2
        assert call(store.get, "n") == str(value + 1)
        assert type(call(store.incr, "n", op_id="a")) is int

    @pytest.mark.parametrize(("value", "by"), [(MAX, 1), (MIN, -1)])
    def test_an_overflow_is_one_each_time_and_is_not_remembered(
        self, store: KVStore, call: StoreCall, value: int, by: int
    ) -> None:
        call(store.set, "n", value)
        for _ in range(2):
            with pytest.raises(CounterOverflow):
                call(store.incr, "n", by, op_id="a")
        assert call(store.get, "n") == str(value)
        call(store.set, "n", 0)
        assert [call(store.incr, "n", by, op_id="a") for _ in range(2)] == [by, by]

    @pytest.mark.parametrize("value", NO_INTEGERS, ids=lambda value: ascii(value[:24]))
    def test_what_is_no_integer_is_refused_each_time(
        self, store: KVStore, call: StoreCall, value: str | bytes
    ) -> None:
        call(store.set, "n", value)
        for _ in range(2):
            with pytest.raises(StoreTypeError) as caught:
                call(store.incr, "n", op_id="a")
            assert not isinstance(caught.value, CounterOverflow)
        assert call(store.get_bytes, "n") == (value.encode() if isinstance(value, str) else value)
        call(store.set, "n", 0)
        assert call(store.incr, "n", op_id="a") == 1

    @pytest.mark.parametrize(
        "op_id", ["ü", "\U0001f40e", "a b", "{}", "}{", ":", "*", "\r\n", "\x00", "x" * 500], ids=ascii
    )
    def test_any_text_is_an_op_id(self, store: KVStore, call: StoreCall, op_id: str) -> None:
        assert [call(store.incr, "n", op_id=op_id) for _ in range(2)] == [1, 1]

    def test_what_is_remembered_is_nobodys_key(self, store: KVStore, call: StoreCall) -> None:
        call(store.incr, "n", op_id="a")
        assert call.scan(store) == ["n"]

    def test_it_is_one_operation_in_pipelines_too(self, store: KVStore, call: StoreCall) -> None:
        call(store.incr, "n", op_id="a")
        for pipeline in (store.pipeline(), store.transaction()):
            pipeline.incr("n", op_id="a")
            pipeline.incr("n", op_id="b")
            pipeline.incr("n", op_id="b")
            assert call(pipeline.execute) == [1, 2, 2]
        assert call(store.get, "n") == "2"

    def test_of_many_at_once_one_counts(self, store: KVStore, call: StoreCall) -> None:
        """As retries do that overtake each other."""
        assert call.at_once(20, store.incr, "n", op_id="a") == [1] * 20
        assert call(store.get, "n") == "1"
