"""What this process has counted since it started, as rows of plain numbers, and how rows are written.

A row is a subject and its numbers::

    ("function", "default", "user", "shop.users.get_user", "user:*")     see FUNCTION
    ("server", "redis://127.0.0.1:6379/0")                               see SERVER
    ("limits",)                                                          see LIMITS
    ("denied", "chat")                                                   how often, by policy

Opens nothing and sends nothing. Nobody is told apart in a row: subjects are names in the site's code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, TypeAlias

__all__ = [
    "FUNCTION",
    "LIMITS",
    "LOADS",
    "MOST_FUNCTIONS",
    "OTHER",
    "SERVER",
    "Numbers",
    "Subject",
    "add",
    "counted",
    "difference",
    "forget_denials",
    "known_functions",
    "percentile",
    "read_field",
    "read_numbers",
    "rest_of",
    "write_field",
    "write_numbers",
]

Subject: TypeAlias = tuple[str, ...]
Numbers: TypeAlias = tuple[int, ...]

FUNCTION: Final = ("hits", "misses", "stale", "waits", "errors", "computations", "micros")
"""The numbers of a function; behind them how many loads took how long, see LOADS."""
SERVER: Final = ("hits", "misses", "fallback_ops", "failures", "retries", "unreadable", "drained")
LIMITS: Final = ("allowed", "denied", "local")
LOADS: Final = 20
"""Classes of loading times: below 128 microseconds, and then each twice as long, to above 33 s."""
MOST_FUNCTIONS: Final = 500
"""Functions, servers and policies that are told apart; what comes after them is summed as OTHER."""
OTHER: Final = "other"

_FASTEST: Final = 7
"""2 ** 7 microseconds end the first class."""

# --- gathering ------------------------------------------------------------------------------------------


def counted() -> dict[Subject, Numbers]:
    """Return what was counted so far, without the rows in which nothing was.

    Imports nothing that the site has not used: what was never imported has counted nothing.
    """
    rows: dict[Subject, Numbers] = {}
    # In this order: where there is no room for all, it is functions that are not told apart.
    if databases := _used("redis_infra.connection.lifecycle", "databases"):
        for database in databases():
            _add_to(rows, ("server", database.options.label), tuple(database.counters.snapshot().values()))
    limiter = _used("redis_infra.throttling.limiter", "_default")
    if limiter is not None:
        _add_to(rows, ("limits",), tuple(limiter.counters.snapshot().values()))
    for policy, count in list(_denials().items()):
        _add_to(rows, ("denied", policy), (count,))
    if tallies := _used("redis_infra.querycache.tallies", "tallies"):
        for of, numbers in tallies.rows():
            _add_to(rows, ("function", *of), numbers)
    return {subject: numbers for subject, numbers in rows.items() if any(numbers)}


def known_functions() -> list[Subject]:
    """Return the subject of every function that this process has decorated."""
    tallies = _used("redis_infra.querycache.tallies", "tallies")
    return [("function", *of) for of in tallies.known()] if tallies else []


def _used(module: str, name: str) -> Any:
    """Return what a module has; None where nobody has imported it, or another thread is at it just now."""
    return getattr(sys.modules.get(module), name, None)


def _add_to(rows: dict[Subject, Numbers], subject: Subject, numbers: Numbers) -> None:
    known = rows.get(subject)
    rows[subject] = numbers if known is None else add(known, numbers)


def _denials() -> Mapping[str, int]:
    """Return how many were turned away by policy; nobody, as long as nothing that limits is imported."""
    return _used("redis_infra.throttling.limiter", "denials") or {}


def forget_denials() -> None:
    """Count them from zero (tests)."""
    denials = _denials()
    if isinstance(denials, dict):
        denials.clear()


# --- reckoning ------------------------------------------------------------------------------------------


def add(one: Sequence[int], other: Sequence[int]) -> Numbers:
    """Return the sum of two rows, number by number; what a shorter one lacks is 0."""
    return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))


def difference(now: Mapping[Subject, Numbers], before: Mapping[Subject, Numbers]) -> dict[Subject, Numbers]:
    """Return what was counted since ``before``, without the rows in which nothing was."""
    found = {subject: _since(numbers, before.get(subject, ())) for subject, numbers in now.items()}
    return {subject: numbers for subject, numbers in found.items() if any(numbers)}


def _since(now: Numbers, before: Numbers) -> Numbers:
    """Return what was added; all of it where somebody has begun to count anew."""
    added = tuple(a - b for a, b in zip_longest(now, before, fillvalue=0))
    return now if any(number < 0 for number in added) else added


def percentile(loads: Sequence[int], fraction: float) -> float | None:
    """Return the seconds within which this part of the loads was done; None if there were none.

    Off by a factor of 1.4 at most: classes are twice as wide as their beginning.
    """
    wanted, seen = sum(loads) * fraction, 0
    for at, count in enumerate(loads):
        if count and seen + count >= wanted:
            low = 2.0 ** (_FASTEST + at - 1)
            within = (wanted - seen) / count
            return float(low * 2.0**within / 1e6)
        seen += count
    return None


# --- as text --------------------------------------------------------------------------------------------


def write_field(subject: Subject) -> str:
    return json.dumps(subject, separators=(",", ":"), ensure_ascii=False)


def read_field(text: bytes) -> Subject | None:
    """Return the subject; None for what is none: anybody may have written there."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    is_subject = isinstance(found, list) and found and all(isinstance(each, str) for each in found)
    return tuple(found) if is_subject else None


def write_numbers(numbers: Numbers) -> str:
    """Return them apart by spaces, without the zeros at the end: most classes of LOADS are empty."""
    last = max((at for at, number in enumerate(numbers) if number), default=-1)
    return " ".join(map(str, numbers[: last + 1]))


def read_numbers(text: bytes) -> Numbers:
    return tuple(int(each) if each.isdigit() else 0 for each in text.split())


def rest_of(subject: Subject) -> Subject:
    """Return what a row is added to where there is no room for one of its own."""
    if subject[0] == "function":
        return ("function", OTHER, OTHER, OTHER, "")
    # There is one row of limits, and it is always itself: only subjects with names need bounds.
    return (subject[0], OTHER) if len(subject) > 1 else subject
