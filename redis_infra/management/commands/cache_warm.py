"""``manage.py cache_warm``: load what is to be in the cache before somebody asks for it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, Protocol

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.management.base import OutputWrapper as Stream

from redis_infra.durations import format_duration
from redis_infra.exceptions import SettingsError, StoreUnavailable
from redis_infra.querycache.reach import check_reach, is_in_memory
from redis_infra.querycache.space import space_for
from redis_infra.querycache.warm_run import Outcome, warm
from redis_infra.querycache.warming import Warmer, discover_warmers, find_warmers
from redis_infra.throttling import Rate

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""
EVERY: Final = 5.0
"""Seconds between two lines of progress where there is no terminal."""
STOPPING: Final = "stopping when what is being loaded is there; Ctrl-C again not to wait"


class Command(BaseCommand):
    help = (
        "Load what the site's warmers name and is not fresh. Goes on after a failing item. "
        "Exit status: 0 done, or nothing to do; 1 something failed, or Redis is away; 2 usage; 130 Ctrl-C."
    )
    # It is part of deployments; a broken URLconf is not its business.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="a warmer; all of them without one")
        parser.add_argument("--list", action="store_true", help="list the warmers, and load nothing")
        parser.add_argument(
            "--jobs", type=int, default=1, metavar="N", help="load in that many threads (default: 1)"
        )
        parser.add_argument("--rate", metavar="N/s", help='load that many at most: "50/s", "600/min"')
        parser.add_argument(
            "--limit", type=int, metavar="N", help="look at the first N of each warmer, and no more"
        )
        parser.add_argument("--force", action="store_true", help="load what is fresh, too")
        parser.add_argument("--dry-run", action="store_true", help="say how many, and load nothing")
        parser.add_argument("--fail-fast", action="store_true", help="end at the first failure")
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")

    def handle(
        self,
        *,
        names: list[str],
        list: bool,  # noqa: A002  # the option's name
        jobs: int,
        rate: str | None,
        limit: int | None,
        force: bool,
        dry_run: bool,
        fail_fast: bool,
        format: str,  # noqa: A002  # the option's name
        verbosity: int,
        **_: Any,
    ) -> None:
        options = {
            "jobs": _positive("--jobs", jobs),
            "rate": _per_second(rate),
            "limit": None if limit is None else _positive("--limit", limit),
            "force": force,
            "dry_run": dry_run,
            "fail_fast": fail_fast,
        }
        try:
            discover_warmers()
            wanted = find_warmers(names)
            if list or not wanted:
                return self._finish(_listed(wanted) if format == "text" else _list_as_json(wanted), 0)
            self._check(wanted)
            outcomes = self._warm(wanted, options, silent=verbosity == 0)
        except SettingsError as error:
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        return self._finish(
            _report(outcomes) if format == "text" else _as_json(outcomes, dry_run), _exit_code(outcomes)
        )

    def _check(self, wanted: list[Warmer]) -> None:
        """Say at once what would make all work useless."""
        for alias in dict.fromkeys(each.alias for each in wanted):
            space = space_for(alias)
            if space is None:
                self._warn(f"cache {alias!r} is Django's dummy, which keeps nothing")
                continue
            if is_in_memory(space):
                self._warn(
                    f"cache {alias!r} has no Redis: this warms the memory of this process, and no other's"
                )
            try:
                check_reach(space)
            except StoreUnavailable as error:
                raise CommandError(
                    f"Redis unavailable: {error.reason.rstrip('.')}; nothing changed"
                ) from error

    def _warn(self, text: str) -> None:
        with _whoever_reads():
            self.stderr.write(text, self.style.WARNING)

    def _warm(self, wanted: list[Warmer], options: dict[str, Any], *, silent: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        with _progress(self.stderr, no_color=self.style.ERROR("x") == "x", silent=silent) as progress:
            for each in wanted:
                outcome = warm(each, **options, watch=progress.show)
                progress.show(outcome, last=True)
                outcomes.append(outcome)
                if outcome.interrupted or outcome.unavailable or (outcome.failed and options["fail_fast"]):
                    break
        return outcomes

    def _finish(self, text: str, code: int) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            # Who read has seen enough ("| head"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code:
            raise SystemExit(code)


# --- arguments ------------------------------------------------------------------------------------------


def _positive(option: str, number: int) -> int:
    if number < 1:
        raise CommandError(f"{option} {number} is not a number from 1 up", returncode=2)
    return number


def _per_second(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = Rate.parse(f"{text}/s" if text.isdigit() else text)
    except SettingsError as error:
        raise CommandError(f"--rate: {error}", returncode=2) from error
    if rate.limit < 1:
        raise CommandError(f"--rate {text!r} would never load anything; write such as '50/s'", returncode=2)
    if rate.also or rate.fixed:
        raise CommandError(f"--rate {text!r} is more than a number per time; write '50/s'", returncode=2)
    return rate.limit / rate.window


# --- progress -------------------------------------------------------------------------------------------


def _whoever_reads() -> AbstractContextManager[None]:
    """Go on with the work where who read stderr has gone ("2>&1 | head")."""
    return suppress(OSError)


class _Progress(Protocol):
    def show(self, outcome: Outcome, *, last: bool = False) -> None: ...


@contextmanager
def _progress(stream: Stream, *, no_color: bool, silent: bool) -> Iterator[_Progress]:
    """Show progress on stderr: a bar on a terminal, if rich is installed, lines otherwise."""
    if silent:
        yield _Silence()
    elif stream.isatty() and (bars := _bars(no_color=no_color)) is not None:
        with bars.drawn:
            yield bars
    else:
        yield _Lines(stream)


class _Silence:
    def show(self, outcome: Outcome, *, last: bool = False) -> None:
        """Say nothing."""


class _Lines:
    """A line every five seconds."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._next = time.monotonic() + EVERY

    def show(self, outcome: Outcome, *, last: bool = False) -> None:
        if outcome.interrupted and not last:
            self._say(STOPPING)
        if last or outcome.interrupted or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        self._say(self._line(outcome))

    def _say(self, text: str) -> None:
        with _whoever_reads():
            self._stream.write(text)

    @staticmethod
    def _line(outcome: Outcome) -> str:
        of = "" if outcome.total is None else f"/{outcome.total:,}"
        rate = outcome.done / max(outcome.seconds, 1e-6)
        return f"{outcome.name}: {outcome.done:,}{of}, {rate:,.0f}/s, {outcome.failed:,} failed"


class _Bars:
    """One bar for each warmer."""

    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn
        self._tasks: dict[str, Any] = {}

    def show(self, outcome: Outcome, *, last: bool = False) -> None:
        if outcome.interrupted and not last:
            self.drawn.console.print(STOPPING)
        total = outcome.done if last and not _is_cut_short(outcome) else outcome.total
        if outcome.name not in self._tasks:
            # Without a total it would be of a hundred.
            self._tasks[outcome.name] = self.drawn.add_task(outcome.name, total=total, rate="", failed="")
        rate = outcome.done / max(outcome.seconds, 1e-6)
        self.drawn.update(
            self._tasks[outcome.name],
            completed=outcome.done,
            total=total,
            rate=f"{rate:,.0f}/s",
            failed=f"{outcome.failed:,} failed" if outcome.failed else "",
        )
        if last:
            self.drawn.stop_task(self._tasks[outcome.name])


def _bars(*, no_color: bool) -> _Bars | None:
    """Return bars on stderr; None without rich, the extra ``cli``."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return _Bars(
        Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            TextColumn("[red]{task.fields[failed]}"),
            console=Console(file=sys.stderr, no_color=no_color, highlight=False),
        )
    )


# --- what came of it ------------------------------------------------------------------------------------


def _is_cut_short(outcome: Outcome) -> bool:
    return bool(outcome.interrupted or outcome.unavailable)


def _status(outcome: Outcome) -> str:
    if outcome.interrupted:
        return "interrupted"
    if outcome.unavailable:
        return "unavailable"
    return "failed" if outcome.failed else "ok"


def _exit_code(outcomes: list[Outcome]) -> int:
    statuses = {_status(each) for each in outcomes}
    if "interrupted" in statuses:
        return INTERRUPTED
    return int(statuses != {"ok"})


def _report(outcomes: list[Outcome]) -> str:
    width = max(len(each.name) for each in outcomes)
    return "\n".join(line for each in outcomes for line in _lines(each, width))


def _lines(outcome: Outcome, width: int) -> Iterator[str]:
    counts = [
        (outcome.warmed, "would be loaded" if outcome.dry_run else "warmed"),
        (outcome.fresh, "fresh already"),
        (outcome.left, "left to others"),
        (outcome.unkept, "not to be kept"),
        (outcome.lost, "loaded and not stored"),
        (outcome.failed, "failed"),
    ]
    said = ", ".join(f"{number:,} {what}" for number, what in counts if number) or (
        "nothing loaded" if _is_cut_short(outcome) else "nothing to do"
    )
    yield f"{outcome.name:<{width}}  {said} in {format_duration(outcome.seconds)}"
    for trouble in outcome.troubles:
        yield f"{'':<{width}}  failed: {trouble.key}: {trouble.error}"
    if outcome.failed > len(outcome.troubles):
        yield f"{'':<{width}}  and {outcome.failed - len(outcome.troubles):,} more"
    if outcome.interrupted:
        yield f"{'':<{width}}  interrupted; what was loaded is stored"
    if outcome.unavailable:
        yield f"{'':<{width}}  Redis went away: {outcome.unavailable.rstrip('.')}"


def _as_json(outcomes: list[Outcome], dry_run: bool) -> str:
    return json.dumps(
        {
            "schema": "redis_infra.cache_warm/1",
            "dry_run": dry_run,
            "warmers": [{"status": _status(each), **asdict(each)} for each in outcomes],
        },
        indent=2,
    )


def _listed(found: list[Warmer]) -> str:
    if not found:
        return "No warmers: no installed app has a module 'warmers' with a @warmer in it."
    rows = [(each.name, each.kind, each.alias, _of(each), each.summary) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _of(warmer: Warmer) -> str:
    return "keys and values" if warmer.function is None else warmer.recipe.label


def _list_as_json(found: list[Warmer]) -> str:
    listed = [
        {
            "name": each.name,
            "type": each.kind,
            "cache": each.alias,
            "function": None if each.function is None else each.recipe.label,
            "source": each.source,
            "summary": each.summary,
        }
        for each in found
    ]
    return json.dumps({"schema": "redis_infra.cache_warm_list/1", "warmers": listed}, indent=2)
