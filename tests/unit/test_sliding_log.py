"""The sliding log in Python: never one too many, never one too few, and every mistake in it found."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_infra.throttling import local, sliding_log
from redis_infra.throttling.local import Name, ProcessStore
from redis_infra.throttling.sliding_log import Terms
from tests.throttling.logs import START, Trial, WrongAnswer, run, run_many


class PythonEngine:
    """A :class:`ProcessStore` whose clock is the trial's."""

    def __init__(self, store: type[ProcessStore] = ProcessStore) -> None:
        self.now = START
        self.store = store(monotonic_ms=lambda: self.now // 1000, wall_ms=lambda: self.now // 1000)

    def hit(self, terms: Sequence[Terms], now: int, cost: int) -> list[int]:
        self.now = now
        return self.store.hit([Name(str(index), "0") for index in range(len(terms))], terms, cost)


@settings(max_examples=400, deadline=None)
@given(st.integers())
def test_it_never_lets_one_too_many_through_nor_one_too_few(seed: int) -> None:
    run(PythonEngine, random.Random(seed))


MUTANTS = {
    "forgets a millisecond early": ("live", "entry[0] > cut", "entry[0] > cut + 1"),
    "forgets a millisecond late": ("live", "entry[0] > cut", "entry[0] > cut - 2"),
    "stamps the beginning of the grain": ("stamp_of", "(now // terms.grain + 1)", "(now // terms.grain)"),
    "lets one more through": ("weigh", "used + cost <= limit", "used + cost <= limit + 1"),
    "lets one less through": ("weigh", "used + cost <= limit", "used + cost < limit"),
    "never says never": ("weigh", "if cost <= limit else -1", "if True else -1"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_trials_find_every_mistake(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, old, new = MUTANTS[mutant]
    source = inspect.getsource(getattr(sliding_log, name))
    assert old in source
    made: dict[str, Any] = {}
    exec(source.replace(old, new), vars(sliding_log) | {}, made)
    monkeypatch.setattr(sliding_log, name, made[name])
    with pytest.raises(AssertionError):  # a wrong answer, or what the algorithm itself takes for impossible
        run_many(PythonEngine, 2000)


def test_trials_find_a_commit_without_all_limits_agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(local.decide).replace("all(each.fits", "any(each.fits")
    made: dict[str, Any] = {}
    exec(source, vars(local) | {}, made)
    monkeypatch.setattr(local, "decide", made["decide"])
    with pytest.raises(WrongAnswer):
        run_many(PythonEngine, 2000)


@settings(max_examples=200, deadline=None)
@given(st.integers())
def test_a_denial_names_the_very_millisecond(seed: int) -> None:
    """Denied until a millisecond before, admitted at it."""
    dice = random.Random(seed)
    engine = PythonEngine()
    terms = [Terms(dice.choice((1, 3, 8)), dice.choice((50, 1000)), dice.choice((1, 7, 0))) for _ in range(2)]
    trial = Trial(engine, terms)
    for _ in range(60):
        cost = dice.choice((1, 1, 2))
        reply = trial.step(cost)
        if not reply[0] and -1 not in reply[4::3]:
            due = trial.now // 1000 + max(reply[4::3])
            assert not engine.hit(terms, due * 1000 - 1, cost)[0]
            assert engine.hit(terms, due * 1000, cost)[0]
            return
        trial.now += dice.choice((0, 500, 9000))


def test_a_denial_is_charged_to_nobody() -> None:
    engine = PythonEngine()
    terms = [Terms(5, 1000, 1), Terms(1, 1000, 1)]
    assert engine.hit(terms, START, 1)[0] == 1
    for _ in range(3):
        assert engine.hit(terms, START + 1000, 1)[2] == 4


def test_a_clock_that_steps_back_keeps_the_log_in_order() -> None:
    engine = PythonEngine()
    terms = [Terms(3, 1000, 1)]
    for now in (START + 500_000, START, START + 400_000):
        assert engine.hit(terms, now, 1)[0] == 1
    assert engine.hit(terms, START + 1_400_000, 1)[0] == 0
    assert engine.hit(terms, START + 1_502_000, 1)[0] == 1


@pytest.mark.parametrize(
    ("log", "stamp", "cost", "left"),
    [
        ([[1, 2], [5, 1]], 5, 1, [[1, 2]]),
        ([[1, 2], [5, 3]], 5, 1, [[1, 2], [5, 2]]),
        ([[1, 2], [5, 1]], 9, 1, [[1, 1], [5, 1]]),  # gone already: from the oldest, so that nobody gains
        ([[1, 2], [5, 1]], 5, 9, []),
        ([], 5, 1, []),
    ],
)
def test_a_refund_takes_back_what_was_charged(
    log: list[list[int]], stamp: int, cost: int, left: list[list[int]]
) -> None:
    sliding_log.refund(log, stamp, cost)
    assert log == left


def test_a_flood_of_identities_flushes_nobodys_history() -> None:
    now = 0
    store = ProcessStore(most=100, monotonic_ms=lambda: now, wall_ms=lambda: now)
    terms = [Terms(1, 60_000, 1)]
    mine = [Name("auth:min", f"{7:032x}")]
    assert store.hit(mine, terms, 1)[0] == 1
    for other in range(1000, 21_000):
        store.hit([Name("auth:min", f"{other:032x}")], terms, 1)
    assert len(store) <= 100 + local.SHARED_LOGS
    assert store.hit(mine, terms, 1)[0] == 0
    now = 61_000
    assert store.hit(mine, terms, 1)[0] == 1


def test_a_late_comer_to_a_full_memory_is_limited_all_the_same() -> None:
    store = ProcessStore(most=10, monotonic_ms=lambda: 0, wall_ms=lambda: 0)
    terms = [Terms(2, 60_000, 1)]
    for other in range(10):
        store.hit([Name("auth:min", f"{other:032x}")], terms, 1)
    late = [Name("auth:min", f"{99_999:032x}")]
    assert [store.hit(late, terms, 1)[0] for _ in range(3)] == [1, 1, 0]
