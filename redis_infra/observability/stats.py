"""What the query cache did for all processes of the site: read from the sums, or, without them, of this one.

Counts of the last hour are kept by minutes, older ones by hours (:mod:`redis_infra.observability.flushing`).
Changes nothing but with :func:`reset_stats`. Prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from redis_infra.conf import get_settings
from redis_infra.connection.bulk import batches, unlink
from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.observability.counts import (
    FUNCTION,
    LIMITS,
    OTHER,
    SERVER,
    Numbers,
    Subject,
    add,
    counted,
    known_functions,
    percentile,
    read_field,
    read_numbers,
)
from redis_infra.observability.flushing import MINUTES, Names, Sums, open_sums
from redis_infra.observability.samples import Sample, sample_memory

__all__ = ["By", "Line", "ServerLine", "StatsReport", "Sums", "buckets", "lines", "read_stats", "reset_stats"]

By: TypeAlias = Literal["type", "function", "alias"]
_HOUR: Final = 3600
_AT_ONCE: Final = 30
"""Buckets that are read in one write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one data type, function or alias did. Seconds, bytes."""

    name: str
    hits: int = 0
    misses: int = 0
    stale: int = 0
    waits: int = 0
    errors: int = 0
    computations: int = 0
    seconds: float = 0.0
    """In loaders."""
    p95: float | None = None
    """Of single loads; None where there were none, or nobody kept the times of each."""
    keys: int | None = None
    """Entries that there are now; None where that was not looked at."""
    nbytes: int | None = None

    @property
    def hit_rate(self) -> float | None:
        """From 0 to 1; None if nobody asked."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    @property
    def mean(self) -> float | None:
        """Seconds of one load."""
        return self.seconds / self.computations if self.computations else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hit_rate": self.hit_rate, "mean": self.mean}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLine:
    """What one server did for the site: operations of the cache, and what became of them."""

    name: str
    hits: int = 0
    misses: int = 0
    fallback_ops: int = 0
    failures: int = 0
    retries: int = 0
    unreadable: int = 0
    drained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReport:
    """All that was asked for."""

    status: Literal["pass", "fail"]
    time: float
    since: float
    """Unix seconds from when on it was counted: the beginning of a minute, or of an hour."""
    by: By
    source: Literal["all", "process"]
    """Whose counts: those of all processes, or of this one alone."""
    server: str
    """Where the sums are; ``memory`` where each process counts for itself."""
    cause: str = ""
    """Why there are no sums."""
    lines: tuple[Line, ...] = ()
    omitted: int = 0
    total: Line
    servers: tuple[ServerLine, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    """Decisions of limiters: allowed, denied, and those made without Redis."""
    denied: dict[str, int] = field(default_factory=dict)
    """By policy."""
    memory: Sample | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: stable names, seconds, bytes and counts as numbers."""
        plain = {name: getattr(self, name) for name in ("status", "time", "since", "by", "source", "server")}
        return {
            "schema": "redis_infra.cache_stats/1",
            **plain,
            "cause": self.cause,
            "lines": [line.as_dict() for line in self.lines],
            "omitted": self.omitted,
            "total": self.total.as_dict(),
            "servers": [asdict(each) for each in self.servers],
            "limits": self.limits,
            "denied": self.denied,
            "memory": None if self.memory is None else asdict(self.memory),
        }


# --- reading --------------------------------------------------------------------------------------------


def read_stats(
    by: By = "type", *, since: float = _HOUR, top: int | None = None, memory: bool = True
) -> StatsReport:
    """Return what was counted in the last ``since`` seconds by all processes of all hosts.

    No more than is kept (``STATS["KEEP"]``); ``since`` of the report says from when on that is.
    Without Redis, what this process has counted since it started. ``memory`` also looks at what lies in
    Redis by type, by a sample.

    Raises:
        SettingsError: the settings are wrong.
    """
    sums, now = open_sums(), time.time()
    if sums is None:
        return _report(counted(), by, top, now=now, since=now, source="process", server="memory")
    try:
        names, start = buckets(sums.names, min(since, sums.keep), now)
        rows = sums.ask(read_buckets(names))
        found = _report(rows, by, top, now=now, since=start, source="all", server=sums.label)
        return _with_memory(found, rows) if memory and by == "type" else found
    except Exception as error:  # whatever it is, who looks at statistics is told
        from redis_infra.connection.failures import describe

        here = _report(counted(), by, top, now=now, since=now, source="process", server=sums.label)
        return replace(here, status="fail", cause=describe(error))


def reset_stats() -> int:
    """Forget what was counted so far by all; return how many minutes and hours there were.

    What processes have not flushed yet comes after, at most ``FLUSH`` late.

    Raises:
        SettingsError: the settings are wrong.
        Exception: Redis did not do it; what it raises is that of the connection.
    """
    sums = open_sums()
    if sums is None:
        return 0
    removed: int = sums.ask(unlink(_every_bucket(sums.names, sums.keep, time.time())))
    sums.ask(unlink([sums.names.events]))
    return removed


def buckets(names: Names, since: float, now: float) -> tuple[list[str], float]:
    """Return the keys that hold the last ``since`` seconds, oldest first, and when they begin."""
    unit, name = (60, names.minute) if since <= _HOUR else (_HOUR, names.hour)
    start = (now - since) // unit * unit
    return [name(at) for at in _steps(start, now, unit)], start


def _every_bucket(names: Names, keep: float, now: float) -> list[str]:
    # One more of each at both ends: the clocks of hosts differ.
    minutes = [names.minute(at) for at in _steps(now - (MINUTES + 1) * 60, now + 60, 60)]
    return minutes + [names.hour(at) for at in _steps(now - keep - _HOUR, now + _HOUR, _HOUR)]


def _steps(start: float, end: float, unit: int) -> list[float]:
    return [float(at * unit) for at in range(int(start // unit), int(end // unit) + 1)]


def read_buckets(names: Sequence[str]) -> Talk:
    """Return the rows of these buckets, added up."""
    rows: dict[Subject, Numbers] = {}
    for batch in batches(names, _AT_ONCE):
        replies = yield b"".join([pack("HGETALL", name) for name in batch]), len(batch)
        for reply in replies:
            add_bucket(rows, reply)
    return rows


def add_bucket(rows: dict[Subject, Numbers], reply: Sequence[bytes]) -> None:
    """Add the fields and values of one bucket to ``rows``."""
    for text, numbers in zip(reply[::2], reply[1::2], strict=True):
        subject = read_field(text)
        if subject is not None:
            rows[subject] = add(rows.get(subject, ()), read_numbers(numbers))


# --- summing up -----------------------------------------------------------------------------------------


def _report(rows: Mapping[Subject, Numbers], by: By, top: int | None, **facts: Any) -> StatsReport:
    found, total = lines(rows, by)
    shown = found if top is None else found[:top]
    return StatsReport(
        status="pass",
        time=facts.pop("now"),
        by=by,
        lines=tuple(shown),
        omitted=len(found) - len(shown),
        total=total,
        servers=_servers(rows),
        limits=_limits(rows),
        denied={each[1]: numbers[0] for each, numbers in sorted(rows.items()) if each[0] == "denied"},
        **facts,
    )


def lines(rows: Mapping[Subject, Numbers], by: By) -> tuple[list[Line], Line]:
    """Return what functions did by type, by function or by alias, the busiest first, and all of it."""
    name_of: Callable[[Subject], str] = _NAMES[by]
    sums: dict[str, Numbers] = {}
    total: Numbers = ()
    for subject, numbers in rows.items():
        if subject[0] == "function" and len(subject) == 5:
            name = name_of(subject)
            sums[name] = add(sums.get(name, ()), numbers)
            total = add(total, numbers)
    found = [_line(name, numbers) for name, numbers in sums.items()]
    return sorted(found, key=_busy), _line("total", total)


_NAMES: Final[Mapping[By, Callable[[Subject], str]]] = {
    "type": lambda subject: subject[2],
    "function": lambda subject: subject[3],
    "alias": lambda subject: subject[1],
}


def _busy(line: Line) -> tuple[bool, int, str]:
    return line.name == OTHER, -(line.hits + line.misses), line.name


def _line(name: str, numbers: Numbers) -> Line:
    said = dict(zip(FUNCTION, numbers, strict=False))
    micros = said.pop("micros", 0)
    p95 = percentile(numbers[len(FUNCTION) :], 0.95)
    return Line(name=name, seconds=micros / 1e6, p95=p95, **said)


def _servers(rows: Mapping[Subject, Numbers]) -> tuple[ServerLine, ...]:
    named = sorted((each[1], numbers) for each, numbers in rows.items() if each[0] == "server")
    return tuple(ServerLine(name=name, **dict(zip(SERVER, numbers, strict=False))) for name, numbers in named)


def _limits(rows: Mapping[Subject, Numbers]) -> dict[str, int]:
    numbers = rows.get(("limits",), ())
    return dict(zip(LIMITS, (*numbers, 0, 0, 0), strict=False))


def _with_memory(report: StatsReport, rows: Iterable[Subject]) -> StatsReport:
    """Say how much of each type lies in Redis; types of which nothing was counted get a line, too."""
    sample = sample_memory([*rows, *known_functions()])
    sizes = {each.name: each for each in sample.types}
    shown = [
        replace(line, keys=sizes[line.name].keys, nbytes=sizes[line.name].nbytes)
        if line.name in sizes
        else replace(line, keys=0, nbytes=0)
        for line in report.lines
    ]
    if not report.omitted:
        names = {line.name for line in report.lines}
        shown += [
            Line(name=each.name, keys=each.keys, nbytes=each.nbytes)
            for each in sample.types
            if each.name not in names
        ]
    total = replace(report.total, keys=sample.keys, nbytes=sample.nbytes)
    return replace(report, lines=tuple(shown), total=total, memory=sample)


def is_enabled() -> bool:
    """Return whether processes sum what they count (``STATS["ENABLED"]``)."""
    return get_settings().stats.enabled
