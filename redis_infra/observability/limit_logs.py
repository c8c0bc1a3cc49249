"""Logs of limits where they are: in Redis, with the processes of this host, in this process' memory.

Reads, in batches, and writes nothing. Does not know what is made of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from django.conf import settings as django_settings

from redis_infra.connection.bulk import batches, scan
from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.keys import escape
from redis_infra.observability.health import Status
from redis_infra.throttling.host import ERA, Known, Spot, monotonic_ms, wall_ms
from redis_infra.throttling.host_limits import HostLimits
from redis_infra.throttling.host_store import share_of, with_known
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.local import Name
from redis_infra.throttling.plans import Entry, note_of, tag_from
from redis_infra.throttling.remote import RemoteStore
from redis_infra.throttling.sliding_log import Log, Terms

__all__ = ["Keeper", "Take", "read_all", "read_some"]

LOGS_A_BATCH: Final = 500
"""Logs that are read at once: a megabyte at most."""

_NAME: Final = re.compile(rb"\{([^}]*)\}:([^}]+?)(?::([0-9a-f]{32}))?", re.DOTALL)
_DIGEST: Final = re.compile(rb"[0-9a-f]{32}")
_MARK: Final = re.compile(rb":\+[0-9a-f]*$")
"""Behind a log's key: what the host has told of it already (``merge.lua``)."""

Take: TypeAlias = Callable[[Name, Log, int, Terms], None]
"""Is handed each log: its name, what is in it, the time by which it counts, and what it is held to."""
TermsOf: TypeAlias = Callable[[str], Terms]
"""What is known of a limit, by its label; of one that is not known the limit is -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Who decides now: Redis, the processes of this host together, or each process for itself."""

    who: Literal["redis", "host", "process"]
    status: Status
    server: str = ""
    since: float | None = None
    """Unix seconds of the moment since when the host decides; None if it does not, or nobody asked it yet."""
    cause: str = ""
    """Why Redis does not."""
    remedy: str = ""


def read_all(
    limiter: RateLimiter,
    terms_of: TermsOf,
    wants: Callable[[str], bool],
    take: Take,
    start_over: Callable[[], None],
) -> Keeper:
    """Hand over every log whose limit is wanted; return who keeps them.

    Calls ``start_over`` where Redis broke off, and somebody else has to be read.
    """
    prefix = limiter._settings.key_prefix
    keeper = _ask(limiter, lambda: _all_in_redis(prefix, terms_of, wants, take))
    if keeper.who != "redis":
        start_over()
        for name, log in _kept_here(limiter):
            if wants(name.label):
                _hand_over(limiter, name, log, terms_of(name.label), take)
    return keeper


def read_some(limiter: RateLimiter, terms_of: TermsOf, entries: Collection[Entry], take: Take) -> Keeper:
    """Hand over these logs, empty where there is none; return who keeps them."""
    named = [(entry.key.encode(), entry.name) for entry in entries]
    keeper = _ask(limiter, lambda: _some_in_redis(named, terms_of, take))
    if keeper.who != "redis":
        logs = dict(_kept_here(limiter))
        for _, name in named:
            _hand_over(limiter, name, logs.get(name, []), terms_of(name.label), take)
    return keeper


# --- who keeps them -------------------------------------------------------------------------------------


def _ask(limiter: RateLimiter, reading: Callable[[], Talk]) -> Keeper:
    """Read what is in Redis, if Redis decides; return who does."""
    remote = limiter.remote
    if remote is None:
        return _alone()
    host, server = remote.limits.host, remote.database.options.server
    decided = host.decides
    cause, is_wrong = _converse(remote, _ping() if decided else reading())
    if not (cause or decided):
        return Keeper(who="redis", status="pass", server=server)
    return Keeper(
        who="host" if host.shares else "process",
        status="fail" if is_wrong else "warn",
        server=server,
        since=time.time() - max(0, time.monotonic_ns() - host.words[ERA]) / 1e9 if decided else None,
        cause=cause,
        remedy=_remedy(cause, is_wrong, host.problem),
    )


def _alone() -> Keeper:
    remedy = "" if django_settings.DEBUG else "every process has limits of its own; set REDIS_URL"
    return Keeper(
        who="process", status="pass" if django_settings.DEBUG else "warn", server="memory", remedy=remedy
    )


def _remedy(cause: str, is_wrong: bool, problem: str) -> str:
    if problem:
        return f"let the processes of this host share a directory (STATE_DIR): {problem}"
    if is_wrong:
        return "correct the URL, user, password or permissions; limits hold on each host meanwhile"
    if cause:
        return "start the server; limits hold on each host meanwhile"
    return ""  # it answers: the host is about to hand the limits back


def _converse(remote: RemoteStore, talk: Talk) -> tuple[str, bool]:
    """Hold a conversation; return why that failed, "" if it did not, and whether settings are to blame."""
    from redis_infra.connection.failures import classify, describe
    from redis_infra.resilience.faults import Fault

    try:
        # Not through the failover: a command of its own finds out for itself, as cache_health does.
        remote.database.connections(remote.database.options).converse(talk)
    except Exception as error:  # whatever it is, who looks at limits is told
        failure = classify(error)
        wrong = failure is None or failure.fault in (Fault.MISCONFIGURED, Fault.DENIED)
        return describe(error), wrong
    return "", False


def _ping() -> Talk:
    yield pack("PING")


# --- where they are not in Redis ------------------------------------------------------------------------


def _kept_here(limiter: RateLimiter) -> Iterator[tuple[Name, Log]]:
    """Yield the logs of this host, or of this process.

    In an outage a host has the logs of whom it let through since then.
    """
    remote, now = limiter.remote, monotonic_ms()
    if remote is None:
        yield from limiter.memory.used()
    else:
        yield from ((row.name, row.live(now)) for row in remote.limits.rows())


def _hand_over(limiter: RateLimiter, name: Name, log: Log, terms: Terms, take: Take) -> None:
    """Hand over a log of this host's, with what Redis was last known to have let through."""
    now = monotonic_ms()
    if limiter.remote is not None and terms.limit >= 0:
        share = share_of(terms, limiter.throttle.hosts)
        known = _known(limiter.remote.limits, name, terms)
        log, terms = with_known(log, known, terms, share, now, wall_ms() - now), share
    take(name, log, now, terms)


def _known(limits: HostLimits, name: Name, terms: Terms) -> Known | None:
    if name.identity.startswith("shared:"):
        return None
    return limits.host.known(Spot.of(tag_from(name.identity), note_of(name.label, terms.window, terms.limit)))


# --- where they are -------------------------------------------------------------------------------------


def _all_in_redis(prefix: str, terms_of: TermsOf, wants: Callable[[str], bool], take: Take) -> Talk:
    cursor, start = b"0", len(f"{prefix}:rl:".encode())
    while True:
        cursor, keys = yield scan(cursor, f"{escape(prefix)}:rl:{{*")
        named = [(key, name) for key in keys if (name := _name_of(key, start)) and wants(name.label)]
        for batch in batches(named, LOGS_A_BATCH):
            yield from _some_in_redis(batch, terms_of, take)
        if cursor == b"0":
            return


def _some_in_redis(named: Iterable[tuple[bytes, Name]], terms_of: TermsOf, take: Take) -> Talk:
    keys, names = zip(*named, strict=True)
    clock, values = yield pack("TIME") + pack("MGET", *keys), 2
    now = int(clock[0]) * 1000 + int(clock[1]) // 1000
    for name, value in zip(names, values, strict=True):
        take(name, _log_in(value or b""), now, terms_of(name.label))


def _name_of(key: bytes, start: int) -> Name | None:
    """Return whose log a key holds; None if it is none of ours, or a mark beside one."""
    found = _NAME.fullmatch(key, start)
    if found is None or _MARK.search(key):
        return None
    tag, rest, identity = found.groups()
    if identity is not None:
        return Name(f"{_text(tag)}:{_text(rest)}", _text(identity))
    # Tagged by the identity: the policy has limits for one only.
    return Name(_text(rest), _text(tag)) if _DIGEST.fullmatch(tag) else None


def _text(part: bytes) -> str:
    return part.decode("utf-8", "replace")


def _log_in(value: bytes) -> Log:
    """Read a value of ``hit.lua``'s; nothing, if it is not one."""
    entries = [value[at : at + 20] for at in range(10, len(value), 20)]
    if not all(len(entry) == 20 and entry.isdigit() for entry in entries):
        return []
    return [[int(entry[:13]), int(entry[13:])] for entry in entries]
