"""``manage.py cache_monitor``: the caches, the query cache and the limits of the site, live."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.durations import parse_duration
from redis_infra.exceptions import MissingExtra, SettingsError
from redis_infra.observability.frames import Frame
from redis_infra.observability.monitor import Monitor
from redis_infra.observability.monitor_view import one_line, screen

SHORTEST = 0.1
"""Seconds between two looks, at least."""

Show = Callable[[Frame], None]


class Command(BaseCommand):
    help = (
        "Show the site's caches live: operations, memory, circuits and journal of each server, hit rates by "
        "data type, limits, and what has happened. On a terminal a screen, otherwise a line each time. Goes "
        "on while Redis is away. Ctrl-C ends it. "
        "Exit status: 0; 1 if a cache had failed, or Redis was away, at the last look; 2 usage."
    )
    # It is looked at when something is wrong; a broken URLconf must not be in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "aliases", nargs="*", metavar="ALIAS", help="a cache alias; all of ours without one"
        )
        parser.add_argument(
            "-i", "--interval", metavar="DURATION", default="2s", help="between two looks; default: 2s"
        )
        parser.add_argument("-n", "--count", type=int, metavar="N", help="end after N looks")
        parser.add_argument("--once", action="store_true", help="look once: the same as --count 1")
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            help="default: text; json is an object a line, one each time",
        )

    def handle(
        self,
        *,
        aliases: list[str],
        interval: str,
        count: int | None,
        once: bool,
        format: str,  # noqa: A002  # the option's name
        **options: Any,
    ) -> None:
        if count is not None and count < 1:
            raise CommandError(f"--count {count} is not a number above 0", returncode=2)
        monitor = Monitor(_known(aliases) or None)
        pause, most = _pause(interval), 1 if once else count
        status = "pass"
        try:
            with self._showing(format, most, no_color=options.get("no_color", False)) as show:
                for frame in _looks(monitor, pause, most):
                    show(frame)
                    status = _worst_of(frame)
        except KeyboardInterrupt:
            return  # that is how it is ended
        except BrokenPipeError:
            # Who read has seen enough ("| head"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if status == "fail":
            raise SystemExit(1)

    @contextmanager
    def _showing(self, format: str, most: int | None, *, no_color: bool) -> Iterator[Show]:  # noqa: A002
        """Give what shows a look: a line of JSON, a line of text, or the screen of a terminal."""
        if format == "json":
            yield lambda frame: self._line(json.dumps(frame.as_dict()))
        elif not self.stdout.isatty() or not self._has_rich():
            yield lambda frame: self._line(one_line(frame))
        else:
            with _terminal(self.stdout, most, no_color=no_color) as show:
                yield show

    def _line(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _has_rich(self) -> bool:
        try:
            import rich.live
        except ImportError:
            self.stderr.write(f"lines and no screen: {MissingExtra('rich', 'cli')}")
            return False
        return bool(rich.live)


@contextmanager
def _terminal(stdout: Any, most: int | None, *, no_color: bool) -> Iterator[Show]:
    """Draw on the terminal: one screen over the other, or, for a single look, below the prompt."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=getattr(stdout, "_out", None), no_color=no_color or None, highlight=False)
    if most == 1:
        yield lambda frame: console.print(screen(frame))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda frame: live.update(screen(frame), refresh=True)


def _looks(monitor: Monitor, pause: float, most: int | None) -> Iterator[Frame]:
    """Look every now and then. Slow looks do not add to the pause."""
    looks, due = 0, time.monotonic()
    while True:
        yield monitor.look()
        looks += 1
        if looks == most:
            return
        due = max(due + pause, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))


def _worst_of(frame: Frame) -> str:
    """Return ``fail`` where somebody has to act, or what was asked for could not be seen."""
    away = any(each.state not in ("up", "memory") for each in frame.aliases)
    return "fail" if away else frame.status


def _known(aliases: list[str]) -> list[str]:
    for alias in aliases:
        if alias not in caches.settings:
            known = ", ".join(sorted(caches.settings))
            raise CommandError(f"{alias!r} is not a cache; CACHES has: {known}", returncode=2)
    return aliases


def _pause(interval: str) -> float:
    try:
        seconds = parse_duration(_number(interval), name="--interval")
    except SettingsError as error:
        raise CommandError(str(error), returncode=2) from error
    if seconds < SHORTEST:
        raise CommandError(f"--interval {interval} is too short; write {SHORTEST}s or more", returncode=2)
    return seconds


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
