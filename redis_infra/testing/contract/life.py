"""Contract of a cache object's life: closed at any time, used from any thread and event loop, cancelled."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["LifeContract"]


class LifeContract(ContractFixtures):
    """close, threads, loops, cancellation."""

    def test_close_can_be_called_at_any_time(self, cache: Any, call: Call) -> None:
        call(cache.close)
        call(cache.set, "k", 1)
        call(cache.close)
        call(cache.close)
        assert call(cache.get, "k") == 1

    def test_close_takes_what_the_request_finished_signal_sends(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        assert call(cache.close, signal="request_finished", sender=object) is None
        assert call(cache.get, "k") == 1

    def test_close_from_another_thread_is_fine(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        thread = threading.Thread(target=cache.close)
        thread.start()
        thread.join(10)
        assert call(cache.get, "k") == 1

    def test_sync_and_async_see_the_same_data(self, cache: Any) -> None:
        async def main() -> Any:
            await cache.aset("async", 2)
            return await cache.aget("sync")

        cache.set("sync", 1)
        assert asyncio.run(main()) == 1
        assert cache.get("async") == 2

    def test_every_loop_is_as_good_as_the_first(self, cache: Any) -> None:
        """One loop a call is what async_to_sync makes."""
        cache.set("n", 0)

        async def count() -> Any:
            return await cache.aincr("n")

        assert [asyncio.run(count()) for _ in range(5)] == [1, 2, 3, 4, 5]

    def test_several_loops_at_once(self, cache: Any) -> None:
        cache.set("n", 0)
        barrier = threading.Barrier(4)

        async def count() -> None:
            for _ in range(10):
                await cache.aincr("n")

        def work() -> None:
            barrier.wait(10)
            asyncio.run(count())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert cache.get("n") == 40

    def test_threads_get_their_own_answers(self, cache: Any) -> None:
        """A connection shared between threads would hand one the other's reply."""
        cache.set_many({f"k{number}": number for number in range(8)})
        wrong: list[Any] = []

        def work(number: int) -> None:
            for _ in range(50):
                got = cache.get(f"k{number}")
                if got != number:
                    wrong.append(got)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert wrong == []

    def test_tasks_get_their_own_answers(self, cache: Any) -> None:
        cache.set_many({f"k{number}": number for number in range(100)})

        async def main() -> list[Any]:
            return await asyncio.gather(*(cache.aget(f"k{number}") for number in range(100)))

        assert asyncio.run(main()) == list(range(100))

    def test_a_cancelled_task_leaves_no_reply_behind(self, cache: Any) -> None:
        """The next user of its connection would read the answer to another question."""
        cache.set_many({f"k{number}": number for number in range(50)})

        async def main() -> list[Any]:
            for turns in range(6):
                tasks = [asyncio.create_task(cache.aget(f"k{number}")) for number in range(50)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return await asyncio.gather(*(cache.aget(f"k{number}") for number in range(50)))

        assert asyncio.run(main()) == list(range(50))
