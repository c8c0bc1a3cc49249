"""Contract of get_or_set: computed when missing, once, whatever comes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures, eventually

__all__ = ["FillsContract"]

_SHORT = 0.06  # seconds
_LONG = 0.1  # seconds that a computation takes which everybody waits for


class Loader:
    """A computation that counts how often it ran. Thread-safe."""

    def __init__(self, value: Any = "computed", *, takes: float = 0.0) -> None:
        self.value = value
        self.calls = 0
        self._takes = takes
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            self.calls += 1
        if self._takes:
            time.sleep(self._takes)  # the computation, not a wait for something to happen
        return self.value


class FillsContract(ContractFixtures):
    """get_or_set."""

    def test_get_or_set_stores_a_value_and_returns_it(self, cache: Any, call: Call) -> None:
        assert call(cache.get_or_set, "k", "value") == "value"
        assert call(cache.get, "k") == "value"

    def test_get_or_set_returns_what_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old")
        assert call(cache.get_or_set, "k", "new") == "old"
        assert call(cache.get, "k") == "old"

    def test_get_or_set_computes_once(self, cache: Any, call: Call) -> None:
        load = Loader()
        assert [call(cache.get_or_set, "k", load) for _ in range(3)] == ["computed"] * 3
        assert load.calls == 1

    def test_get_or_set_does_not_compute_what_is_there(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", "old")
        load = Loader()
        assert call(cache.get_or_set, "k", load) == "old"
        assert load.calls == 0

    def test_get_or_set_stores_none_and_does_not_compute_it_again(self, cache: Any, call: Call) -> None:
        load = Loader(None)
        assert call(cache.get_or_set, "k", load) is None
        assert call(cache.get_or_set, "k", load) is None
        assert load.calls == 1
        assert call(cache.has_key, "k") is True

    def test_get_or_set_returns_a_stored_none(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", None)
        assert call(cache.get_or_set, "k", "new") is None

    def test_get_or_set_takes_a_timeout(self, cache: Any, call: Call) -> None:
        assert call(cache.get_or_set, "k", "value", _SHORT) == "value"
        assert eventually(lambda: call(cache.get, "k") is None)

    def test_get_or_set_takes_a_version(self, cache: Any, call: Call) -> None:
        assert call(cache.get_or_set, "k", "one") == "one"
        assert call(cache.get_or_set, "k", "two", version=2) == "two"
        assert call(cache.get, "k") == "one"

    def test_what_the_computation_raises_reaches_the_caller_and_is_not_stored(
        self, cache: Any, call: Call
    ) -> None:
        def fail() -> Any:
            raise LookupError("no such row")

        with pytest.raises(LookupError, match="no such row"):
            call(cache.get_or_set, "k", fail)
        assert call(cache.has_key, "k") is False
        assert call(cache.get_or_set, "k", "value") == "value"

    def test_a_computation_may_use_the_cache(self, cache: Any, call: Call) -> None:
        assert call(cache.get_or_set, "outer", lambda: cache.get_or_set("inner", lambda: 1) + 1) == 2
        assert call(cache.get_many, ["outer", "inner"]) == {"outer": 2, "inner": 1}

    def test_a_computation_may_ask_for_its_own_key(self, cache: Any) -> None:
        """It waits for nobody but itself, so it must not wait."""
        results: list[Any] = []

        def work() -> None:
            results.append(cache.get_or_set("k", lambda: cache.get_or_set("k", lambda: "inner")))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(10)
        assert results == ["inner"]

    def test_a_value_that_was_set_meanwhile_wins(self, cache: Any, call: Call) -> None:
        def slow() -> str:
            cache.set("k", "set meanwhile")
            return "computed"

        assert call(cache.get_or_set, "k", slow) == "set meanwhile"
        assert call(cache.get, "k") == "set meanwhile"

    def test_thirty_callers_compute_once(self, cache: Any, call: Call) -> None:
        load = Loader(takes=_LONG if not call.is_async else 0.0)
        assert call.at_once(30, cache.get_or_set, "k", load) == ["computed"] * 30
        assert load.calls == 1

    def test_callers_who_come_late_do_not_compute_again(self, cache: Any, call: Call) -> None:
        """Who missed before the value was stored, and asks to compute after that, finds it."""
        loads = [Loader() for _ in range(10)]
        for number, load in enumerate(loads):
            call.at_once(8, cache.get_or_set, f"k{number}", load)
        assert [load.calls for load in loads] == [1] * 10

    def test_thirty_callers_of_several_aliases_compute_once(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        """Threads of a server have a cache object each."""
        load = Loader(takes=_LONG)
        caches = [cache, *(make_cache() for _ in range(9))]
        threads = [threading.Thread(target=each.get_or_set, args=("k", load)) for each in caches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert load.calls == 1

    def test_callers_of_one_computation_do_not_share_its_value(self, cache: Any, call: Call) -> None:
        """What one request does to its list is no business of another's."""
        load = Loader(["computed"], takes=_LONG if not call.is_async else 0.0)
        values = call.at_once(10, cache.get_or_set, "k", load)
        for value in values:
            value.append("mine")
        assert values == [["computed", "mine"]] * 10
        assert call(cache.get, "k") == ["computed"]

    def test_a_failed_computation_is_forgotten(self, cache: Any) -> None:
        """Those who waited for it may share its error; whoever comes later computes."""

        def fail() -> Any:
            time.sleep(_LONG)
            raise LookupError("no such row")

        failed: list[str] = []

        def work() -> None:
            try:
                cache.get_or_set("k", fail)
            except LookupError as error:
                failed.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert failed == ["no such row"] * 8
        assert cache.get_or_set("k", lambda: "computed") == "computed"

    def test_aget_or_set_awaits_a_coroutine_function(self, cache: Any) -> None:
        calls: list[int] = []

        async def load() -> str:
            calls.append(1)
            await asyncio.sleep(0)
            return "computed"

        async def main() -> list[Any]:
            return [await cache.aget_or_set("k", load) for _ in range(2)]

        assert asyncio.run(main()) == ["computed"] * 2
        assert (len(calls), cache.get("k")) == (1, "computed")

    def test_aget_or_set_awaits_what_any_callable_returns(self, cache: Any) -> None:
        """A lambda or a partial around a coroutine function is not one itself."""

        async def load(value: str) -> str:
            return value

        async def main() -> Any:
            return await cache.aget_or_set("k", lambda: load("computed"))

        assert asyncio.run(main()) == "computed"
        assert cache.get("k") == "computed"

    def test_thirty_tasks_await_one_computation(self, cache: Any) -> None:
        calls: list[int] = []

        async def load() -> str:
            calls.append(1)
            await asyncio.sleep(_LONG)
            return "computed"

        async def main() -> list[Any]:
            return await asyncio.gather(*(cache.aget_or_set("k", load) for _ in range(30)))

        assert asyncio.run(main()) == ["computed"] * 30
        assert len(calls) == 1

    def test_a_cancelled_computation_does_not_cancel_who_waits_for_it(self, cache: Any) -> None:
        async def main() -> Any:
            started = asyncio.Event()

            async def load() -> str:
                started.set()
                await asyncio.sleep(_LONG)
                return "computed"

            async with asyncio.timeout(10):
                first = asyncio.create_task(cache.aget_or_set("k", load))
                await started.wait()
                second = asyncio.create_task(cache.aget_or_set("k", load))
                await asyncio.sleep(0)
                first.cancel()
                return await second

        assert asyncio.run(main()) == "computed"
