"""The site as it is now, look by look: servers, hit rates by type, limits, workers, and what has happened.

Built of what others know: health of the caches, sums of counts, logs of limits, and what the processes of
this host have left in ``STATE_DIR``. Goes on while Redis is away, with what it saw last. Reads only, and
prints nothing.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from django.core.cache import caches

from redis_infra.cache.engine import RedisEngine
from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.exceptions import SettingsError
from redis_infra.observability.counts import Numbers, Subject, add
from redis_infra.observability.flushing import Sums, open_sums
from redis_infra.observability.frames import Event, Frame, LimitLoad, ServerLoad, TypeRate
from redis_infra.observability.health import AliasHealth, check_health, worst
from redis_infra.observability.limits import look_at
from redis_infra.observability.stats import Line, add_bucket, lines
from redis_infra.throttling.limiter import RateLimiter, default_limiter

__all__ = ["Monitor"]

HISTORY: Final = 20
"""Minutes whose hit rates are shown."""
EVENTS: Final = 8
LIMITS_EVERY: Final = 5.0
"""Seconds between two looks at the logs of limits, at least."""
LIMITS_SHARE: Final = 0.05
"""Part of the time that is spent on looking at them, at most."""
MOST_KEYS: Final = 200_000
"""Keys of a database beyond which they are not looked at: ``throttle_status`` takes its time for that."""


class Monitor:
    """Looks at the site; keeps what does not change between two looks."""

    def __init__(self, aliases: Sequence[str] | None = None) -> None:
        self._aliases = aliases
        self._minutes: dict[str, dict[Subject, Numbers]] = {}
        """Buckets of minutes that are over."""
        self._counts = _Counts.none()
        self._counts_from: float | None = None
        self._shared: tuple[Event, ...] = ()
        self._own: deque[Event] = deque(maxlen=EVENTS)
        self._states: dict[str, tuple[str, float]] = {}
        self._limits: tuple[LimitLoad, ...] = ()
        self._decided_by = ""
        self._limits_due = 0.0

    def look(self) -> Frame:
        """Return how things are. Waits for each server as long as the settings say, and no longer."""
        now, notes = time.time(), []
        report = check_health(self._aliases)
        self._note_changes(report.aliases, now)
        note = self._read_counts(now)
        notes += [note] if note else []
        note = self._look_at_limits()
        notes += [note] if note else []
        return Frame(
            time=now,
            status=worst(each.status for each in report.aliases),
            aliases=report.aliases,
            servers=tuple(_load(each) for each in report.aliases),
            total=self._counts.total,
            types=self._counts.types,
            counts_from=self._counts_from,
            decided_by=self._decided_by,
            limits=self._with_denials(),
            events=tuple(sorted((*self._shared, *self._own), key=_when)[-EVENTS:]),
            notes=tuple(notes),
        )

    # Counts

    def _read_counts(self, now: float) -> str:
        """Read what is new; return why it could not be read, "" if it could."""
        try:
            sums = open_sums()
        except SettingsError as error:
            return str(error)
        if sums is None:
            return "no Redis is configured: each process counts for itself, and none of them can be seen here"
        try:
            minutes = self._read(sums, now)
        except Exception as error:  # whatever it is, the show goes on with what is known
            from redis_infra.connection.failures import describe

            return f"counts of all processes cannot be read: {describe(error)}"
        self._counts, self._counts_from = _Counts.of(minutes, 60 + now % 60), now
        return ""

    def _read(self, sums: Sums, now: float) -> list[dict[Subject, Numbers]]:
        """Return the rows of the last minutes, oldest first."""
        wanted = [sums.names.minute(now - 60 * ago) for ago in range(HISTORY - 1, -1, -1)]
        missing = [name for name in wanted if name not in self._minutes]
        found, events = sums.ask(_read(missing, sums.names.events))
        self._shared = tuple(event for event in map(_read_event, events) if event is not None)
        rows = {**self._minutes, **found}
        # The last three are read again: processes flush what belongs to them a little later.
        self._minutes = {name: rows[name] for name in wanted[:-3]}
        return [rows[name] for name in wanted]

    # Limits

    def _look_at_limits(self) -> str:
        """Look at the logs of limits if it is time to; return why they cannot be shown, if so."""
        began = time.monotonic()
        if began < self._limits_due:
            return ""
        try:
            limiter = default_limiter()
            if limiter.remote is not None and (keys := _number_of_keys(limiter)) > MOST_KEYS:
                self._limits_due = began + 60
                return f"limits are not looked at among {keys} keys; throttle_status does it"
            report = look_at(limiter, top=0)
        except SettingsError as error:
            return str(error)
        self._decided_by = report.keeper.who
        self._limits = tuple(
            LimitLoad(
                name=policy.name,
                group=policy.group,
                identities=sum(limit.identities for limit in policy.limits),
                blocked=sum(limit.blocked for limit in policy.limits),
                denied=None,
            )
            for policy in report.policies
        )
        took = time.monotonic() - began
        self._limits_due = began + max(LIMITS_EVERY, took / LIMITS_SHARE)
        return ""

    def _with_denials(self) -> tuple[LimitLoad, ...]:
        """Return the policies with how often they turn somebody away; those that do come first."""
        denied = dict(self._counts.denied)
        known = [
            LimitLoad(
                name=each.name,
                group=each.group,
                identities=each.identities,
                blocked=each.blocked,
                denied=denied.pop(each.name, 0.0) if self._counts_from is not None else None,
            )
            for each in self._limits
        ]
        known += [
            LimitLoad(name=name, group="code", identities=None, blocked=None, denied=rate)
            for name, rate in denied.items()
        ]
        return tuple(
            sorted(
                known, key=lambda each: (-(each.denied or 0), -(each.blocked or 0), -(each.identities or 0))
            )
        )

    # Events

    def _note_changes(self, aliases: Sequence[AliasHealth], now: float) -> None:
        """Note what has changed since the last look."""
        for each in aliases:
            before, since = self._states.get(each.alias, ("", now))
            if before != each.state:
                self._states[each.alias] = (each.state, now)
                if before or each.state not in ("up", "memory"):
                    self._own.append(_change(each, before, now - since, now))


def _change(health: AliasHealth, before: str, lasted: float, now: float) -> Event:
    how = f" after {lasted:.0f} s {before}" if before and before != "up" else ""
    why = f": {health.cause}" if health.cause else ""
    is_bad = health.state not in ("up", "memory")
    return Event(time=now, text=f"{health.alias} is {health.state}{how}{why}", who="monitor", is_bad=is_bad)


def _when(event: Event) -> float:
    return event.time


def _read_event(text: bytes) -> Event | None:
    """Return a transition that a process has reported; None for what is none."""
    try:
        said = json.loads(text)
        who = f"{said['host']}:{said['pid']}"
        server, circuit = said["server"], said["circuit"]
        if said["after"] == "closed":
            local, drained = said["served_locally"], said["drained"]
            what = f"{server} recovered after {said['lasted']:.1f} s, {local} operations served locally"
            return Event(
                time=float(said["time"]), text=f"{what}, {drained} keys drained", who=who, is_bad=False
            )
        what = f"{server} {circuit} lost: {said['cause']}"
        return Event(time=float(said["time"]), text=what, who=who, is_bad=True)
    except (ValueError, TypeError, KeyError):
        return None


# --- counts ---------------------------------------------------------------------------------------------


def _read(names: Sequence[str], events: str) -> Talk:
    """Return the rows of each bucket by its name, and the last events."""
    turn = b"".join([*(pack("HGETALL", name) for name in names), pack("LRANGE", events, 0, EVENTS - 1)])
    *replies, happened = yield turn, len(names) + 1
    found: dict[str, dict[Subject, Numbers]] = {}
    for name, reply in zip(names, replies, strict=True):
        add_bucket(found.setdefault(name, {}), reply)
    return found, happened


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """What the counts of the last minutes come to."""

    total: TypeRate
    types: tuple[TypeRate, ...]
    denied: Mapping[str, float]
    """By policy, a second."""

    @classmethod
    def none(cls) -> _Counts:
        return cls.of([{}], 60)

    @classmethod
    def of(cls, minutes: Sequence[Mapping[Subject, Numbers]], seconds: float) -> _Counts:
        """Sum up; ``seconds`` is how long the last two of the minutes have lasted."""
        recent: dict[Subject, Numbers] = {}
        for rows in minutes[-2:]:
            for subject, numbers in rows.items():
                recent[subject] = add(recent.get(subject, ()), numbers)
        by_minute = [lines(rows, "type") for rows in minutes]
        known = [{line.name: line.hit_rate for line in found} for found, _ in by_minute]
        now, total = lines(recent, "type")
        names = {line.name for line in now}
        earlier = sorted({name for rates in known for name in rates} - names)
        return cls(
            total=_rate(total, seconds, [whole.hit_rate for _, whole in by_minute]),
            types=tuple(
                _rate(each, seconds, [rates.get(each.name) for rates in known])
                for each in (*now, *[Line(name=name) for name in earlier])
            ),
            denied={
                subject[1]: numbers[0] / seconds
                for subject, numbers in recent.items()
                if subject[0] == "denied"
            },
        )


def _rate(line: Line, seconds: float, history: Sequence[float | None]) -> TypeRate:
    return TypeRate(
        name=line.name,
        hits=line.hits / seconds,
        misses=line.misses / seconds,
        hit_rate=line.hit_rate,
        mean=line.mean,
        p95=line.p95,
        history=tuple(history),
    )


# --- servers --------------------------------------------------------------------------------------------


def _load(health: AliasHealth) -> ServerLoad:
    """Ask the server of an alias that answers; of others there is nothing to say."""
    engine = getattr(caches[health.alias], "_engine", None) if health.state == "up" else None
    if not isinstance(engine, RedisEngine):
        return ServerLoad(alias=health.alias)
    try:
        said = _facts(engine.connections.call(pack("INFO")))
    except Exception:  # it went away just now, or an ACL forbids it: PING has said what there is to say
        return ServerLoad(alias=health.alias)
    return ServerLoad(
        alias=health.alias,
        ops=said.get("instantaneous_ops_per_sec"),
        memory=said.get("used_memory"),
        max_memory=said.get("maxmemory") or None,
        keys_evicted=said.get("evicted_keys"),
        clients=said.get("connected_clients"),
        uptime=said.get("uptime_in_seconds"),
    )


def _facts(reply: bytes) -> dict[str, int]:
    """Return the whole numbers of INFO by their names."""
    pairs = (line.partition(b":") for line in reply.splitlines())
    return {name.decode(): int(value) for name, _, value in pairs if value.isdigit()}


def _number_of_keys(limiter: RateLimiter) -> int:
    """Return how many keys there are where limits are; 0 where nobody says."""
    if limiter.remote is None:
        return 0
    database = limiter.remote.database
    try:
        keys: int = database.connections(database.options).call(pack("DBSIZE"))
    except Exception:  # it is away: the host has the logs then
        return 0
    return keys
