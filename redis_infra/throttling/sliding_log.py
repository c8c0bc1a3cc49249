"""The sliding log in Python: the very algorithm of ``hit.lua``, step by step, for when Redis does not answer.

A log holds who was let through and when, run-length encoded: ``[stamp, count]`` pairs, oldest first, the
stamp being the *end* of the grain in which they came, so that nothing is forgotten early. At most ``limit``
fit into any window, which no counter, bucket or GCRA can say: they let through up to twice that (research:
throttle, B1). Milliseconds and whole numbers throughout.

Pure: knows no clock, no store and no lock. ``tests/unit/test_sliding_log.py`` holds it to a model,
``tests/redis/test_hit_script.py`` to the script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

__all__ = ["Log", "Terms", "charge", "live", "merge", "refund", "stamp_of", "weigh"]

Log: TypeAlias = list[list[int]]
"""``[stamp, count]`` pairs, oldest first."""


class Terms(NamedTuple):
    """A limit as the algorithm takes it."""

    limit: int
    window: int
    """Milliseconds."""
    grain: int
    """Milliseconds; 0 for windows of the calendar."""


class Weighed(NamedTuple):
    """What one log says to one request."""

    fits: bool
    used: int
    reset: int
    """Milliseconds until more quota appears; 0 if all of it is there."""
    retry: int
    """Milliseconds until this cost fits; 0 if it does, -1 if it never can."""


def live(log: Log, now: int, window: int) -> Log:
    """Return the part of a log that still counts."""
    cut = now - window
    for index, entry in enumerate(log):
        if entry[0] > cut:
            return log[index:] if index else log
    return []


def weigh(log: Log, now: int, terms: Terms, cost: int) -> Weighed:
    """Return whether ``cost`` fits into a log that is :func:`live`, and when it will."""
    limit, window, _ = terms
    used = sum(entry[1] for entry in log)
    reset = log[0][0] - now + window if log else 0
    if used + cost <= limit:
        return Weighed(True, used, reset, 0)
    return Weighed(False, used, reset, _wait(log, now, terms, used + cost - limit) if cost <= limit else -1)


def _wait(log: Log, now: int, terms: Terms, needed: int) -> int:
    """Return the milliseconds until ``needed`` of what is in the log has been forgotten."""
    for stamp, count in log:
        needed -= count
        if needed <= 0:
            return stamp - now + terms.window
    raise AssertionError("a log holds at least what is over the limit")


def stamp_of(now: int, terms: Terms, offset: int = 0) -> int:
    """Return the stamp of what is charged now.

    ``offset`` is what has to be added to ``now`` for the time since the epoch, by which calendars count.
    """
    if terms.grain:
        return (now // terms.grain + 1) * terms.grain
    return now - (now + offset) % terms.window


def charge(log: Log, stamp: int, cost: int) -> int:
    """Add ``cost`` to the log; return the stamp that it got, which is never older than the last one."""
    if log and log[-1][0] >= stamp:  # the same grain, or the clock stepped back: keep the log ordered
        log[-1] = [log[-1][0], log[-1][1] + cost]
    else:
        log.append([stamp, cost])
    return log[-1][0]


def refund(log: Log, stamp: int, cost: int) -> None:
    """Take ``cost`` back from what was charged at ``stamp``; what is not there any more, from the oldest.

    From the oldest, because what stays has to count for at least as long as what it stands for.
    """
    for index, entry in enumerate(log):
        if entry[0] == stamp:
            taken = min(cost, entry[1])
            log[index] = [stamp, entry[1] - taken]
            cost -= taken
    log[:] = [entry for entry in log if entry[1] > 0]
    while cost > 0 and log:
        taken = min(cost, log[0][1])
        log[0] = [log[0][0], log[0][1] - taken]
        cost -= taken
        if not log[0][1]:
            del log[0]


def merge(log: Log, more: Sequence[Sequence[int]]) -> Log:
    """Return both logs as one; entries with one stamp are one."""
    merged: dict[int, int] = {}
    for stamp, count in (*log, *more):
        merged[stamp] = merged.get(stamp, 0) + count
    return [[stamp, merged[stamp]] for stamp in sorted(merged)]
