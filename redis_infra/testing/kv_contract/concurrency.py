"""Contract of many callers at once: exact totals, one winner, nobody gets another's answer."""

from __future__ import annotations

from typing import Any

from redis_infra.kv import KVStore
from redis_infra.testing.kv_contract.calling import Dealt, StoreCall, StoreFixtures

__all__ = ["ConcurrencyContract"]

CALLERS = 20


class ConcurrencyContract(StoreFixtures):
    """Threads and tasks that begin together."""

    def test_incr_counts_each_once(self, store: KVStore, call: StoreCall) -> None:
        assert sorted(call.at_once(50, store.incr, "n")) == list(range(1, 51))
        assert call(store.get, "n") == "50"

    def test_incr_in_a_row_from_several_threads_is_exact(self, store: KVStore, call: StoreCall) -> None:
        def count(mine: StoreCall) -> None:
            for _ in range(50):
                mine(store.incr, "n", 2)
                mine(store.incr, "n", -1)

        with call.beside(count), call.beside(count), call.beside(count):
            count(call)
        assert call(store.get, "n") == "200"

    def test_set_nx_has_one_winner_and_keeps_its_value(self, store: KVStore, call: StoreCall) -> None:
        calls = Dealt(store.set, [("k", str(number)) for number in range(CALLERS)], nx=True)
        won = [arguments for arguments, is_first in call.at_once(CALLERS, calls.deal) if is_first]
        assert len(won) == 1
        assert call(store.get, "k") == won[0][1]

    def test_set_xx_stores_nothing_for_anybody_where_nothing_is(
        self, store: KVStore, call: StoreCall
    ) -> None:
        assert call.at_once(CALLERS, store.set, "k", "v", xx=True) == [False] * CALLERS
        assert call(store.exists, "k") == 0

    def test_a_key_is_deleted_once(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")
        assert sum(call.at_once(CALLERS, store.delete, "k")) == 1

    def test_what_is_set_at_once_is_one_of_it(self, store: KVStore, call: StoreCall) -> None:
        values = [str(number) * 10_000 for number in range(10)]
        call.at_once(10, Dealt(store.set, [("k", value) for value in values]).deal)
        assert call(store.get, "k") in values

    def test_nobody_reads_half_an_mset(self, store: KVStore, call: StoreCall) -> None:
        def write(mine: StoreCall) -> None:
            for turn in range(40):
                mine(store.mset, {"a": turn, "b": turn, "c": turn})

        with call.beside(write) as writing:
            done = False
            while not done:
                done = writing.done()
                assert len(set(call(store.mget, "a", "b", "c"))) == 1

    def test_everybody_gets_the_answer_to_the_own_question(self, store: KVStore, call: StoreCall) -> None:
        """A connection shared by two would hand one the other's reply."""
        call(store.mset, {f"k{number}": number for number in range(CALLERS)})
        for _ in range(10):
            asked: list[Any] = call.at_once(
                CALLERS, Dealt(store.get, [(f"k{number}",) for number in range(CALLERS)]).deal
            )
            assert {key: answer for (key,), answer in asked} == {f"k{n}": str(n) for n in range(CALLERS)}

    def test_sync_and_async_callers_count_together(self, store: KVStore, call: StoreCall) -> None:
        def count(mine: StoreCall) -> None:
            mine.at_once(10, store.incr, "n")

        with StoreCall().beside(count), call.beside(count):
            count(call)
        assert call(store.get, "n") == "30"
