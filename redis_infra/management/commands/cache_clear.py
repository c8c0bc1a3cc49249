"""``manage.py cache_clear``: forget what is cached, by data type, pattern or tag, or all of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.durations import format_duration
from redis_infra.exceptions import SettingsError
from redis_infra.querycache.clearing import Cleared, Extent, Selector, clear, extent_of, patterns_of_type
from redis_infra.querycache.invalidation import is_text
from redis_infra.querycache.reach import is_in_memory
from redis_infra.querycache.space import Space, space_for
from redis_infra.querycache.warming import discover_warmers

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was, or would be, removed."""

    selector: Selector
    dry_run: bool
    extent: Extent | None
    """With ``dry_run``."""
    cleared: Cleared | None
    """Without."""
    seconds: float

    @property
    def unavailable(self) -> str:
        """Why Redis could not be reached; empty if it could."""
        found = self.cleared or self.extent
        return found.unavailable if found is not None else ""


class Command(BaseCommand):
    help = (
        "Forget what is cached: a data type, a pattern or a tag of the query cache, or all of an alias. "
        "While Redis is away this process' memory forgets at once, and Redis when it answers. "
        "Exit status: 0 done, or nothing matched; 1 Redis is away; 2 usage; 130 Ctrl-C."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--type",
            action="append",
            default=[],
            dest="types",
            metavar="T",
            help="a data type: all functions of it, and keys that begin with T:; repeatable",
        )
        parser.add_argument(
            "--pattern",
            action="append",
            default=[],
            dest="patterns",
            metavar="P",
            help="a glob over keys of the query cache, such as 'chat:42:*'; repeatable",
        )
        parser.add_argument(
            "--tag", action="append", default=[], dest="tags", metavar="X", help="a tag; repeatable"
        )
        parser.add_argument(
            "--all", action="store_true", help="everything under the alias, as cache.clear() does"
        )
        parser.add_argument("--dry-run", action="store_true", help="say how much, and forget nothing")
        parser.add_argument("--yes", action="store_true", help="do not ask before --all")
        parser.add_argument("-a", "--alias", default="default", help="a cache alias (default: default)")
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")

    def handle(
        self,
        *,
        types: list[str],
        patterns: list[str],
        tags: list[str],
        all: bool,  # noqa: A002  # the option's name
        dry_run: bool,
        yes: bool,
        alias: str,
        format: str,  # noqa: A002  # the option's name
        verbosity: int,
        **_: Any,
    ) -> None:
        selector = _selector(alias, types, patterns, tags, all=all)
        if types:
            self._find_functions()
        try:
            for each in types:
                patterns_of_type(each, alias)
            space = space_for(alias)
            if space is None:
                raise SettingsError(f"cache {alias!r} is Django's dummy, which keeps nothing")
            if is_in_memory(space):
                self.stderr.write(
                    f"cache {alias!r} has no Redis: this is about the memory of this process, and no other's",
                    self.style.WARNING,
                )
            if all and not dry_run and not yes and not self._agreed(alias, space):
                return self._finish("Nothing was removed.", 0)
            report = self._clear(space, selector, dry_run=dry_run, silent=verbosity == 0)
        except SettingsError as error:
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        said = _said(report) if format == "text" else _as_json(report)
        return self._finish(said, 1 if report.unavailable else 0)

    def _find_functions(self) -> None:
        """Import what has cached functions in it; models are imported already."""
        discover_warmers()
        urls = getattr(settings, "ROOT_URLCONF", None)
        try:
            if urls:
                import_module(urls)
        except Exception as error:  # the site's own code; a broken view must not keep it from clearing
            cause = f"{type(error).__name__}: {error}"
            self.stderr.write(
                f"functions of views are not known, as {urls} does not import: {cause}", self.style.WARNING
            )

    def _agreed(self, alias: str, space: Space) -> bool:
        if not sys.stdin.isatty():
            raise CommandError("there is nobody to ask; write --yes to remove everything", returncode=2)
        # Not input()'s own prompt: stdout is for what came of it. Plain, as it is no error.
        asked = f"This removes everything under {alias!r} in {space.engine.label}, sessions as well.\n"
        self.stderr.write(f"{asked}Type {alias} to go on: ", lambda text: text, ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip() == alias

    def _clear(self, space: Space, selector: Selector, *, dry_run: bool, silent: bool) -> Report:
        began = time.perf_counter()
        extent = cleared = None
        with _progress(self.stderr, silent=silent) as watch:
            if dry_run:
                watch("counting")
                extent = extent_of(space, selector)
            else:
                cleared = clear(space, selector, watch)
        return Report(
            selector=selector,
            dry_run=dry_run,
            extent=extent,
            cleared=cleared,
            seconds=time.perf_counter() - began,
        )

    def _finish(self, text: str, code: int) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            # Who read has seen enough ("| head"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code:
            raise SystemExit(code)


def _selector(alias: str, types: list[str], patterns: list[str], tags: list[str], *, all: bool) -> Selector:  # noqa: A002
    selector = Selector(alias=alias, types=tuple(types), patterns=tuple(patterns), tags=tuple(tags), all=all)
    if not selector:
        raise CommandError(
            "nothing is selected; write --type user, --pattern 'chat:42:*', --tag room:42, or --all",
            returncode=2,
        )
    if all and (types or patterns or tags):
        raise CommandError("--all is everything; --type, --pattern and --tag do not go with it", returncode=2)
    for option, each in [*[("--pattern", p) for p in patterns], *[("--tag", t) for t in tags]]:
        if not each or (option == "--pattern" and not each.strip("*")):
            raise CommandError(
                f"{option} {each!r} selects {'everything; write --all for that' if each else 'nothing'}",
                returncode=2,
            )
        if not is_text(each):
            raise CommandError(f"{option} {each!r} is not UTF-8, which all keys are", returncode=2)
    return selector


# --- progress -------------------------------------------------------------------------------------------


@contextmanager
def _progress(stream: Any, *, silent: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being removed: a spinner on a terminal, if rich is installed; nothing otherwise."""
    drawn = _spinner() if stream.isatty() and not silent else None
    if drawn is None:
        yield lambda what: None
        return
    task = drawn.add_task("")
    with drawn:
        yield lambda what: drawn.update(task, description=what)


def _spinner() -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr, highlight=False),
        transient=True,
    )


# --- what came of it ------------------------------------------------------------------------------------


def _said(report: Report) -> str:
    alias = report.selector.alias
    away = f"Redis unavailable: {report.unavailable.rstrip('.')}"
    what = "key" if report.selector.all else "entry"
    if report.extent is not None:
        said = f"{alias}: would remove {_counted(report.extent.keys, what)}{_bytes(report.extent)}"
        if not report.unavailable:
            return said
        return f"{away}\n{said}, of this process' memory; what Redis holds is not known."
    assert report.cleared is not None
    said = f"{alias}: removed {_counted(report.cleared.removed, what)} in {format_duration(report.seconds)}"
    if not report.unavailable:
        return said
    return (
        f"{away}\n{said}, of this process' memory; Redis forgets before it is read again. "
        f"Other processes may serve from their own memory until then."
    )


def _counted(number: int, what: str) -> str:
    plural = {"key": "keys", "entry": "entries"}[what]
    return f"{number:,} {what if number == 1 else plural}"


def _bytes(extent: Extent) -> str:
    if not extent.keys:
        return ""
    if extent.size is None:
        return " (bytes are not known: no permission for MEMORY USAGE)"
    if extent.sampled:
        return f", about {_size(extent.size)} (by a sample of {extent.sampled:,})"
    return f", {_size(extent.size)}"


def _size(number: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _as_json(report: Report) -> str:
    chosen = asdict(report.selector)
    said: dict[str, Any] = {
        "schema": "redis_infra.cache_clear/1",
        "alias": chosen.pop("alias"),
        "selected": chosen,
        "dry_run": report.dry_run,
        "seconds": report.seconds,
    }
    if report.extent is not None:
        said |= {"keys": report.extent.keys, "bytes": report.extent.size, "sampled": report.extent.sampled}
    if report.cleared is not None:
        said["removed"] = report.cleared.removed
    said["unavailable"] = report.unavailable
    return json.dumps(said, indent=2)
