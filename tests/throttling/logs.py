"""A model of limits that anybody can check by hand, and trials that put engines beside it, step by step.

The model writes down when it let whom through, to the microsecond, and counts. Steps jump to where mistakes
are: an earlier admission plus the window, a millisecond and a half around it. Uniform steps did not find an
off-by-one in 400 examples; these do at once (research: throttle, 0.5).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redis_infra.throttling.sliding_log import Terms

START = 1_700_000_000_000_000
"""Microseconds; a time of which calendars and grains know nothing special."""


class Engine(Protocol):
    """What is tried: ``hit`` at a time of its server's clock, in microseconds."""

    def hit(self, terms: Sequence[Terms], now: int, cost: int) -> list[int]: ...


@dataclass(slots=True)
class Model:
    """Every admission of one identity, for ever."""

    terms: Sequence[Terms]
    admitted: list[tuple[int, int]] = field(default_factory=list)

    def in_window(self, each: Terms, now: int, slack: int = 0) -> int:
        """Cost let through in the window that ends at ``now``, longer by ``slack`` microseconds."""
        begin = now - each.window * 1000 - slack
        if not each.grain:
            begin = (now // 1000 - now // 1000 % each.window) * 1000 - 1
        return sum(cost for at, cost in self.admitted if begin < at <= now)

    def must_deny(self, now: int, cost: int) -> bool:
        """Whether a yes would make more than the limit in a window."""
        return any(self.in_window(each, now) + cost > each.limit for each in self.terms)

    def must_admit(self, now: int, cost: int) -> bool:
        """Whether it fits even if everybody is held for as long as the grain and the clock's tick allow."""
        return all(
            self.in_window(each, now, slack=(max(each.grain, 1) + 1) * 1000) + cost <= each.limit
            for each in self.terms
        )


class WrongAnswer(AssertionError):
    """An engine said what it must not say."""


@dataclass(slots=True)
class Trial:
    """One identity's life with an engine, the model beside it."""

    engine: Engine
    terms: Sequence[Terms]
    now: int = START
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        self.model = Model(self.terms)

    def step(self, cost: int) -> list[int]:
        """Ask once, now; raise if the answer is wrong."""
        reply = self.engine.hit(self.terms, self.now, cost)
        if reply[1] != self.now // 1000:
            raise WrongAnswer(
                f"answered at {reply[1]} what was asked at {self.now // 1000}: not by its own clock"
            )
        allowed = bool(reply[0])
        if allowed and cost and self.model.must_deny(self.now, cost):
            raise WrongAnswer(f"one too many at {self.now}: {self.terms} after {self.model.admitted}")
        if not allowed and self.model.must_admit(self.now, cost):
            raise WrongAnswer(
                f"turned away for nothing at {self.now}: {self.terms} after {self.model.admitted}"
            )
        if allowed and cost:
            self.model.admitted.append((self.now, cost))
        if not allowed:
            self._check_denial(reply, cost)
        return reply

    def _check_denial(self, reply: Sequence[int], cost: int) -> None:
        never = any(cost > each.limit for each in self.terms)
        if never != (-1 in reply[4::3]):
            raise WrongAnswer(f"a cost of {cost} for {self.terms} can {'never' if never else 'once'} fit")


def run(engine_of: Callable[[], Engine], dice: random.Random, steps: int = 25) -> None:
    """Live one random life; raise :class:`WrongAnswer` where the engine errs."""
    terms = [random_terms(dice) for _ in range(dice.choice((1, 1, 2, 3)))]
    trial = Trial(engine_of(), terms, START + dice.randrange(10**7))
    for _ in range(steps):
        trial.step(dice.choice((0, 1, 1, 1, 1, 2, 3, 4)))
        trial.now = next_time(trial, dice)


def run_many(engine_of: Callable[[], Engine], lives: int) -> None:
    """:func:`run` with the first so many seeds."""
    for seed in range(lives):
        run(engine_of, random.Random(seed))


def random_terms(dice: random.Random) -> Terms:
    window = dice.choice((50, 100, 250, 999, 1000, 4000))
    grain = dice.choice((1, 1, 1, 7, 50, 0))
    return Terms(dice.choice((1, 2, 3, 5, 8, 40)), window, grain)


def next_time(trial: Trial, dice: random.Random) -> int:
    """Return when to ask next: soon, or about when something is forgotten."""
    admitted = trial.model.admitted
    if admitted and dice.random() < 0.6:
        at, _ = dice.choice(admitted[-8:])
        window = dice.choice(list(trial.terms)).window
        return max(trial.now, at + window * 1000 + dice.randrange(-1500, 1501))
    return trial.now + dice.choice((0, 1, 400, 999, 1000, 1001, 20_000, 300_000)) + dice.randrange(50)
