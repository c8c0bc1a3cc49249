"""How a contract test calls a cache: one test, run through the sync methods and through the async ones.

Knows nothing of what is tested.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import CacheHandler, caches

__all__ = ["Call", "ContractFixtures", "eventually"]

PATIENCE = 3.0  # seconds
_POLL = 0.005  # seconds
_STUCK = 30.0  # seconds after which calls that should run at once are taken for deadlocked


class Call:
    """Calls a bound method, or its ``a`` twin on an event loop, and returns its result.

    ``call(cache.get, "k")`` is ``cache.get("k")`` or ``await cache.aget("k")``. One loop serves a whole test.
    """

    def __init__(self, runner: asyncio.Runner | None = None) -> None:
        self._runner = runner

    @property
    def is_async(self) -> bool:
        return self._runner is not None

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            return method(*args, **kwargs)
        return self._runner.run(_twin(method, *args, **kwargs))

    def at_once(self, count: int, method: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Make the same call ``count`` times at once, from as many threads or tasks; return the results."""
        if self._runner is None:
            return _in_threads(count, lambda: method(*args, **kwargs))
        return self._runner.run(_in_tasks(count, lambda: _twin(method, *args, **kwargs)))


async def _twin(method: Any, *args: Any, **kwargs: Any) -> Any:
    """Await the async twin of a bound method."""
    return await getattr(method.__self__, f"a{method.__name__}")(*args, **kwargs)


async def _in_tasks(count: int, make: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    async with asyncio.timeout(_STUCK):
        return await asyncio.gather(*(make() for _ in range(count)))


def _in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` in ``count`` threads that start together; raise the first error, if one failed."""
    barrier = threading.Barrier(count, timeout=_STUCK)

    def run() -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run) for _ in range(count)]
        return [future.result(_STUCK) for future in futures]


def eventually(check: Callable[[], Any]) -> bool:
    """Ask until the answer is true; give up, with False, after ``PATIENCE`` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


class ContractFixtures:
    """The fixtures that every suite uses. ``cache`` is yours to provide."""

    @pytest.fixture
    def cache(self) -> Any:
        """The cache under test, empty."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `cache`")

    @pytest.fixture
    def make_cache(self, cache: Any) -> Iterator[Callable[..., Any]]:
        """Make another cache over the same data, as a second alias with the same LOCATION is.

        ``make_cache(KEY_PREFIX="other")`` changes that one setting. What it holds is removed afterwards.
        """
        made: list[Any] = []

        def make(**changes: Any) -> Any:
            made.append(CacheHandler({"default": {**_settings_of(cache), **changes}})["default"])
            return made[-1]

        yield make
        for each in made:
            each.clear()
            each.close()

    @pytest.fixture(params=["sync", "async"])
    def call(self, request: pytest.FixtureRequest) -> Iterator[Call]:
        """Call a method of the cache, or its async twin."""
        if request.param == "sync":
            yield Call()
            return
        with asyncio.Runner() as runner:
            yield Call(runner)


def _settings_of(cache: Any) -> dict[str, Any]:
    """Return what ``settings.CACHES`` says of this cache."""
    for alias, params in settings.CACHES.items():
        if cache == caches[alias]:
            return dict(params)
    raise LookupError("the cache under test is none of settings.CACHES: override the fixture `make_cache`")
