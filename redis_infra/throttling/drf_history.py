"""Stock DRF's own algorithm, for several limits: a list of times in a Django cache.

For throttles that say by which clock (``timer``) or in which cache they count, and for sites without Redis
whose cache is another one. As exact as stock, which under concurrency is not exact: two requests at once
write one list. Knows nothing of requests or of DRF.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis_infra.throttling.rates import Rate

__all__ = ["fits", "kept_for", "live", "wait"]


def kept_for(rates: Sequence[Rate]) -> float:
    """Return the seconds for which times have to be kept."""
    return max(rate.window for rate in rates)


def live(history: list[float], now: float, rates: Sequence[Rate]) -> list[float]:
    """Return the times, newest first, that still count for any of the rates."""
    return [at for at in history if any(_counts(at, now, rate) for rate in rates)]


def fits(history: Sequence[float], now: float, rates: Sequence[Rate]) -> bool:
    """Return whether one more request fits into every rate."""
    return all(_used(history, now, rate) < rate.limit for rate in rates)


def wait(history: Sequence[float], now: float, rates: Sequence[Rate]) -> float | None:
    """Return the seconds after which one more fits; 0 if it does, None if it never will."""
    waits = [_wait(history, now, rate) for rate in rates]
    known = [seconds for seconds in waits if seconds is not None]
    return max(known) if len(known) == len(waits) else None


def _wait(history: Sequence[float], now: float, rate: Rate) -> float | None:
    used = _used(history, now, rate)
    if used < rate.limit:
        return 0.0
    if not rate.limit:
        return None
    if rate.fixed:
        return rate.window - now % rate.window
    return history[rate.limit - 1] + rate.window - now


def _used(history: Sequence[float], now: float, rate: Rate) -> int:
    return sum(_counts(at, now, rate) for at in history)


def _counts(at: float, now: float, rate: Rate) -> bool:
    # As stock compares: a request that is a whole window old does not count any more.
    return at >= now - now % rate.window if rate.fixed else at > now - rate.window
