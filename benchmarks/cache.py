"""The suite for the cache: hits, writes and batches, sync and async, then outages and start-up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import outage, startup
from benchmarks.contest import Contest, Say, Spec
from benchmarks.harness import Plan, Table, Target
from benchmarks.lean import LeanClient, connect_lean
from benchmarks.limits import RawSocket, connect_raw
from benchmarks.peers import (
    BACKENDS,
    LEAN,
    RAW_ASYNCIO,
    RAW_SOCKET,
    TASKS,
    configure,
    django_async_operations,
    django_operations,
    raw_async_operations,
    raw_operations,
    redis_async_operations,
    redis_operations,
)
from benchmarks.server import address, private_server

SYNC = (
    Spec("get", "`get`, hit, 100 B", Target(1.3, " x")),
    Spec("set", "`set`, 100 B", Target(1.35, " x")),
    Spec("add", "`add`, taken", Target(1.35, " x")),
    Spec("incr", "`incr`", Target(1.35, " x")),
    Spec("touch", "`touch`", Target(1.35, " x")),
    Spec("get_many", "`get_many(100)`", Target(5, " x")),
    Spec("set_many", "`set_many(100)`", Target(3.5, " x")),
)
ASYNC = (
    Spec("aget", "`aget`, one at a time", Target(1.9, " x")),
    Spec("aget_50", f"{TASKS} `aget` at once, each", Target(60, " x"), each=TASKS),
    Spec("aget_many", "`aget_many(100)`", Target(4.5, " x")),
)
ROWS = (*(spec.slug for spec in (*SYNC, *ASYNC)), *outage.ROWS, *startup.ROWS)

SYNC_NOTE = (
    f"Median time of a call (times `{RAW_SOCKET}` in the same round), one thread. "
    "redis-py moves bytes; the caches pickle a dict of 100 bytes."
)
ASYNC_NOTE = (
    f"Median time of an awaited call (times `{RAW_ASYNCIO}` in the same round), one event loop. "
    f"{TASKS} at once are {TASKS} tasks that each await one call after another; their limit is one write of "
    f"{TASKS} commands."
)


def run(plan: Plan, only: Sequence[str], say: Say) -> list[Table]:
    """Measure the rows named in ``only``, or all, and return their tables.

    Configures Django: once a process.
    """
    wanted = only or ROWS
    tables = latencies(plan, wanted, say)
    for suite in (outage, startup):
        rows = [slug for slug in suite.ROWS if slug in wanted]
        if rows:
            tables.append(suite.table(rows, plan, say))
    return tables


def latencies(plan: Plan, wanted: Sequence[str], say: Say) -> list[Table]:
    """Measure what is asked of a server that is well."""
    contests = ((SYNC, sync_contest), (ASYNC, async_contest))
    chosen = [([spec for spec in specs if spec.slug in wanted], contest) for specs, contest in contests]
    if not any(specs for specs, _ in chosen):
        return []
    tables = []
    with configured_server() as url:
        for specs, open_contest in chosen:
            if specs:
                with open_contest(url) as contest:
                    tables.append(contest.table(specs, plan, say))
    return tables


@contextmanager
def configured_server() -> Iterator[str]:
    """Start a server, set Django up with one cache of each kind on it, and yield its URL."""
    with private_server() as server, TemporaryDirectory() as state_dir:
        configure({name: it.settings(server.url) for name, it in BACKENDS.items()}, state_dir=state_dir)
        yield server.url


@contextmanager
def sync_contest(url: str) -> Iterator[Contest]:
    """Open whoever can do the synchronous rows."""
    import redis
    from django.core.cache import caches

    with ExitStack() as stack:
        helper, pool = (stack.enter_context(redis.Redis.from_url(url)) for _ in range(2))
        single = stack.enter_context(redis.Redis.from_url(url, single_connection_client=True))
        limit, lean = RawSocket(*address(url)), LeanClient(*address(url), "lean")
        for opened in (limit, lean):
            stack.callback(opened.close)
        yield Contest(
            title="Cache, synchronous",
            note=SYNC_NOTE,
            contenders={
                RAW_SOCKET: raw_operations(limit, helper, "rawl"),
                LEAN: django_operations(lean),
                **{name: django_operations(caches[name]) for name in BACKENDS},
                "redis-py, one connection": redis_operations(single, "rpy1"),
                "redis-py, pool": redis_operations(pool, "rpyp"),
            },
            commands=partial(commands_processed, helper),
        )


@contextmanager
def async_contest(url: str) -> Iterator[Contest]:
    """Open whoever can do the awaited rows, all on one event loop."""
    import redis.asyncio
    from django.core.cache import caches

    with asyncio.Runner() as runner, redis.Redis.from_url(url) as helper, ExitStack() as stack:
        single = redis.asyncio.Redis.from_url(url, single_connection_client=True)
        pool = redis.asyncio.Redis.from_url(url)
        limit = runner.run(connect_raw(*address(url)))
        lean = runner.run(connect_lean(*address(url), "lean"))
        filler = LeanClient(*address(url), "lean")
        for opened in (limit, filler):
            stack.callback(opened.close)
        awaited = [single, pool, lean, *(caches[name] for name in BACKENDS)]
        stack.callback(lambda: runner.run(aclose_all(awaited)))
        yield Contest(
            title="Cache, asynchronous",
            note=ASYNC_NOTE,
            contenders={
                RAW_ASYNCIO: raw_async_operations(limit, helper, "rawl"),
                LEAN: django_async_operations(lean, filler),
                **{name: django_async_operations(caches[name], caches[name]) for name in BACKENDS},
                "redis.asyncio, one connection": redis_async_operations(single, helper, "rpy1"),
                "redis.asyncio, pool": redis_async_operations(pool, helper, "rpyp"),
            },
            commands=partial(commands_processed, helper),
            runner=runner,
        )


async def aclose_all(opened: Iterable[Any]) -> None:
    """Give back what clients and caches hold of this loop."""
    for client in opened:
        await client.aclose()


def commands_processed(helper: Any) -> int:
    """Return how many commands the server has executed so far."""
    return int(helper.info("stats")["total_commands_processed"])
