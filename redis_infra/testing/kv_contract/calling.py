"""How a contract test calls a store: one test, run through the sync methods and through the async ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from redis_infra.kv import KVStore, Pipeline
from redis_infra.testing.contract.calling import Call

__all__ = ["BINARY", "SHORT", "Dealt", "StoreCall", "StoreFixtures"]

T = TypeVar("T")

SHORT = 60
"""Milliseconds that something lives whose end is waited for."""
BINARY = bytes(range(256))
"""Every byte, which together are no text."""
_STUCK = 30.0  # seconds


class StoreCall(Call):
    """As ``Call``, and what is not one call: scans, ``with`` blocks, work in another thread.

    ``call(store.get, "k")`` is ``store.get("k")`` or ``await store.aget("k")``.
    """

    def scan(self, store: KVStore, *prefix: str) -> list[str]:
        if self._runner is None:
            return list(store.scan(*prefix))

        async def collected() -> list[str]:
            return [key async for key in store.ascan(*prefix)]

        return self._runner.run(collected())

    def within(self, pipeline: Pipeline, fill: Callable[[Pipeline], T]) -> T:
        """Fill a pipeline in its ``with`` block."""
        if self._runner is None:
            with pipeline as entered:
                return fill(entered)

        async def filled() -> T:
            async with pipeline as entered:
                return fill(entered)

        return self._runner.run(filled())

    def again(self, work: Callable[[StoreCall], T]) -> T:
        """Do work with another call of this kind: one in an event loop of its own, where it is async."""
        if self._runner is None:
            return work(StoreCall())
        with asyncio.Runner() as runner:
            return work(StoreCall(runner))

    @contextmanager
    def beside(self, work: Callable[[StoreCall], Any]) -> Iterator[Future[Any]]:
        """Have another thread do work while the block runs; raise what it raises."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.again, work)
            yield future
            future.result(_STUCK)


class Dealt:
    """Calls of one method that differ in their arguments, dealt out to who comes.

    ``call.at_once(2, Dealt(store.set, [("k", "a"), ("k", "b")]).deal)``: each tells its arguments and answer.
    """

    def __init__(
        self, method: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], **named: Any
    ) -> None:
        self._method: Any = method
        self._arguments = iter(list(arguments))
        self._named = named

    def deal(self) -> tuple[tuple[Any, ...], Any]:
        arguments = next(self._arguments)
        return arguments, self._method(*arguments, **self._named)

    async def adeal(self) -> tuple[tuple[Any, ...], Any]:
        arguments = next(self._arguments)
        twin = getattr(self._method.__self__, f"a{self._method.__name__}")
        return arguments, await twin(*arguments, **self._named)


class StoreFixtures:
    """The fixtures that every suite uses. ``store`` is yours to provide."""

    @pytest.fixture
    def store(self) -> Any:
        """The store under test, empty."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `store`")

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        """Passwords and tokens that the store was made with."""
        return ()

    @pytest.fixture(params=["sync", "async"])
    def call(self, request: pytest.FixtureRequest) -> Iterator[StoreCall]:
        """Call a method of the store, or its async twin."""
        if request.param == "sync":
            yield StoreCall()
            return
        with asyncio.Runner() as runner:
            yield StoreCall(runner)
