"""How the caches of a site are: what this process finds itself, and what the site's workers have left.

``pass``: Redis answers. ``warn``: the site is served, but not as configured
(Redis is away and the fallback answers; some worker has not recovered yet).
``fail``: something has to be done by hand, or nobody answers. Nothing here
raises for what it finds, and no text holds a password.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from redis_infra.cache import RedisCache
from redis_infra.cache.engine import Engine, RedisEngine
from redis_infra.connection.wire import pack
from redis_infra.durations import format_duration
from redis_infra.exceptions import RedisInfraError
from redis_infra.observability.stores import StoreReport, check_store

__all__ = ["AliasHealth", "Finding", "HealthReport", "Status", "Worker", "check_health", "our_aliases"]

Status: TypeAlias = Literal["pass", "warn", "fail"]
_ORDER: tuple[Status, ...] = ("pass", "warn", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at, and what to do about it if it is not well."""

    name: str = ""
    status: Status = "pass"
    value: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What one process of this host that is not well has left in the state directory."""

    pid: int
    alive: bool
    process: str = ""
    state: str = ""
    cause: str = ""
    since: float | None = None
    """Unix seconds of the moment it lost Redis."""
    pending: int = 0
    """Keys that wait to be unlinked before it trusts Redis again."""
    fallback_ops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasHealth:
    """One cache alias, as this process sees it."""

    alias: str
    status: Status
    state: str
    """``up``, ``down``, ``misconfigured``, ``memory`` or ``invalid``."""
    server: str = ""
    rule: str = ""
    reason: str = ""
    version: str = ""
    ping_ms: float | None = None
    pool: dict[str, int] = field(default_factory=dict)
    breaker: dict[str, Any] = field(default_factory=dict)
    on_outage: str = ""
    fallback: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    cause: str = ""
    remedy: str = ""
    state_dir: str = ""
    workers: tuple[Worker, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """All aliases that were asked for; and the key-value store, unless only some were."""

    status: Status
    time: float
    aliases: tuple[AliasHealth, ...]
    kv: StoreReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: stable names, seconds and counts as numbers."""
        return {
            "schema": "redis_infra.cache_health/1",
            "status": self.status,
            "time": self.time,
            "aliases": {each.alias: asdict(each) for each in self.aliases},
            "kv": asdict(self.kv) if self.kv is not None else None,
        }


def our_aliases() -> list[str]:
    """The aliases of ``CACHES`` whose backend is ours, or is none at all."""
    return [alias for alias in caches if _is_ours(alias)]


def _is_ours(alias: str) -> bool:
    try:
        backend = import_string(caches.settings[alias]["BACKEND"])
    except Exception:  # there is none, or what stands there cannot be imported: somebody has to be told
        return True
    return isinstance(backend, type) and issubclass(backend, RedisCache)


def check_health(aliases: Iterable[str] | None = None, *, deep: bool = False) -> HealthReport:
    """Look at each alias, and at the key-value store: one PING each, and with ``deep`` dozens of commands.

    Waits for COMMAND_TIMEOUT per alias at most (``deep``: per command). Writes
    one short-lived key of its own with ``deep``, nothing otherwise.
    """
    store = check_store() if aliases is None else None
    reports = tuple(_check(alias, deep=deep) for alias in (aliases if aliases is not None else our_aliases()))
    status = worst(each.status for each in (*reports, *((store,) if store else ())))
    return HealthReport(status=status, time=time.time(), aliases=reports, kv=store)


def worst(statuses: Iterable[Status]) -> Status:
    return max(statuses, key=_ORDER.index, default="pass")


def _check(alias: str, *, deep: bool) -> AliasHealth:
    try:
        cache = caches[alias]
        if not isinstance(cache, RedisCache):
            backend = f"{type(cache).__module__}.{type(cache).__qualname__}"
            return _invalid(
                alias, f"{backend} is not a cache of redis_infra", "name one of ours, or none for all"
            )
        engine = cache._engine
    except Exception as error:  # settings can be wrong in ways that Django's own constructors do not expect
        return _invalid(alias, _said(error), "run: python manage.py check --tag redis_infra")
    if isinstance(engine, RedisEngine):
        return _check_redis(alias, engine, deep=deep)
    return _memory(alias, engine)


def _said(error: Exception) -> str:
    """What is wrong with the settings, in one line; ours and Django's errors are meant for people."""
    text = " ".join(str(error).split())
    if isinstance(error, InvalidCacheBackendError | ImproperlyConfigured | RedisInfraError):
        return text
    return f"{type(error).__name__}: {text}"


def _invalid(alias: str, cause: str, remedy: str) -> AliasHealth:
    return AliasHealth(alias=alias, status="fail", state="invalid", cause=cause, remedy=remedy)


def _memory(alias: str, engine: Engine) -> AliasHealth:
    source = engine.settings.source
    return AliasHealth(
        alias=alias,
        status="pass" if django_settings.DEBUG else "warn",
        state="memory",
        server=engine.label,
        rule=source.rule,
        reason=source.reason,
        remedy=""
        if django_settings.DEBUG
        else "each process has a cache of its own; set REDIS_URL or LOCATION",
    )


def _check_redis(alias: str, engine: RedisEngine, *, deep: bool) -> AliasHealth:
    from redis_infra.connection.failures import classify, describe
    from redis_infra.observability.doctor import examine
    from redis_infra.resilience.faults import Fault

    state, cause, ping = "up", "", None
    findings: tuple[Finding, ...] = ()
    try:
        ping = _ping(engine)
        findings = examine(engine) if deep else ()
    except Exception as error:  # whatever it is, a health check reports it
        failure = classify(error)
        state = "misconfigured" if failure and failure.fault is Fault.MISCONFIGURED else "down"
        cause = describe(error)
    findings += _limits(engine)
    workers = _workers(engine)
    statuses: list[Status] = [_status(state, engine), *(each.status for each in findings)]
    if any(worker.alive for worker in workers):
        statuses.append("warn")
    return AliasHealth(
        alias=alias,
        status=worst(statuses),
        state=state,
        cause=cause,
        remedy=_remedy(state, engine),
        ping_ms=ping,
        workers=workers,
        findings=findings,
        **_facts(engine),
    )


def _ping(engine: RedisEngine) -> float:
    """Milliseconds to the server and back; with connecting, where nobody was connected yet."""
    from redis.exceptions import NoPermissionError

    started = time.perf_counter()
    # An ACL that forbids it answers as well.
    with suppress(NoPermissionError):
        engine.connections.call(pack("PING"))
    return (time.perf_counter() - started) * 1000


def _limits(engine: RedisEngine) -> tuple[Finding, ...]:
    """Say who decides about rate limits, where it is not Redis; and who would, where that is worth a word."""
    from redis_infra.throttling.host import Host

    state_dir = engine.database.state_dir
    since = Host.decides_since(state_dir, engine.options.keyspace)
    if since is not None:
        value = f"decided by the processes of this host for {format_duration(since)}"
        return (Finding(name="limits", status="warn", value=value),)
    if state_dir.problem:
        value = f"in an outage each process would decide alone: {state_dir.problem}"
        return (Finding(name="limits", value=value),)
    return ()


def _status(state: str, engine: RedisEngine) -> Status:
    if state == "up":
        return "pass"
    if state == "misconfigured" or engine.settings.on_outage == "raise":
        return "fail"
    return "warn"


def _remedy(state: str, engine: RedisEngine) -> str:
    if state == "up":
        return ""
    if state == "misconfigured":
        return "correct the URL, user, password or database; the site works without Redis meanwhile"
    if engine.settings.on_outage == "raise":
        return "start the server; this alias raises RedisUnavailable meanwhile (ON_OUTAGE)"
    return f"start the server; the site is served by {_WHO[engine.settings.on_outage]} meanwhile"


_WHO = {"local": "each process' own memory", "miss": "what is behind the cache"}


def _facts(engine: RedisEngine) -> dict[str, Any]:
    database, source = engine.database, engine.settings.source
    reach, facts = database.endpoint.reach, database.facts
    return {
        "server": engine.label,
        "rule": source.rule,
        "reason": source.reason,
        "version": f"{facts.name} {facts.version}".strip() if facts else "",
        "pool": {
            "in_use": engine.connections.pool.in_use,
            "open": engine.connections.pool.size,
            "max": engine.options.max_connections,
        },
        "breaker": {
            "reach": reach.state.value,
            "access": database.access.state.value,
            "writes": database.endpoint.writes.state.value,
            "since": reach.opened_at_wall,
            "cause": reach.cause if not reach.closed else "",
        },
        "on_outage": engine.settings.on_outage,
        "fallback": {"entries": len(engine.shared), "bytes": engine.shared.nbytes},
        "pending": database.journal.pending,
        "state_dir": str(
            database.state_dir.path or f"memory only: {database.state_dir.problem or 'switched off'}"
        ),
    }


def _number(value: object) -> float:
    """A number from a file that anything may have been written to."""
    return value if isinstance(value, int | float) and math.isfinite(value) else 0


def _workers(engine: RedisEngine) -> tuple[Worker, ...]:
    mine, directory = engine.options.database, engine.database.state_dir
    # What somebody has left who is dead is nobody's business once others have drained it.
    undrained = {each.pid for each in directory.foreign_journals(engine.options.keyspace)}
    return tuple(
        Worker(
            pid=int(_number(each.get("pid"))),
            alive=bool(each.get("alive")),
            process=str(each.get("process", "")),
            state=str(each.get("state", "")),
            cause=str(each.get("cause", "")),
            since=_number(each.get("since")) or None,
            pending=int(_number(each.get("pending"))),
            fallback_ops=int(_number(each.get("fallback_ops"))),
        )
        for each in directory.statuses()
        if each.get("name") == mine and (each.get("alive") or each.get("pid") in undrained)
    )
