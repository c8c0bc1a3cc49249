"""What a limiter says: yes or no, and what remains until when.

Knows nothing of Redis or Django. A decision is built on the hot path, so it keeps the numbers as they came
and works out what is asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple, Protocol

from redis_infra.throttling.rates import Rate

__all__ = ["Decision", "LimitState"]


class LimitState(NamedTuple):
    """How one limit stands after a decision."""

    name: str
    rate: Rate
    remaining: int
    reset_after: float
    """Seconds until more quota appears; 0 if all of it is there."""
    retry_after: float | None
    """Seconds until this cost fits; 0 if it does, None if it never can."""


class Terms(Protocol):
    """What a decision was made about."""

    @property
    def name(self) -> str: ...
    @property
    def named_rates(self) -> Sequence[tuple[str, Rate]]: ...
    def __hash__(self) -> int: ...


class Decision(NamedTuple):
    """Whether a request may pass; true if it may.

    ``source`` says who knows: ``redis``; ``cache``, which remembers that Redis said no; ``host``, what the
    processes of this host keep while Redis is away; ``process``, memory alone; or ``none``, where nobody was
    asked because the policy's ``on_outage`` says ``deny`` or ``allow``.
    """

    allowed: bool
    source: str
    cost: int
    terms: Terms
    numbers: Sequence[int] = ()
    """As the script replies: remaining, reset and retry for each limit, in milliseconds."""
    charged: list[Any] | None = None
    """When it was charged, by the clock of who keeps the log; where; how much is left to be given back."""

    def __bool__(self) -> bool:
        return self.allowed

    def __repr__(self) -> str:
        return f"Decision(allowed={self.allowed}, policy={self.policy!r}, source={self.source!r})"

    @property
    def policy(self) -> str:
        return self.terms.name

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """Every limit that was looked at, in the policy's order."""
        return tuple(
            LimitState(name, rate, left, reset / 1000, _seconds(retry))
            for (name, rate), left, reset, retry in zip(
                self.terms.named_rates,
                self.numbers[::3],
                self.numbers[1::3],
                self.numbers[2::3],
                strict=False,
            )
        )

    @property
    def tightest(self) -> LimitState | None:
        """The limit that matters: of a denial the last to give way, else that of which the least remains."""
        return self.limits[self.tightest_at] if self.numbers else None

    @property
    def tightest_at(self) -> int:
        """Which limit that is, in the policy's order: without making all of them."""
        numbers = self.numbers
        if len(numbers) == 3:
            return 0
        places = range(0, len(numbers), 3)
        if self.allowed:
            found = 0  # a loop takes a quarter of what min() with a key does, and every response asks
            for at in places:
                left, least = numbers[at], numbers[found]
                if left < least or (left == least and numbers[at + 1] > numbers[found + 1]):
                    found = at
            return found // 3
        return max(places, key=lambda at: numbers[at + 2] if numbers[at + 2] >= 0 else inf) // 3

    @property
    def remaining(self) -> int:
        """How many more fit now, over all limits."""
        return min(self.numbers[::3], default=0)

    @property
    def reset_after(self) -> float:
        """Seconds until more quota appears where the least remains."""
        tightest = self.tightest
        return tightest.reset_after if tightest else 0.0

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same request fits, to the millisecond; 0 if it did, None if it never can.

        A request that comes earlier is denied again, one that comes then is let through (if nobody else
        came between).
        """
        if self.allowed:
            return 0.0
        waits = self.numbers[2::3] or (OUTAGE_RETRY,)
        return None if -1 in waits else max(waits) / 1000

    @property
    def unavailable(self) -> bool:
        """Whether it is a no only because Redis is away (``on_outage="deny"``): a 503 rather than a 429."""
        return not self.allowed and self.source == "none"


OUTAGE_RETRY = 5000
"""Milliseconds after which to come again where a policy denies in an outage: the longest pause of probes."""


def _seconds(milliseconds: int) -> float | None:
    return None if milliseconds < 0 else milliseconds / 1000
