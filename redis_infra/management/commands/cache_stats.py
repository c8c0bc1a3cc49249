"""``manage.py cache_stats``: what the query cache did for the site, by type, function or alias."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.conf import get_settings
from redis_infra.durations import format_duration, parse_duration
from redis_infra.exceptions import SettingsError
from redis_infra.observability.monitor_view import amount, count
from redis_infra.observability.stats import (
    By,
    Line,
    ServerLine,
    StatsReport,
    is_enabled,
    read_stats,
    reset_stats,
)

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""
COLUMNS = ("hits", "misses", "hit%", "stale", "waits", "errors", "loads", "mean", "p95")
SIZES = ("keys", "memory")


class Command(BaseCommand):
    help = (
        "Show what the query cache did for all processes of the site: hits, misses, stale values served, "
        "waits, errors and loading times, by data type, function or cache alias, and what memory types take. "
        "Exit status: 0 shown; 1 Redis is away, so that only this process' counts could be; 2 usage."
    )
    # It is looked at when something is wrong; a broken URLconf must not be in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        # None is told from what somebody has written: --reset goes with none of these.
        parser.add_argument("--by", choices=["type", "function", "alias"], help="default: type")
        parser.add_argument(
            "--since", metavar="DURATION", help='how far to look back ("5min", "24h"); default: 1h'
        )
        parser.add_argument(
            "--top", type=int, metavar="N", help="show the N busiest, 0 for the total alone; all without it"
        )
        parser.add_argument("--reset", action="store_true", help="forget all that was counted; asks before")
        parser.add_argument("--yes", action="store_true", help="do not ask before --reset")
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")

    def handle(
        self,
        *,
        by: By | None,
        since: str | None,
        top: int | None,
        reset: bool,
        yes: bool,
        format: str,  # noqa: A002  # the option's name
        **_: Any,
    ) -> None:
        if top is not None and top < 0:
            raise CommandError(f"--top {top} is not a number from 0 up", returncode=2)
        if reset and (by, since, top) != (None, None, None):
            raise CommandError(
                "--reset forgets all that was counted; --by, --since and --top do not go with it",
                returncode=2,
            )
        seconds = _seconds(since or "1h")
        try:
            if reset:
                self._reset(format, asks=not yes)
                return
            report = read_stats(by or "type", since=seconds, top=top)
            self._write(report, seconds, format)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # Who read has seen enough ("| head"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except SettingsError as error:
            raise CommandError(f"{error} (run: python manage.py check --tag redis_infra)") from error
        if report.status == "fail":
            raise SystemExit(1)

    def _reset(self, format: str, *, asks: bool) -> None:  # noqa: A002  # as above
        from redis_infra.connection.failures import describe

        if asks and not self._agreed():
            self.stdout.write("Nothing was forgotten.")
            return
        try:
            removed = reset_stats()
        except SettingsError:
            raise
        except Exception as error:  # whatever Redis has against it
            raise CommandError(f"Redis unavailable ({describe(error)}); nothing changed") from error
        if format == "json":
            self.stdout.write(json.dumps({"schema": "redis_infra.cache_stats/1", "reset": removed}, indent=2))
        else:
            self.stdout.write(f"forgot the counts of {removed} minutes and hours")

    def _agreed(self) -> bool:
        if not sys.stdin.isatty():
            raise CommandError("there is nobody to ask; write --yes to forget all counts", returncode=2)
        answer = input("Forget all that was counted, for all processes? [y/N] ")
        return answer.strip().lower() in ("y", "yes")

    def _write(self, report: StatsReport, asked: float, format: str) -> None:  # noqa: A002  # as above
        if format == "json":
            self.stdout.write(json.dumps(report.as_dict(), indent=2))
        else:
            for line in (*_heading(report, asked), *_table(report), *_below(report)):
                self.stdout.write(line)
        self.stdout.flush()


def _seconds(since: str) -> float:
    try:
        seconds = parse_duration(since, name="--since")
    except SettingsError as error:
        raise CommandError(str(error), returncode=2) from error
    if seconds <= 0:
        raise CommandError(f"--since {since} is no time to look back; write '5min' or '24h'", returncode=2)
    if seconds > time.time():
        raise CommandError(f"--since {since} goes back beyond 1970; write '5min' or '24h'", returncode=2)
    return seconds


# --- text -----------------------------------------------------------------------------------------------


def _heading(report: StatsReport, asked: float) -> Iterator[str]:
    if report.source == "all":
        ago = format_duration(report.time - report.since)
        yield f"all processes, since {_clock(report)} ({ago})   {report.server}"
        if asked > report.time - report.since + 1:
            kept, wanted = format_duration(get_settings().stats.keep), format_duration(asked)
            yield f"  no more is kept: REDIS_INFRA['STATS'] says KEEP: {kept}, and {wanted} was asked"
        if not is_enabled():
            yield "  REDIS_INFRA['STATS'] says ENABLED: False, so nothing is added"
        return
    yield "this process alone, since it started"
    if report.cause:
        yield f"  cluster totals unavailable: {report.cause} ({report.server})"
    else:
        yield "  no Redis is configured, and each process counts for itself; set REDIS_URL to see them all"


def _clock(report: StatsReport) -> str:
    form = "%H:%M" if report.time - report.since < 12 * 3600 else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(report.since).strftime(form)  # noqa: DTZ006  # as the reader's own clock


def _table(report: StatsReport) -> Iterator[str]:
    if not report.lines and not report.omitted:
        yield "nothing was counted: no function with @cached or @cached_many was called"
        return
    columns = (*COLUMNS, *SIZES) if report.memory is not None else COLUMNS
    rows = [[report.by, *columns]]
    rows += [[line.name, *_cells(line, len(columns))] for line in (*report.lines, report.total)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        yield "  ".join([f"{row[0]:<{widths[0]}}", *_right(row[1:], widths[1:])]).rstrip()
    if report.omitted:
        yield f"{report.omitted} more; the total is of all"


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]


def _cells(line: Line, wanted: int) -> list[str]:
    rate = "-" if line.hit_rate is None else f"{line.hit_rate * 100:.1f}"
    counts = [count(each) for each in (line.stale, line.waits, line.errors, line.computations)]
    times = [_time(line.mean), _time(line.p95)]
    sizes = [count(line.keys), amount(line.nbytes)]
    return [count(line.hits), count(line.misses), rate, *counts, *times, *sizes][:wanted]


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


def _below(report: StatsReport) -> Iterator[str]:
    if report.memory is not None and report.memory.keys:
        how = "sizes from a sample" if report.memory.is_complete else "from a sample of the keys"
        yield f"memory of the query cache: {amount(report.memory.nbytes)} ({how})"
    for alias, cause in ({} if report.memory is None else report.memory.missing).items():
        yield f"memory of {alias}: not known: {cause}"
    for server in report.servers:
        yield f"cache on {server.name}: {_server(server)}"
    if any(report.limits.values()):
        by = ", ".join(f"{name} {count(number)}" for name, number in report.denied.items())
        said = report.limits
        yield (
            f"limits: {count(said['allowed'])} allowed, {count(said['denied'])} denied"
            f"{f' ({by})' if by else ''}, {count(said['local'])} decided without Redis"
        )


def _server(line: ServerLine) -> str:
    said = [f"{count(line.hits)} hits, {count(line.misses)} misses"]
    said.append(f"{count(line.fallback_ops)} operations served without Redis")
    said += [
        f"{count(number)} {name}"
        for name, number in (
            ("failures", line.failures),
            ("retries", line.retries),
            ("unreadable values", line.unreadable),
            ("keys drained", line.drained),
        )
        if number
    ]
    return ", ".join(said)
