"""``get_or_set``: what is missing is computed once, in this process and in all others.

Threads and tasks of a process wait for one of theirs (single flight), which asks Redis for the lease of the
key: who has it computes, the others look until the value is there. Written as
:mod:`~redis_infra.cache.steps`, once for threads and tasks.

A value that is deleted while it is computed is stored all the same: plain keys know nothing of leases. The
query cache has what forbids that.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from redis_infra.cache import operations as plans
from redis_infra.cache.engine import Engine
from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.lease import LEASE, computing, held, is_computing, pauses
from redis_infra.cache.operations import Plan
from redis_infra.cache.steps import Call, Fetch, Fly, Step, Steps, Work
from redis_infra.cache.turns import turns
from redis_infra.cache.values import MISSING
from redis_infra.connection.scripts import Script, Talk
from redis_infra.resilience.failover import Home, Kind

if TYPE_CHECKING:
    from redis_infra.cache.backend import RedisCache

__all__ = ["get_or_set"]

LEASE_OR_GET = Script("redis_infra.cache", "lease_or_get")
FILL = Script("redis_infra.cache", "fill")
CHANGE_LEASE = Script("redis_infra.cache", "lease")


class Wanted(NamedTuple):
    """One call of ``get_or_set``."""

    cache: RedisCache
    key: Any
    name: str
    default: Any
    timeout: Any
    version: int | None

    @property
    def engine(self) -> Engine:
        return self.cache._engine

    def found(self, raw: bytes | None) -> Any:
        """The value in ``raw``; MISSING if there is none that can be read."""
        return self.cache._found(raw, self.key, self.name, MISSING)


def get_or_set(cache: RedisCache, key: Any, default: Any, timeout: Any, version: int | None) -> Steps:
    """Return what is stored, or store and return ``default``, called if it can be."""
    wanted = Wanted(cache, key, cache._name(key, version), default, timeout, version)
    landed = wanted.engine.flights.landed
    value = wanted.found((yield Fetch(wanted.name)))
    if value is not MISSING:
        return value
    if not callable(default):
        return (yield from _store(wanted, default, b""))
    mine: list[Any] = []
    raw = yield Fly(wanted.name, partial(_lead, wanted, landed, mine), partial(_alone, wanted, mine))
    # Who waited gets a copy: what one request does to its list is no business of another's.
    value = mine[0] if mine else cache._decoded(key, raw)
    if value is MISSING:
        value = yield from _store(wanted, (yield Call(default)), b"")
    return value


def _lead(wanted: Wanted, landed: int, mine: list[Any]) -> Generator[Step, Any, bytes]:
    """Get the value for ``mine``, and its bytes for those who wait."""
    value = MISSING
    if wanted.engine.flights.landed != landed:
        # Somebody has computed since before our look: look again.
        value = wanted.found((yield Fetch(wanted.name)))
    if value is MISSING:
        value = yield from _compute(wanted)
    mine.append(value)
    encoded: bytes = yield Work(wanted.cache._encoded, (wanted.key, value))
    return encoded


def _alone(wanted: Wanted, mine: list[Any], has_waited: bool) -> Generator[Step, Any, bytes]:
    """Compute without asking who else does."""
    mine.append((yield from _late(wanted) if has_waited else _unleased(wanted)))
    return b""


def _unleased(wanted: Wanted) -> Generator[Step, Any, Any]:
    return (yield from _store(wanted, (yield Call(wanted.default)), b""))


def _late(wanted: Wanted) -> Generator[Step, Any, Any]:
    """Compute after having waited as long as anybody does; one of a process at a time, the others look."""
    owner = object()
    for pause in turns.waits((wanted.name,), owner):
        yield pause
        value = wanted.found((yield Fetch(wanted.name)))
        if value is not MISSING:
            return value
    try:
        return (yield from _unleased(wanted))
    finally:
        turns.leave(owner)


def _compute(wanted: Wanted) -> Generator[Step, Any, Any]:
    """Compute the value if nobody does, in any process; else wait for it."""
    token = os.urandom(8)
    if is_computing(wanted.name):
        return (yield from _unleased(wanted))
    for pause in pauses():
        answer, *raw = yield _acquire(wanted, token)
        if answer == b"granted":
            return (yield from _compute_leased(wanted, token))
        value = wanted.found(raw[0]) if raw else MISSING
        if value is not MISSING:
            return value
        if raw:  # there is something that nobody can read (another serializer's, a class that is gone)
            return (yield from _unleased(wanted))
        yield pause
    return (yield from _late(wanted))


def _compute_leased(wanted: Wanted, token: bytes) -> Generator[Step, Any, Any]:
    held.hold(token, partial(wanted.engine.run, _change(wanted, token, LEASE)))
    try:
        with computing(wanted.name):
            value = yield Call(wanted.default)
        return (yield from _store(wanted, value, token))
    except BaseException:
        held.leave(token, partial(wanted.engine.run, _change(wanted, token, 0)))
        raise
    finally:
        held.drop(token)


def _store(wanted: Wanted, value: Any, token: bytes) -> Generator[Step, Any, Any]:
    """Store a value where there is none, and return what is there then."""
    cache, key = wanted.cache, wanted.key
    ttl = cache._ttl(wanted.timeout)
    if ttl is not None and ttl <= 0:
        if token:
            yield _change(wanted, token, 0)
        return value
    raw = yield Work(cache._encoded, (key, value))
    if token:
        there = yield _fill(wanted, token, raw, ttl)
    else:
        there = None if (yield plans.add(wanted.name, cache, raw, ttl)) else (yield Fetch(wanted.name))
    if there is None:
        return value
    found = wanted.found(there)
    if found is not MISSING:
        return found
    # There is something that nobody can read.
    yield plans.set_(wanted.name, cache, raw, ttl)
    return value


# --- plans ----------------------------------------------------------------------------------------------


def _lease_of(name: str) -> str:
    return f"{name}~lease"


def _acquire(wanted: Wanted, token: bytes) -> Plan:
    """Answer: ``(b"filled", raw)``, ``(b"granted",)`` or ``(b"held",)``."""
    name = wanted.name

    def talk() -> Talk:
        return (yield from LEASE_OR_GET.talk((name, _lease_of(name)), token, LEASE))

    def local(store: FallbackStore) -> tuple[Any, ...]:
        # Single flight has seen to it that nobody else of this process computes.
        raw = store.get(name)
        return (b"granted",) if raw is None else (b"filled", raw)

    return _plan(name, wanted.cache, talk, local)


def _fill(wanted: Wanted, token: bytes, raw: bytes, ttl: int | None) -> Plan:
    """Answer: None if it was stored, else what was there already."""
    name = wanted.name

    def talk() -> Talk:
        return (yield from FILL.talk((name, _lease_of(name)), token, raw, ttl or 0))

    def local(store: FallbackStore) -> bytes | None:
        return None if store.set(name, raw, None if ttl is None else ttl / 1000, nx=True) else store.get(name)

    return _plan(name, wanted.cache, talk, local)


def _change(wanted: Wanted, token: bytes, lease: int) -> Plan:
    """Answer: whether one still had the lease."""

    def talk() -> Talk:
        return (yield from CHANGE_LEASE.talk((_lease_of(wanted.name),), token, lease))

    return _plan(wanted.name, wanted.cache, talk, lambda store: 0)


def _plan(name: str, home: Home, talk: Any, local: Any) -> Plan:
    # Its loss does no harm: nothing is unlinked for it later. Never sent twice, and not about a key that
    # Redis is not trusted with.
    return Plan(Kind.FILL, (name,), home, local, talk=talk, stores=True, repeatable=False)
