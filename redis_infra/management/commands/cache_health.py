"""``manage.py cache_health``: how are the caches, here and in the site's workers?"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.durations import format_duration, parse_duration
from redis_infra.exceptions import SettingsError
from redis_infra.observability.health import AliasHealth, Finding, HealthReport, Worker, check_health
from redis_infra.observability.stores import StoreReport

POLL = 0.25
"""Seconds between two looks with ``--wait``."""
INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""
MARKS = {"pass": "ok", "warn": "!!", "fail": "XX"}


class Command(BaseCommand):
    help = (
        "Show the health of every cache of redis_infra: state, server, ping, pool, breaker, what waits to be "
        "drained, and which workers of this host are degraded. "
        "Exit status: 0 healthy, or degraded and serving; 1 failed (with --strict also degraded); 2 usage."
    )
    # A broken URLconf must not stop a health probe.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "aliases", nargs="*", metavar="ALIAS", help="a cache alias; all of ours without one"
        )
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")
        parser.add_argument(
            "--deep",
            action="store_true",
            help="ask the server more: write, read, delete a key, Lua, memory, persistence, clients, clock",
        )
        parser.add_argument(
            "--wait", metavar="SECONDS", help='wait until all is healthy, at most this long ("30s")'
        )
        parser.add_argument("--strict", action="store_true", help="exit with 1 also when degraded")

    def handle(
        self,
        *,
        aliases: list[str],
        format: str,  # noqa: A002  # the option's name
        deep: bool,
        wait: str | None,
        strict: bool,
        **_: Any,
    ) -> None:
        try:
            report = self._look(self._known(aliases) or None, deep=deep, wait=_seconds(wait))
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        try:
            self._write(report, format)
        except BrokenPipeError:
            # Who read has seen enough ("| grep -q"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if report.status == "fail" or (strict and report.status == "warn"):
            raise SystemExit(1)

    def _write(self, report: HealthReport, format: str) -> None:  # noqa: A002  # as above
        if format == "json":
            self.stdout.write(json.dumps(report.as_dict(), indent=2, default=str))
        else:
            self._print(report)
        self.stdout.flush()

    def _known(self, aliases: list[str]) -> list[str]:
        for alias in aliases:
            if alias not in caches.settings:
                known = ", ".join(sorted(caches.settings))
                raise CommandError(f"{alias!r} is not a cache; CACHES has: {known}", returncode=2)
        return aliases

    def _look(self, aliases: list[str] | None, *, deep: bool, wait: float) -> HealthReport:
        deadline = time.monotonic() + wait
        while True:
            report = check_health(aliases, deep=deep)
            if report.status == "pass" or time.monotonic() >= deadline:
                return report
            time.sleep(min(POLL, max(deadline - time.monotonic(), 0.0)))

    def _print(self, report: HealthReport) -> None:
        if not report.aliases:
            self.stdout.write("No cache in CACHES uses redis_infra.cache.RedisCache.")
        width = max((len(each.alias) for each in report.aliases), default=2)
        for each in report.aliases:
            self._print_alias(each, width)
        if report.kv is not None:
            self._print_store(report.kv, width)
        self.stdout.write(f"overall: {self._coloured(report.status)}")

    def _print_alias(self, health: AliasHealth, width: int) -> None:
        mark = self._coloured(health.status)
        self.stdout.write(f"{health.alias:<{width}}  {mark}  " + "   ".join(_summary(health)))
        for line in _details(health):
            self.stdout.write(f"{'':<{width}}        {line}")

    def _print_store(self, store: StoreReport, width: int) -> None:
        words = [store.state, store.provider, store.where]
        if store.ping_ms is not None:
            words.append(f"ping {store.ping_ms:.2f} ms")
        line = "   ".join(word for word in dict.fromkeys(words) if word)
        self.stdout.write(f"{'kv':<{width}}  {self._coloured(store.status)}  {line}")
        said = {"why": store.cause, "found by": store.reason, "what to do": store.remedy}
        for name, text in said.items():
            if text:
                self.stdout.write(f"{'':<{width}}        {name}: {text}")

    def _coloured(self, status: str) -> str:
        style = {"pass": self.style.SUCCESS, "warn": self.style.WARNING, "fail": self.style.ERROR}[status]
        return style(f"[{MARKS[status]}] {status}")


def _seconds(wait: str | None) -> float:
    if wait is None:
        return 0.0
    try:
        return parse_duration(_number(wait), name="--wait")
    except SettingsError as error:
        raise CommandError(str(error), returncode=2) from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _summary(health: AliasHealth) -> list[str]:
    words = [health.state, health.server, health.version]
    if health.ping_ms is not None:
        words.append(f"ping {health.ping_ms:.2f} ms")
    if health.pool:
        words.append(f"pool {health.pool['in_use']}/{health.pool['max']}")
    if health.breaker and (health.state == "up" or health.breaker["reach"] != "closed"):
        words.append(f"breaker {health.breaker['reach']}")
    return [word for word in words if word]


def _details(health: AliasHealth) -> list[str]:
    lines = []
    if health.cause:
        lines.append(f"why: {health.cause}")
    if health.rule:
        lines.append(f"found by: {health.rule} ({health.reason})")
    if health.fallback and health.state != "up":
        entries, size = health.fallback["entries"], health.fallback["bytes"]
        lines.append(
            f"this process' fallback: {entries} entries, {size} bytes; keys to drain: {health.pending}"
        )
    lines += [_worker(each) for each in health.workers]
    lines += [_finding(each) for each in health.findings]
    if health.remedy:
        lines.append(f"what to do: {health.remedy}")
    return lines


def _worker(worker: Worker) -> str:
    who = f"worker {worker.pid} ({worker.process or 'unknown'})"
    how_long = f" for {format_duration(max(time.time() - worker.since, 0.0))}" if worker.since else ""
    if not worker.alive:
        return f"{who}: died while {worker.state}, {worker.pending} keys are left to drain by others"
    waiting = (
        f"{worker.pending} keys wait to be drained, {worker.fallback_ops} operations served without Redis"
    )
    return f"{who}: {worker.state}{how_long}: {worker.cause or 'draining'}; {waiting}"


def _finding(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"[{MARKS[finding.status]}] {finding.name}: {finding.value}{remedy}"
