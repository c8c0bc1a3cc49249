"""``manage.py throttle_reset``: forget what somebody was charged, or everybody."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.exceptions import SettingsError
from redis_infra.observability.identities import Client
from redis_infra.observability.limits import LimitsReport, forget, keys_of, look_at, look_for
from redis_infra.throttling.limiter import RateLimiter, default_limiter

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it."""

    scope: str
    dry_run: bool
    forgotten: int
    """Logs; with ``dry_run`` those that would be."""
    kept_by: str
    """Who had them: ``redis``, ``host`` or ``process``."""


class Command(BaseCommand):
    help = (
        "Forget what one client was charged by a policy, or everybody, so that they begin anew. "
        "While Redis is away this host forgets at once, and Redis when it answers. "
        "Exit status: 0 done, or nothing to do; 1 failed; 2 usage."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("scope", metavar="SCOPE", help="a policy or DRF scope")
        whom = parser.add_mutually_exclusive_group(required=True)
        whom.add_argument(
            "--ident",
            metavar="IDENT",
            help="one client, as throttle_status takes or shows it: user:7, a digest; or username?unread, "
            "all whose name could not be read",
        )
        whom.add_argument("--all", action="store_true", help="everybody")
        parser.add_argument("--dry-run", action="store_true", help="say how many, and forget nothing")
        parser.add_argument("--yes", action="store_true", help="do not ask before --all")
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: text")

    def handle(
        self,
        *,
        scope: str,
        ident: str | None,
        all: bool,  # noqa: A002  # the option's name
        dry_run: bool,
        yes: bool,
        format: str,  # noqa: A002  # the option's name
        **_: Any,
    ) -> None:
        try:
            outcome = self._reset(scope, ident, dry_run=dry_run, yes=yes)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except SettingsError as error:
            raise CommandError(str(error), returncode=2) from error
        if outcome is None:
            self.stdout.write("Nothing was forgotten.")
        elif format == "json":
            self.stdout.write(
                json.dumps({"schema": "redis_infra.throttle_reset/1", **asdict(outcome)}, indent=2)
            )
        else:
            self.stdout.write(_said(outcome))

    def _reset(self, scope: str, ident: str | None, *, dry_run: bool, yes: bool) -> Outcome | None:
        """Do it; None if whoever was asked said no."""
        limiter = _limiter()
        if ident is None:
            report = look_at(limiter, scope, top=0)
            if not dry_run and not yes and not self._agreed(scope, _count(report)):
                return None
            count = _count(report) if dry_run else limiter.forget_policy(scope)
        else:
            client = Client.parse(ident, keys_of(limiter, scope))
            report = look_for(limiter, client, scope)
            count = _count(report) if dry_run else forget(limiter, client, scope)
        return Outcome(scope=scope, dry_run=dry_run, forgotten=count, kept_by=report.keeper.who)

    def _agreed(self, scope: str, count: int) -> bool:
        if not sys.stdin.isatty():
            raise CommandError("there is nobody to ask; write --yes to forget everybody", returncode=2)
        answer = input(f"Forget {_logs(count)} of {scope!r}? [y/N] ")
        return answer.strip().lower() in ("y", "yes")


def _limiter() -> RateLimiter:
    try:
        return default_limiter()
    except SettingsError as error:
        raise CommandError(f"{error} (run: python manage.py check --tag redis_infra)") from error


def _count(report: LimitsReport) -> int:
    """Return how many logs there are that anything is in."""
    return sum(limit.identities for policy in report.policies for limit in policy.limits)


def _said(outcome: Outcome) -> str:
    said = f"{outcome.scope}: {'would forget' if outcome.dry_run else 'forgot'} {_logs(outcome.forgotten)}"
    if outcome.kept_by == "process":
        return f"{said} of this process; each of the site's has its own, until it is restarted"
    if outcome.kept_by == "host":
        return f"{said} of this host; Redis is away, and forgets what it has when it answers"
    return said


def _logs(count: int) -> str:
    return "1 log" if count == 1 else f"{count} logs"
