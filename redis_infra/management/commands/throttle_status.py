"""``manage.py throttle_status``: who is limited, who is turned away now, and who decides."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.durations import format_duration
from redis_infra.exceptions import SettingsError
from redis_infra.observability.identities import Client
from redis_infra.observability.limit_logs import Keeper
from redis_infra.observability.limits import (
    TOP,
    LimitsReport,
    LimitStatus,
    PolicyStatus,
    Standing,
    keys_of,
    look_at,
    look_for,
)
from redis_infra.throttling.limiter import RateLimiter, default_limiter

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""
NOBODY = {"deny": "everybody is turned away (on_outage)", "allow": "everybody may pass (on_outage)"}
GROUPS = {"drf": " (DRF)", "code": " (not in settings)"}


class Command(BaseCommand):
    help = (
        "Show the limits of THROTTLE and of DRF's scopes: how many identities have a log, how many are "
        "turned away now, and who has used the most, by digest. Charges nothing. "
        "Exit status: 0 shown, also while Redis is away and the host decides; 1 failed; 2 usage."
    )
    # It is looked at when something is wrong; a broken URLconf must not be in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "scope", nargs="?", metavar="SCOPE", help="a policy or DRF scope; all without one"
        )
        parser.add_argument(
            "--ident",
            metavar="IDENT",
            help="one client: user:7, ip:203.0.113.7, or ip=203.0.113.7,username=bob for limits of both",
        )
        parser.add_argument("--blocked", action="store_true", help="list only who is turned away now")
        parser.add_argument("--top", type=int, metavar="N", help=f"list N of each limit (default: {TOP})")
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")

    def handle(
        self,
        *,
        scope: str | None,
        ident: str | None,
        blocked: bool,
        top: int | None,
        format: str,  # noqa: A002  # the option's name
        **_: Any,
    ) -> None:
        if ident is not None and (blocked or top is not None):
            raise CommandError(
                "--ident shows one client; --blocked and --top do not go with it", returncode=2
            )
        if top is not None and top < 0:
            raise CommandError(f"--top {top} is not a number from 0 up", returncode=2)
        try:
            report = self._look(scope, ident, blocked=blocked, top=TOP if top is None else top)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        try:
            self._write(report, format)
        except BrokenPipeError:
            # Who read has seen enough ("| head"). What is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if report.keeper.status == "fail":
            raise SystemExit(1)

    def _look(self, scope: str | None, ident: str | None, *, blocked: bool, top: int) -> LimitsReport:
        limiter = _limiter()
        try:
            if ident is None:
                return look_at(limiter, scope, top=top, blocked=blocked)
            return look_for(limiter, Client.parse(ident, keys_of(limiter, scope)), scope)
        except SettingsError as error:
            raise CommandError(str(error), returncode=2) from error

    def _write(self, report: LimitsReport, format: str) -> None:  # noqa: A002  # as above
        if format == "json":
            self.stdout.write(json.dumps(report.as_dict(), indent=2))
        else:
            self._print(report)
        self.stdout.flush()

    def _print(self, report: LimitsReport) -> None:
        for line in _keeper(report.keeper):
            self.stdout.write(line)
        for policy in report.policies:
            for line in _policy(policy, away=bool(report.keeper.cause or report.keeper.since)):
                self.stdout.write(line)
        if report.omitted:
            self.stdout.write(f"{report.omitted} more logs of rates that stand in code")
        said = report.counters
        self.stdout.write(
            f"this process itself: {said['allowed']} allowed, {said['denied']} denied, "
            f"{said['local']} of them decided without Redis"
        )


def _limiter() -> RateLimiter:
    try:
        return default_limiter()
    except SettingsError as error:
        raise CommandError(f"{error} (run: python manage.py check --tag redis_infra)") from error


def _keeper(keeper: Keeper) -> Iterator[str]:
    who = {"redis": "Redis", "host": "the processes of this host", "process": "each process for itself"}
    since = f" for {format_duration(max(time.time() - keeper.since, 0.0))}" if keeper.since else ""
    yield f"decided by {who[keeper.who]}{since} ({keeper.server})"
    if keeper.who == "process" and keeper.server == "memory":
        yield "  each process counts for itself; here are the logs of this one"
    if keeper.who == "host":
        yield "  here are the logs of this host: whom it let through since Redis is away"
    if keeper.cause:
        yield f"  why: {keeper.cause}"
    if keeper.remedy:
        yield f"  what to do: {keeper.remedy}"


def _policy(policy: PolicyStatus, *, away: bool) -> Iterator[str]:
    yield f"{policy.name}{GROUPS.get(policy.group, '')}"
    if away and policy.on_outage in NOBODY:
        yield f"  nobody is counted while Redis is away: {NOBODY[policy.on_outage]}"
    for limit in policy.limits:
        yield f"  {_limit(policy, limit)}"
        for standing in limit.top:
            yield f"    {_standing(standing)}"


def _limit(policy: PolicyStatus, limit: LimitStatus) -> str:
    name = "" if limit.name == policy.name else f"{limit.name}: "
    rate = limit.rate or "rate not known here"
    whom = f" by {limit.key}" if limit.key else ""
    count = "1 identity" if limit.identities == 1 else f"{limit.identities} identities"
    return f"{name}{rate}{whom}: {count}, {limit.blocked} blocked"


def _standing(standing: Standing) -> str:
    left = "" if standing.remaining is None else f", {standing.remaining} left"
    said = f"{standing.identity}  {standing.used} used{left}"
    if standing.blocked:
        when = "never" if standing.retry_after is None else f"in {format_duration(standing.retry_after)}"
        return f"{said}; BLOCKED, one more fits {when}"
    return f"{said}; more in {format_duration(standing.reset_after)}" if standing.used else said
