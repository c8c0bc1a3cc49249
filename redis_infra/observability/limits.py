"""How a site's limits stand: who decides now, how many are limited, and who is closest to it.

Reads the logs where they are: in Redis (SCAN and MGET in batches), with the processes of this host while
Redis is away, or in this process' memory. Charges nothing and forgets only what :func:`forget` is told to.
Identities are digests, as everywhere outside of a request. Prints nothing.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from redis_infra.exceptions import SettingsError
from redis_infra.observability.identities import Client
from redis_infra.observability.limit_logs import Keeper, read_all, read_some
from redis_infra.observability.limit_names import (
    KnownLimit,
    find_limits,
    is_of,
    nearest_scope,
    unknown_limit,
)
from redis_infra.throttling import sliding_log
from redis_infra.throttling.identity import Key
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.local import Name
from redis_infra.throttling.plans import Entry
from redis_infra.throttling.sliding_log import Log, Terms

__all__ = [
    "LimitStatus",
    "LimitsReport",
    "PolicyStatus",
    "Standing",
    "forget",
    "keys_of",
    "look_at",
    "look_for",
]

TOP: Final = 10
MOST_LABELS: Final = 200
"""Limits that no setting names and that are told apart; rates made up in code can be any number."""


# --- what is found --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one identity stands under one limit."""

    identity: str
    """Keyed digest."""
    used: int
    remaining: int | None
    """None where the limit is not known here."""
    reset_after: float
    """Seconds until more quota appears; 0 if all of it is there."""
    retry_after: float | None
    """Seconds until one more fits; 0 if it does now, None if it never can or nobody knows."""
    blocked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStatus:
    """One limit, and who is closest to it."""

    name: str
    rate: str | None
    """None where neither settings nor DRF's say it: a rate that stands in code."""
    key: str | None
    identities: int
    blocked: int
    top: tuple[Standing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """One policy. ``group`` is "" where THROTTLE names it, ``"drf"`` for drop-in classes, else ``"code"``."""

    name: str
    group: str
    on_outage: str
    """Who decides while Redis is away: ``host``, or nobody (``deny``, ``allow``); "" if that is not known."""
    limits: tuple[LimitStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsReport:
    """All that was asked for."""

    time: float
    keeper: Keeper
    policies: tuple[PolicyStatus, ...]
    omitted: int
    """Logs of limits beyond those that are told apart."""
    counters: dict[str, int]
    """What this process' limiter said since it started."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: stable names, seconds and counts as numbers."""
        return {"schema": "redis_infra.throttle_status/1", "status": self.keeper.status, **asdict(self)}


# --- looking --------------------------------------------------------------------------------------------


def look_at(
    limiter: RateLimiter, scope: str | None = None, *, top: int = TOP, blocked: bool = False
) -> LimitsReport:
    """Look at every log, or at those of the policy ``scope``; ``blocked`` shows only who is turned away now.

    Memory goes with the number of limits and ``top``, not with that of logs; time with the number of keys in
    the database. SCAN may show a key twice while the server grows its table, so counts are not quite exact.

    Raises:
        SettingsError: there is no such policy, and no log of one.
    """
    tallies = Tallies(find_limits(limiter, scope), top=top, blocked=blocked)
    keeper = read_all(limiter, tallies.terms, lambda label: is_of(label, scope), tallies.take, tallies.clear)
    if scope is not None and not tallies:
        raise SettingsError(f"{scope!r} is not a policy and has no logs{nearest_scope(limiter, scope)}")
    return _report(limiter, keeper, tallies)


def look_for(limiter: RateLimiter, client: Client, scope: str | None = None) -> LimitsReport:
    """Look at how one client stands, under each limit that it says enough for.

    Raises:
        SettingsError: there is no such policy, or none of its limits can be told for this client.
    """
    found = _logs_of(limiter, client, scope)
    tallies = Tallies({limit.label: limit for limit, _ in found}, top=1, empty=True)
    keeper = read_some(limiter, tallies.terms, [entry for _, entry in found], tallies.take)
    return _report(limiter, keeper, tallies)


def _logs_of(limiter: RateLimiter, client: Client, scope: str | None) -> list[tuple[KnownLimit, Entry]]:
    """Return the client's log for each limit that it says enough for."""
    limits = find_limits(limiter, scope)
    if scope is not None and not limits:
        raise SettingsError(f"{scope!r} is not a policy{nearest_scope(limiter, scope)}")
    found = []
    for limit in limits.values():
        tag = client.tag(limit.key, limit.policy)
        if limit.plan is not None and tag is not None:
            found += [(limit, entry) for entry in limit.plan.entries((tag,))]
    if not found:
        keys = ", ".join(sorted({limit.key.name for limit in limits.values() if limit.key}))
        raise SettingsError(f"--ident says too little; these limits go by {keys}")
    return found


def keys_of(limiter: RateLimiter, scope: str | None = None) -> set[Key]:
    """Return whom limits are for."""
    return {limit.key for limit in find_limits(limiter, scope).values() if limit.key is not None}


def _report(limiter: RateLimiter, keeper: Keeper, tallies: Tallies) -> LimitsReport:
    return LimitsReport(
        time=time.time(),
        keeper=keeper,
        policies=tallies.policies(),
        omitted=tallies.omitted,
        counters=limiter.counters.snapshot(),
    )


# --- forgetting -----------------------------------------------------------------------------------------


def forget(limiter: RateLimiter, client: Client, scope: str) -> int:
    """Forget what a client was charged; return how many logs there were.

    Raises:
        SettingsError: as :func:`look_for`.
    """
    count = 0
    for limit, entry in _logs_of(limiter, client, scope):
        if limiter.remote is None:
            count += limiter.memory.forget([entry.name])
        elif limit.plan is not None:
            count += limiter.remote.forget(limit.plan, (entry.tag,))
    limiter.forget_denials()
    return count


# --- counting -------------------------------------------------------------------------------------------


class Tallies:
    """What is found of each limit, bounded however many logs there are. True if there is anything to show."""

    def __init__(
        self, known: Mapping[str, KnownLimit], *, top: int = TOP, blocked: bool = False, empty: bool = False
    ) -> None:
        self._known = known
        self._top = top
        self._only_blocked = blocked
        self._even_empty = empty
        self._found: dict[str, Tally] = {}
        self.omitted = 0

    def __bool__(self) -> bool:
        return bool(self._known or self._found)

    def clear(self) -> None:
        self._found.clear()
        self.omitted = 0

    def take(self, name: Name, log: Log, now: int, terms: Terms) -> None:
        """Take note of one log; of an empty one only where told to, and where a policy has it."""
        standing = _standing(name.identity, log, now, terms)
        if not standing.used and (self.limit(name.label).group or not self._even_empty):
            return
        tally = self._found.get(name.label) or self._begin(name.label)
        if tally is None:
            self.omitted += 1
        else:
            tally.take(standing)

    def _begin(self, label: str) -> Tally | None:
        if label not in self._known and len(self._found) >= MOST_LABELS + len(self._known):
            return None
        tally = self._found[label] = Tally(self.limit(label), self._top, self._only_blocked)
        return tally

    def limit(self, label: str) -> KnownLimit:
        return self._known.get(label) or unknown_limit(label)

    def terms(self, label: str) -> Terms:
        """What is known of a limit."""
        return self.limit(label).terms

    def policies(self) -> tuple[PolicyStatus, ...]:
        """Return what was found, policy by policy: those of THROTTLE always, others if they have logs."""
        shown = [limit for label, limit in self._known.items() if not limit.group or label in self._found]
        shown += [tally.limit for label, tally in self._found.items() if label not in self._known]
        together: dict[tuple[str, str, str], list[LimitStatus]] = {}
        for limit in shown:
            tally = self._found.get(limit.label) or Tally(limit, 0, False)
            together.setdefault((limit.policy, limit.group, limit.on_outage), []).append(tally.status())
        return tuple(
            PolicyStatus(name=name, group=group, on_outage=on_outage, limits=tuple(limits))
            for (name, group, on_outage), limits in together.items()
        )


class Tally:
    """What is found of one limit."""

    def __init__(self, limit: KnownLimit, top: int, only_blocked: bool) -> None:
        self.limit = limit
        self._most = top
        self._only_blocked = only_blocked
        self._identities = 0
        self._blocked = 0
        self._top: list[tuple[float, int, str, Standing]] = []
        self._in_top: set[str] = set()

    def take(self, standing: Standing) -> None:
        self._identities += standing.used > 0
        self._blocked += standing.blocked
        if self._most and (standing.blocked or not self._only_blocked):
            self._rank(standing)

    def _rank(self, standing: Standing) -> None:
        if standing.identity in self._in_top:  # SCAN may show a key twice
            return
        item = (_fullness(standing), standing.used, standing.identity, standing)
        if len(self._top) < self._most:
            heapq.heappush(self._top, item)
        elif item < self._top[0]:
            return
        else:
            self._in_top.discard(heapq.heapreplace(self._top, item)[2])
        self._in_top.add(standing.identity)

    def status(self) -> LimitStatus:
        return LimitStatus(
            name=self.limit.name,
            rate=None if self.limit.rate is None else str(self.limit.rate),
            key=None if self.limit.key is None else self.limit.key.name,
            identities=self._identities,
            blocked=self._blocked,
            top=tuple(item[3] for item in sorted(self._top, reverse=True)),
        )


def _standing(identity: str, log: Log, now: int, terms: Terms) -> Standing:
    log = sliding_log.live(log, now, terms.window)
    if terms.limit < 0:  # not known: nobody can say who is blocked
        used, reset = sum(entry[1] for entry in log), log[0][0] - now + terms.window if log else 0
        remaining, retry, blocked = None, None, False
    else:
        fits, used, reset, wait = sliding_log.weigh(log, now, terms, 1)
        remaining, retry, blocked = max(0, terms.limit - used), None if wait < 0 else wait / 1000, not fits
    return Standing(
        identity=identity,
        used=used,
        remaining=remaining,
        reset_after=reset / 1000,
        retry_after=retry,
        blocked=blocked,
    )


def _fullness(standing: Standing) -> float:
    """Return how much of its limit an identity has used; more than 1 where the limit was lowered since."""
    if standing.remaining is None:
        return 0.0
    limit = standing.used + standing.remaining
    return standing.used / limit if limit else 1.0
