"""Contract of a store's life: asked how it is, closed at any time, forked, used from any event loop."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.kv import KVStore, StoreHealth
from redis_infra.testing.kv_contract.calling import StoreCall, StoreFixtures

__all__ = ["LifeContract"]

_STUCK = 30  # seconds

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class LifeContract(StoreFixtures):
    """ping, health, close, forks, loops, cancellation."""

    def test_is_a_store(self, store: KVStore) -> None:
        assert isinstance(store, KVStore)

    def test_ping_is_true(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.ping) is True

    def test_health_is_ok_and_says_what_it_is(self, store: KVStore, call: StoreCall) -> None:
        store.why = "because"
        health = call(store.health)
        assert isinstance(health, StoreHealth)
        assert (health.status, health.problem, health.why) == ("ok", "", "because")
        assert health.provider == (store.provider or f"{type(store).__module__}.{type(store).__qualname__}")
        assert health.where == store.where

    def test_asking_leaves_nothing_behind(self, store: KVStore, call: StoreCall) -> None:
        call(store.ping)
        call(store.health)
        assert call.scan(store) == []

    # Closing

    def test_close_can_be_called_at_any_time(self, store: KVStore, call: StoreCall) -> None:
        call(store.close)
        assert call(store.set, "k", "v") is True
        call(store.close)
        call(store.close)
        assert call(store.get, "k") == "v"
        assert call(store.ping) is True

    def test_close_from_another_thread_is_fine(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")
        with call.beside(lambda mine: mine(store.close)), call.beside(lambda _: StoreCall()(store.close)):
            pass
        assert call(store.get, "k") == "v"

    def test_close_takes_no_answer_from_others(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")
        store.close()
        assert call.at_once(20, store.get, "k") == ["v"] * 20

    def test_a_with_block_closes_it_at_its_end(self, store: KVStore) -> None:
        with store as entered:
            assert entered is store
            entered.set("k", "v")
        assert store.get("k") == "v"
        with pytest.raises(LookupError), store:
            raise LookupError
        assert store.get("k") == "v"

    def test_an_async_with_block_closes_it_at_its_end(self, store: KVStore) -> None:
        async def main() -> str | None:
            async with store as entered:
                assert entered is store
                await entered.aset("k", "v")
            return await store.aget("k")

        assert asyncio.run(main()) == "v"

    # Event loops

    def test_sync_and_async_see_the_same_data(self, store: KVStore) -> None:
        async def main() -> str | None:
            await store.aset("async", 2)
            return await store.aget("sync")

        store.set("sync", 1)
        assert asyncio.run(main()) == "1"
        assert store.get("async") == "2"

    def test_sync_calls_within_a_running_loop_are_served(self, store: KVStore) -> None:
        async def main() -> tuple[int, int, int]:
            return await store.aincr("n"), store.incr("n"), await store.aincr("n")

        assert asyncio.run(main()) == (1, 2, 3)

    def test_every_loop_is_as_good_as_the_first(self, store: KVStore) -> None:
        """One loop a call is what async_to_sync makes."""

        async def count() -> int:
            return await store.aincr("n")

        assert [asyncio.run(count()) for _ in range(5)] == [1, 2, 3, 4, 5]

    def test_several_loops_at_once(self, store: KVStore) -> None:
        barrier = threading.Barrier(4, timeout=_STUCK)

        async def count() -> None:
            for _ in range(10):
                await store.aincr("n")

        def work(_: StoreCall) -> None:
            barrier.wait()
            asyncio.run(count())

        call = StoreCall()
        with call.beside(work), call.beside(work), call.beside(work), call.beside(work):
            pass
        assert store.get("n") == "40"

    def test_a_cancelled_task_leaves_no_reply_behind(self, store: KVStore) -> None:
        """The next user of its connection would read the answer to another question."""
        store.mset({f"k{number}": number for number in range(20)})

        async def main() -> list[Any]:
            for turns in range(6):
                tasks = [asyncio.create_task(store.aget(f"k{number}")) for number in range(20)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            # In another order, or else what was left behind would be the right answer.
            return await asyncio.gather(*(store.aget(f"k{number}") for number in reversed(range(20))))

        assert asyncio.run(main()) == [str(number) for number in reversed(range(20))]

    # Forks

    @forks
    def test_a_forked_child_goes_on(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"k": "v", "n": 1})

        def child() -> tuple[Any, ...]:
            store.after_fork()
            return store.get("k"), store.incr("n"), asyncio.run(store.aincr("n")), store.ping()

        assert _in_child(child) == ("v", 2, 3, True)
        assert call(store.get, "k") == "v"
        assert call(store.ping) is True

    @forks
    def test_parent_and_child_get_their_own_answers(self, store: KVStore, call: StoreCall) -> None:
        """On one connection they would read each other's."""
        call(store.mset, {f"k{number}": number for number in range(50)})

        def child() -> list[str | None]:
            store.after_fork()
            return [store.get(f"k{number}") for number in range(50)]

        expected = [str(number) for number in range(50)]

        def ask(mine: StoreCall) -> None:
            assert [mine(store.get, f"k{number}") for number in range(50)] == expected

        with call.beside(ask):
            assert _in_child(child) == expected
        ask(call)

    @forks
    def test_a_child_that_ends_takes_nothing_along(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "v")

        def child() -> None:
            store.after_fork()
            store.get("k")
            store.close()

        _in_child(child)
        assert call(store.get, "k") == "v"


def _in_child(action: Callable[[], Any]) -> Any:
    """Fork, and return what ``action`` returns in the child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # That this process has threads is what makes such a fork worth a test.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(_STUCK)
        _answer(action, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child ended without an answer, status {status}"
    answer, error = pickle.loads(data)
    assert not error, f"in the child:\n{error}"
    return answer


def _answer(action: Callable[[], Any], writer: int) -> None:
    try:
        try:
            data = pickle.dumps((action(), ""))
        except BaseException:  # whatever it is, the parent is to show it
            data = pickle.dumps((None, traceback.format_exc()))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)
