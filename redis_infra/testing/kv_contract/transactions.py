"""Contract of transactions: nobody comes between, and what cannot be done as a whole is not begun."""

from __future__ import annotations

from typing import Any

from redis_infra.exceptions import StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.kv_contract.calling import StoreCall, StoreFixtures

__all__ = ["TransactionsContract"]

TURNS = 40


class TransactionsContract(StoreFixtures):
    """Several commands as one. What transactions share with pipelines is in ``PipelinesContract``."""

    def test_nobody_reads_half_a_transaction(self, store: KVStore, call: StoreCall) -> None:
        def write(mine: StoreCall) -> None:
            for turn in range(TURNS):
                transaction = store.transaction()
                transaction.set("a", turn)
                transaction.set("b", turn)
                mine(transaction.execute)

        with call.beside(write) as writing:
            done = False
            while not done:
                done = writing.done()
                a, b = call(store.mget, "a", "b")
                assert a == b

    def test_nobody_writes_into_a_transaction(self, store: KVStore, call: StoreCall) -> None:
        def write(mine: StoreCall) -> None:
            for turn in range(TURNS):
                mine(store.mset, {"a": turn, "b": turn})

        with call.beside(write) as writing:
            done = False
            while not done:
                done = writing.done()
                transaction = store.transaction()
                transaction.get("a")
                transaction.get("b")
                a, b = call(transaction.execute)
                assert a == b

    def test_nobody_counts_into_a_transaction(self, store: KVStore, call: StoreCall) -> None:
        def count(mine: StoreCall) -> None:
            for _ in range(TURNS):
                transaction = store.transaction()
                transaction.incr("n")
                transaction.incr("n")
                first, second = mine(transaction.execute)
                assert second == first + 1

        with call.beside(count), call.beside(count), call.beside(count):
            count(call)
        assert call(store.get, "n") == str(8 * TURNS)

    def test_tasks_and_threads_do_not_count_into_one(self, store: KVStore, call: StoreCall) -> None:
        answers: list[Any] = call.at_once(20, Pair(store).count)
        assert sorted(first for first, _ in answers) == list(range(1, 41, 2))
        assert all(second == first + 1 for first, second in answers)

    def test_a_command_that_fails_does_not_undo_the_others(self, store: KVStore, call: StoreCall) -> None:
        """As in Redis: a transaction is not rolled back."""
        call(store.set, "text", "text")
        transaction = store.transaction()
        transaction.set("before", 1)
        transaction.incr("text")
        transaction.set("after", 1)
        before, failed, after = call(transaction.execute)
        assert (before, after) == (True, True)
        assert isinstance(failed, StoreTypeError)
        assert failed.index == 1
        assert call(store.mget, "before", "text", "after") == ["1", "text", "1"]


class Pair:
    """Counts twice in a transaction."""

    def __init__(self, store: KVStore) -> None:
        self._store = store

    def count(self) -> list[Any]:
        transaction = self._store.transaction()
        transaction.incr("n")
        transaction.incr("n")
        return transaction.execute()

    async def acount(self) -> list[Any]:
        transaction = self._store.transaction()
        transaction.incr("n")
        transaction.incr("n")
        return await transaction.aexecute()
