"""The suite for the query cache: what a hit costs, what forgetting costs, and how often a crowd computes.

A hit is measured against a raw read of the very bytes that ours has stored, a miss against a raw look and a
raw store, which is the least that any cache can send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks import querycache_forget, querycache_herd
from benchmarks.contest import Contest, Say, Spec
from benchmarks.harness import Plan, Table, Target
from benchmarks.limits import RawProtocol, RawSocket, connect_raw, pack
from benchmarks.peers import DJANGO_REDIS, OURS, RAW_ASYNCIO, RAW_SOCKET, TTL, VALUE, Operation
from benchmarks.querycache_peers import (
    CACHEOPS,
    CASHEWS,
    DOGPILE,
    LRU,
    Loads,
    cashews,
    cashews_cache,
    cashews_with_tag,
    django_redis_awaited,
    is_installed,
    many_values,
    one_value,
    ours,
    ours_with_tag,
    presence_notes,
    site,
)
from benchmarks.server import address, private_server

if TYPE_CHECKING:
    import redis

SYNC = (
    Spec("cached", "`cached()`, hit, 100 B", Target(1.5, " x")),
    Spec("cached_tag", "`cached()`, hit, one tag"),
    Spec("cached_many", "`cached_many()` of 100, all hits"),
    Spec("cached_miss", "`cached()`, a miss"),
)
ASYNC = (
    Spec("acached", "`cached()`, awaited, hit, 100 B", Target(2.2, " x")),
    Spec("acached_tag", "`cached()`, awaited, hit, one tag"),
    Spec("acached_miss", "`cached()`, awaited, a miss"),
)
ROWS = (*(spec.slug for spec in (*SYNC, *ASYNC)), *querycache_forget.ROWS, *querycache_herd.ROWS)

USER = 42
USERS = list(range(100))
FIRST_MISS, FIRST_AWAITED_MISS = 1_000, 1_000_000_000
"""Whom nobody has asked for: the same functions are called and awaited, on one server."""

SYNC_NOTE = (
    f"Median time of a call (times `{RAW_SOCKET}` in the same round): it reads the bytes of ours, GET for "
    "one value, MGET for a value and the stamp of its tag, and for many; for a miss GET and SET. "
    "`functools.lru_cache` keeps values in the process: nobody else sees them, and nobody can forget them "
    f"everywhere. {DJANGO_REDIS} has no decorator: `get_or_set` and `get_many`."
)
ASYNC_NOTE = (
    f"Median time of an awaited call (times `{RAW_ASYNCIO}` in the same round), one event loop. cashews "
    "looks at no tag when it reads; it removes what is written down under the tag when that is deleted."
)


def run(plan: Plan, only: Sequence[str], say: Say) -> list[Table]:
    """Measure the rows named in ``only``, or all, and return their tables."""
    wanted = only or ROWS
    tables = latencies(plan, wanted, say)
    for suite in (querycache_forget, querycache_herd):
        if any(slug in wanted for slug in suite.ROWS):
            tables += suite.tables(plan, say)
    return tables


def latencies(plan: Plan, wanted: Sequence[str], say: Say) -> list[Table]:
    """Measure what single calls cost."""
    sync, awaited = ([spec for spec in specs if spec.slug in wanted] for specs in (SYNC, ASYNC))
    tables: list[Table] = []
    if not sync and not awaited:
        return tables
    with measured_site() as url:
        for specs, open_contest in ((sync, sync_contest), (awaited, async_contest)):
            if specs:
                with open_contest(url) as contest:
                    tables.append(contest.table(specs, plan, say))
                tables[-1].footnotes += presence_notes()
    return tables


@contextmanager
def measured_site() -> Iterator[str]:
    """Start a server, set Django up on it, and yield its URL."""
    with (
        private_server() as server,
        TemporaryDirectory() as state_dir,
        site({"default": server.url}, state_dir),
    ):
        yield server.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers(Contest):
    """A contest in which one contender asks nobody."""

    def _check_all(self, slug: str) -> None:
        for name, operation in self._doing(slug).items():
            self._check(f"{name}: {slug}", operation, on_redis=name != LRU)


# One table of what is called, one of what is awaited


@contextmanager
def sync_contest(url: str) -> Iterator[Contest]:
    """Open whoever can be called."""
    import redis

    with ExitStack() as stack:
        helper = stack.enter_context(redis.Redis.from_url(url))
        limit = RawSocket(*address(url))
        stack.callback(limit.close)
        names = [name for name in (OURS, CACHEOPS, DOGPILE, DJANGO_REDIS, LRU) if is_installed(name)]
        contenders = {name: sync_operations(name, url) for name in names}
        yield Readers(
            title="Query cache, synchronous",
            note=SYNC_NOTE,
            contenders={RAW_SOCKET: raw_operations(limit, helper, contenders[OURS]), **contenders},
            commands=partial(commands_processed, helper),
        )


@contextmanager
def async_contest(url: str) -> Iterator[Contest]:
    """Open whoever can be awaited, all on one event loop."""
    import redis

    from redis_infra.connection.lifecycle import aclose_all

    with asyncio.Runner() as runner, redis.Redis.from_url(url) as helper, ExitStack() as stack:
        limit = runner.run(connect_raw(*address(url)))
        stack.callback(limit.close)
        stack.callback(lambda: runner.run(aclose_all()))
        doors = {
            OURS: {"acached": ours, "acached_tag": ours_with_tag},
            DJANGO_REDIS: {"acached": django_redis_awaited},
        }
        if is_installed(CASHEWS):
            cache = cashews_cache(url)
            stack.callback(lambda: runner.run(cache.close()))
            doors[CASHEWS] = {
                "acached": partial(cashews, cache),
                "acached_tag": partial(cashews_with_tag, cache),
            }
        names = [name for name in (OURS, CASHEWS, DJANGO_REDIS) if name in doors]
        contenders = {name: async_operations(doors[name], runner) for name in names}
        yield Readers(
            title="Query cache, asynchronous",
            note=ASYNC_NOTE,
            contenders={RAW_ASYNCIO: raw_async_operations(limit, helper, contenders[OURS]), **contenders},
            commands=partial(commands_processed, helper),
            runner=runner,
        )


def commands_processed(helper: redis.Redis) -> int:
    """Return how many commands the server has executed so far."""
    stats: Any = helper.info("stats")
    return int(stats["total_commands_processed"])


# What contenders do


def sync_operations(name: str, url: str) -> dict[str, Operation]:
    """Return what one contender can do."""
    found, one, many = {}, one_value(url).get(name), many_values(url).get(name)
    if one is not None:
        loads = Loads()
        cached = one(loads.user())
        found["cached"] = hit(loads, partial(cached, USER), VALUE)
        found["cached_miss"] = miss(loads, cached)
    if name == OURS:
        loads = Loads()
        found["cached_tag"] = hit(loads, partial(ours_with_tag(loads.user()), USER), VALUE)
    if many is not None:
        loads = Loads()
        found["cached_many"] = hit(loads, partial(many(loads.users()), USERS), dict.fromkeys(USERS, VALUE))
    return found


def async_operations(
    doors: Mapping[str, Callable[[Any], Any]], runner: asyncio.Runner
) -> dict[str, Operation]:
    """Return what one contender can do on the loop of ``runner``."""
    found = {}
    for slug, door in doors.items():
        loads = Loads()
        cached = door(loads.awaited_user())
        found[slug] = hit(loads, partial(cached, USER), VALUE, runner)
        if slug == "acached":
            found["acached_miss"] = miss(loads, cached, FIRST_AWAITED_MISS)
    return found


def hit(
    loads: Loads, call: Callable[[], Any], expected: Any, runner: asyncio.Runner | None = None
) -> Operation:
    """Return the call of which nothing is to be computed, once it was called."""

    def prepare() -> None:
        if runner is None:
            call()
        else:
            runner.run(awaited(call))
        loads.computed.clear()

    return Operation(call, prepare, lambda result: result == expected and not loads.computed)


def miss(loads: Loads, cached: Callable[[int], Any], first: int = FIRST_MISS) -> Operation:
    """Return the call of which something else is to be computed each time."""
    coming = count(first)
    return Operation(
        lambda: cached(next(coming)),
        loads.computed.clear,
        lambda result: result == VALUE and bool(loads.computed),
    )


async def awaited(call: Callable[[], Any]) -> Any:
    return await call()


# The limit


@dataclass(frozen=True, slots=True)
class Read:
    """One raw read of what ours has stored."""

    command: bytes
    size: int

    def is_right(self, received: bytes) -> bool:
        return len(received) == self.size and b"$-1" not in received


def raw_reads(helper: redis.Redis, contender: Mapping[str, Operation]) -> dict[str, Read]:
    """Return what crosses the wire for each hit of ours, which is prepared first."""
    from redis_infra.querycache.space import space_for

    space = space_for("default")
    assert space is not None
    one, tagged = space.place(f"user:{USER}"), space.place(f"tagged:{USER}", [f"team:{USER}"])
    words = {
        "cached": ("GET", one.name),
        "cached_tag": ("MGET", tagged.name, *tagged.stamps),
        "cached_many": ("MGET", *[space.place(f"many:{user_id}").name for user_id in USERS]),
    }
    found = {}
    for slug, (name, *keys) in words.items():
        operation = contender.get(slug) or contender.get(f"a{slug}")
        if operation is not None:
            operation.prepare()
            values: Any = helper.mget(keys)
            bulks = [b"$%d\r\n%b\r\n" % (len(value), value) for value in values]
            size = sum(map(len, bulks)) + (len(b"*%d\r\n" % len(keys)) if name == "MGET" else 0)
            found[slug] = Read(pack(name, *keys), size)
    return found


def miss_commands() -> tuple[bytes, bytes]:
    """Return a look for what is not there, and a store."""
    return pack("GET", "raw:missing"), pack("SET", "raw:stored", bytes(160), "PX", TTL * 1000)


def raw_operations(
    limit: RawSocket, helper: redis.Redis, contender: Mapping[str, Operation]
) -> dict[str, Operation]:
    """Return the limit of every row."""
    look, store = miss_commands()

    def miss_raw() -> bytes:
        limit.exchange(look, 5)
        return limit.last_reply(limit.exchange(store, 5))

    def read_raw(slug: str, read: Read) -> Operation:
        return Operation(
            partial(limit.exchange, read.command, read.size),
            contender[slug].prepare,
            lambda received: read.is_right(limit.last_reply(received)),
        )

    found = {slug: read_raw(slug, read) for slug, read in raw_reads(helper, contender).items()}
    return {**found, "cached_miss": Operation(miss_raw, lambda: None, lambda reply: reply == b"+OK\r\n")}


def raw_async_operations(
    limit: RawProtocol, helper: redis.Redis, contender: Mapping[str, Operation]
) -> dict[str, Operation]:
    """Return the limit of every awaited row."""
    look, store = miss_commands()

    async def miss_raw() -> bytes:
        await limit.exchange(look, 5)
        await limit.exchange(store, 5)
        return limit.last_reply()

    def read_raw(slug: str, read: Read) -> Operation:
        return Operation(
            partial(limit.exchange, read.command, read.size),
            contender[f"a{slug}"].prepare,
            lambda _: read.is_right(limit.last_reply()),
        )

    found = {f"a{slug}": read_raw(slug, read) for slug, read in raw_reads(helper, contender).items()}
    return {**found, "acached_miss": Operation(miss_raw, lambda: None, lambda reply: reply == b"+OK\r\n")}
