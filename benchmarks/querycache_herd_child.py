"""A herd: four processes of sixty-four callers who all want one value at the same moment, that takes 200 ms.

``python -m benchmarks.querycache_herd_child HERD TASK`` is a child of :mod:`benchmarks.querycache_herd`; the
task is JSON, and so is what it prints. Callers are threads; of who only can be awaited, tasks of one event
loop a process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.peers import OURS, TTL, VALUE
from benchmarks.querycache_peers import CACHEOPS, CASHEWS, DOGPILE, cashews_cache, dogpile_region, site
from benchmarks.server import private_server

PROCESSES = 4
CALLERS = 64
SECONDS = 0.2
"""What a computation takes."""
FRESH = 0.5
"""Seconds after which the value that can be served stale has expired; ours and others may add a tenth."""
LEAD = 0.25
"""Seconds in which callers get ready: all begin at the same moment."""
PATIENCE = 60.0
"""Seconds after which a process is taken to be dead."""
WARM = "warm"
"""A key whose value takes no time, asked for first: to connect takes longer than a value may."""

LIMIT = "limit: `cache.get`"
OURS_ASYNC = f"{OURS}, tasks"
LOCKED_DOGPILE = f"{DOGPILE}, Redis lock"
LOCKED_CASHEWS = f"{CASHEWS}, lock, tasks"
LOCKED_CACHEOPS = f"{CACHEOPS}, lock"
GET_OR_SET = "django-redis `get_or_set`"

FORK = multiprocessing.get_context("fork")

Compute = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Gates:
    """What one contender is asked: ``cold`` of what is not there, ``stale`` of what may be served expired."""

    cold: Any = None
    stale: Any = None
    runner: asyncio.Runner | None = None


# Doors


def ours(url: str, compute: Compute) -> Gates:
    from redis_infra.querycache import cached

    def cold(key: str) -> Any:
        return compute(key)

    def stale(key: str) -> Any:
        return compute(key)

    return Gates(
        cached("cold:{key}", ttl=TTL)(cold), cached("stale:{key}", ttl=fresh_of, stale="10min")(stale)
    )


def ours_awaited(url: str, compute: Compute) -> Gates:
    from redis_infra.querycache import cached

    async def cold(key: str) -> Any:
        return await compute(key)

    async def stale(key: str) -> Any:
        return await compute(key)

    return Gates(
        cached("cold:{key}", ttl=TTL)(cold),
        cached("stale:{key}", ttl=fresh_of, stale="10min")(stale),
        asyncio.Runner(),
    )


def fresh_of(result: object) -> float:
    return FRESH


def dogpile(url: str, compute: Compute) -> Gates:
    regions = [dogpile_region(url, lock=True, expires=expires) for expires in (TTL, FRESH)]

    def cold(key: str) -> Any:
        return compute(key)

    def stale(key: str) -> Any:
        return compute(key)

    return Gates(regions[0].cache_on_arguments()(cold), regions[1].cache_on_arguments()(stale))


def cacheops(url: str, compute: Compute) -> Gates:
    """Return what ``cached_as(..., lock=True)`` does, less the queryset."""
    getset: Any = import_module("cacheops.getset")
    serializer: Any = import_module("cacheops.serializers").PickleSerializer

    def get(key: str) -> Any:
        with getset.getting(f"as:{key}", {}, "", lock=True) as found:
            if found is not None:
                return serializer.loads(found)
            value = compute(key)
            getset.cache_thing("", f"as:{key}", value, {}, TTL)
            return value

    return Gates(get)


def cashews(url: str, compute: Compute) -> Gates:
    cache = cashews_cache(url)

    async def cold(key: str) -> Any:
        return await compute(key)

    async def stale(key: str) -> Any:
        return await compute(key)

    return Gates(
        cache(ttl=TTL, key="cold:{key}", lock=True)(cold),
        cache.early(ttl=TTL, early_ttl=FRESH, key="stale:{key}")(stale),
        asyncio.Runner(),
    )


def django_redis(url: str, compute: Compute) -> Gates:
    from django.core.cache import caches

    cache = caches["djrd:default"]
    return Gates(lambda key: cache.get_or_set(f"cold:{key}", partial(compute, key), TTL))


def limit(url: str, compute: Compute) -> Gates:
    """Return a plain read of what is there: what so many callers at once wait for each other."""
    from django.core.cache import caches

    cache = caches["default"]
    cache.set(WARM, VALUE, TTL)
    return Gates(stale=lambda key: cache.get(WARM))


HERDS: dict[str, Callable[[str, Compute], Gates]] = {
    LIMIT: limit,
    OURS: ours,
    OURS_ASYNC: ours_awaited,
    LOCKED_DOGPILE: dogpile,
    LOCKED_CASHEWS: cashews,
    LOCKED_CACHEOPS: cacheops,
    GET_OR_SET: django_redis,
}
AWAITED = (OURS_ASYNC, LOCKED_CASHEWS)
NEEDS = {LOCKED_DOGPILE: DOGPILE, LOCKED_CASHEWS: CASHEWS, LOCKED_CACHEOPS: CACHEOPS}
"""What has to be installed."""


# One process


@dataclass(slots=True)
class Pen:
    """One process, and what all processes share: where they meet, when they begin, and what was computed."""

    number: int
    barrier: Any
    begin: Any
    computed: Any

    def compute(self, key: str) -> Any:
        if key != WARM:
            self._count()
            time.sleep(SECONDS)
        return VALUE

    async def acompute(self, key: str) -> Any:
        if key != WARM:
            self._count()
            await asyncio.sleep(SECONDS)
        return VALUE

    def _count(self) -> None:
        with self.computed.get_lock():
            self.computed.value += 1

    def run(self, gates: Gates, runs: int) -> dict[str, Any]:
        """Return what callers of this process met with, run by run."""
        raised = Counter[str]()
        found: dict[str, Any] = {"cold": [], "stale": [], "spread": []}
        for _ in range(2):
            # All at once, as they will: each gets a connection of its own.
            self.drive(gates, gates.cold or gates.stale, WARM, time.monotonic() + LEAD / 2, raised)
        for run in range(runs):
            key = f"report:{run}"
            if gates.cold is not None:
                found["cold"].append(self.act(gates, gates.cold, key, LEAD, raised))
            for kind, spread in (("stale", 0.0), ("spread", SECONDS)):
                if gates.stale is not None:
                    found[kind].append(self.act_on_expired(gates, f"{kind}:{key}", raised, spread))
        return {**found, "raised": dict(raised)}

    def act_on_expired(
        self, gates: Gates, key: str, raised: Counter[str], spread: float
    ) -> tuple[list[float], int]:
        """:meth:`act` on a value that was stored, and has expired by then."""
        if self.number == 0:
            self.drive(gates, gates.stale, key, time.monotonic(), raised, callers=1)
        return self.act(gates, gates.stale, key, 1.1 * FRESH + LEAD, raised, spread)

    def act(
        self, gates: Gates, get: Any, key: str, lead: float, raised: Counter[str], spread: float = 0.0
    ) -> tuple[list[float], int]:
        """Ask for a value in all processes at the same moment, or one after another for ``spread`` seconds.

        Returns the seconds that each caller of this process took, and how often all computed.
        """
        self.barrier.wait(PATIENCE)
        before = self.computed.value
        if self.number == 0:
            self.begin.value = time.monotonic() + lead
        self.barrier.wait(PATIENCE)
        waited = self.drive(gates, get, key, self.begin.value, raised, spread=spread)
        if gates.runner is not None:
            gates.runner.run(asyncio.sleep(2 * SECONDS))  # what is computed in the background counts, too
        self.barrier.wait(PATIENCE)
        return waited, self.computed.value - before

    def drive(
        self,
        gates: Gates,
        get: Any,
        key: str,
        begin: float,
        raised: Counter[str],
        *,
        callers: int = CALLERS,
        spread: float = 0.0,
    ) -> list[float]:
        """Let callers ask for a value; return how long each of them took."""
        waited: list[float] = []
        begins = [begin + spread * at / callers for at in range(callers)]
        if gates.runner is not None:
            gates.runner.run(ask_together(get, key, begins, waited, raised))
            return waited
        threads = [threading.Thread(target=ask, args=(get, key, at, waited, raised)) for at in begins]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return waited


def ask(get: Any, key: str, begin: float, waited: list[float], raised: Counter[str]) -> None:
    """Be one caller."""
    time.sleep(max(0.0, begin - time.monotonic()))
    started = time.perf_counter()
    try:
        get(key)
    except Exception as error:  # whatever a cache raises: an error page
        raised[type(error).__name__] += 1
    waited.append(time.perf_counter() - started)


async def ask_together(
    get: Any, key: str, begins: Sequence[float], waited: list[float], raised: Counter[str]
) -> None:
    """Be callers on one loop."""

    async def ask_one(begin: float) -> None:
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        started = time.perf_counter()
        try:
            await get(key)
        except Exception as error:  # as above
            raised[type(error).__name__] += 1
        waited.append(time.perf_counter() - started)

    await asyncio.gather(*map(ask_one, begins))


# All of them


def main(name: str, task: Mapping[str, Any]) -> list[Any]:
    """Have four processes do it; return what each of them found."""
    if task["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cores"])  # not the one core that the measuring parent is pinned to
    with (
        private_server() as server,
        TemporaryDirectory() as state_dir,
        site({"default": server.url}, state_dir),
    ):
        shared = FORK.Barrier(PROCESSES), FORK.Value("d", 0.0), FORK.Value("i", 0)
        workers = [start(name, server.url, task["runs"], number, shared) for number in range(PROCESSES)]
        found = [pipe.recv() for _, pipe in workers]
        for process, _ in workers:
            process.join(PATIENCE)
    return found


def start(
    name: str, url: str, runs: int, number: int, shared: tuple[Any, Any, Any]
) -> tuple[ForkProcess, Connection]:
    """Start one process; return it, and the pipe on which it reports."""
    ours, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=herd, args=(name, url, runs, Pen(number, *shared), its), daemon=True)
    process.start()
    its.close()  # so that a dead process is an end of file, and not silence
    return process, ours


def herd(name: str, url: str, runs: int, pen: Pen, pipe: Connection) -> None:
    """Be one process."""
    try:
        gates = HERDS[name](url, pen.acompute if name in AWAITED else pen.compute)
        pipe.send(pen.run(gates, runs))
    except BaseException:
        pen.barrier.abort()  # the others need not wait
        raise


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
