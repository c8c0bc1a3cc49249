"""The judging of limiters: what counts as a violation, who comes when, and that everybody is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import attack, throttle, throttle_peers
from benchmarks.attack import NONE_OVER, TITLES, Attack, Race, attack_row, attacks_of, most_within, race_row
from benchmarks.attack import races_of as races
from benchmarks.attack_child import PROCESSES, Attacker, Stage, change_of_windows, questions
from benchmarks.harness import FULL, QUICK
from benchmarks.peers import OURS
from benchmarks.throttle import CROWD, ROWS, ServerCost, Visits, by_name, visitors
from benchmarks.throttle_peers import LIMITS, PERIODS, RATES, STOCK, Limiter, door_of, policy_of, rate_of
from redis_infra.throttling import Rate

# -- what is a violation


def instants(*moments: float) -> list[tuple[float, float]]:
    """Return admissions that took no time, in any order."""
    return [(moment, moment) for moment in moments]


@pytest.mark.parametrize(
    ("admissions", "most"),
    [
        ([], 0),
        (instants(5.0), 1),
        (instants(0.0, 0.5, 0.999), 3),
        (instants(0.0, 1.0), 1),  # a window later: the first is forgotten
        (instants(0.999, 0.5, 1.4, 0.0), 3),
        (instants(0.0, 0.9, 1.0, 1.1, 1.2), 4),
    ],
)
def test_a_window_may_begin_anywhere(admissions, most):
    assert most_within(admissions, 1.0) == most


def test_what_may_have_happened_outside_the_window_is_no_violation():
    """Asked for at 0.0 and told at 0.8: it may have been let through at 0.0, a window before 1.0."""
    assert most_within([(0.0, 0.8), (0.9, 1.0)], 1.0) == 1
    assert most_within([(0.1, 0.8), (0.9, 1.0)], 1.0) == 2


def test_admissions_of_all_processes_count_together():
    found = [{"aligned": [[[0.0, 0.0]], {}]}, {"aligned": [[[0.5, 0.5]], {}]}]
    assert attacks_of([found], {"aligned": 1.0})["aligned"].most == 2


def test_the_worst_run_counts_and_every_error_is_named():
    calm = [{"restart": [[[0.0, 0.0]], {"TimeoutError": 3}]}]
    wild = [{"restart": [[[0.0, 0.0], [0.1, 0.1]], {"ConnectionError": 1}]}]
    assert attacks_of([calm, wild, calm], {"restart": 1.0}) == {
        "restart": Attack(2, ["ConnectionError", "TimeoutError"])
    }


def test_a_row_says_what_was_over_and_what_was_raised():
    found = {name: Attack(20, []) for name in TITLES} | {"restart": Attack(23, ["ConnectionError"])}
    row = attack_row(OURS, found)
    assert row.figure == 3
    assert row.verdict() == "**missed** (3.00 over; raises ConnectionError)"
    assert row.cells[TITLES["restart"]].text == "23, raises ConnectionError"
    assert row.cells[TITLES["aligned"]].text == "20"


def test_only_ours_has_something_to_hold():
    found = {name: Attack(20, []) for name in TITLES}
    assert attack_row(OURS, found).target is NONE_OVER
    assert attack_row(STOCK, found).target is None


# -- eight at once


def test_runs_of_all_processes_are_added_up_run_by_run():
    mine = {str(limit): [limit, 0] for limit in attack.LIMITS}
    its = {str(limit): [0, 1] for limit in attack.LIMITS}
    assert [race.admitted for race in races([mine, its])] == [[limit, 1] for limit in attack.LIMITS]


@pytest.mark.parametrize(
    ("admitted", "over", "under", "text"),
    [([5, 5], 0, 0, "5"), ([5, 7], 2, 0, "5 to 7"), ([4, 5], 0, 1, "4 to 5"), ([1000], 995, 0, "1,000")],
)
def test_a_race_is_won_by_exactly_the_limit(admitted, over, under, text):
    race = Race(5, admitted)
    assert (race.over, race.under, race.cell().text) == (over, under, text)


def test_who_turns_away_too_many_does_not_hold_it():
    assert race_row(OURS, [Race(5, [5]), Race(20, [20])]).verdict() == "met (0.00 over)"
    row = race_row(OURS, [Race(5, [5]), Race(20, [18])])
    assert row.verdict() == "**missed** (0.00 over; 2 turned away for nothing)"


@pytest.mark.parametrize("limit", attack.LIMITS)
def test_more_than_twice_the_limit_is_asked_for(limit):
    assert PROCESSES * questions(limit) > 2 * limit


# -- an attacker


def attacker() -> Attacker:
    return Attacker(0, Stage(None, None), lambda limit, window: lambda identity: True)


def test_an_admission_lies_between_question_and_answer():
    one = attacker()
    assert one.knock(lambda identity: True, "joe")
    [(asked, told)] = one.admitted
    assert asked <= told


def test_what_is_raised_is_a_no_and_is_counted():
    def ask(identity: str) -> bool:
        raise ConnectionError(identity)

    one = attacker()
    assert not one.knock(ask, "joe")
    assert one.admitted == []
    assert one.raised == {"ConnectionError": 1}


def test_getting_warm_is_no_admission():
    one = attacker()
    one.warmed(20, 1)
    assert one.admitted == []


def test_a_window_has_changed_when_quota_is_back():
    """The first yes after a no; what was let through before the no proves nothing."""
    answers = iter([True, True, False, False, True])
    one = attacker()
    change_of_windows(one, lambda identity: next(answers), 60)
    assert list(answers) == []
    assert len(one.admitted) == 3


# -- who comes when


def test_visitors_come_as_often_as_they_may_and_no_more():
    coming = Counter(islice(visitors(), 3 * CROWD * PERIODS[0][0]))
    assert len(coming) == 3 * CROWD
    assert set(coming.values()) == {PERIODS[0][0]}


def test_visitors_take_turns():
    """A hundred others come before anybody comes again: no two visits are one entry of a log."""
    coming = list(islice(visitors(), 2 * CROWD))
    assert coming[:CROWD] == coming[CROWD:]
    assert all(one != other for one, other in pairwise(coming))


def visits(asked: list[int]) -> Visits:
    coming = iter(range(100))
    return Visits.of(asked.append, lambda count: list(islice(coming, count)))


def test_who_arrives_is_asked_about_once_and_in_order():
    asked: list[int] = []
    assert throttle.time_visits(visits(asked), 3) >= 0
    assert asked == [0, 1, 2]


def test_awaited_visits_are_one_after_another():
    asked: list[int] = []
    under_way = 0

    async def ask(number: int) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0)
        under_way -= 1
        asked.append(number)

    asyncio.run(throttle.time_awaited_visits(Visits.of(ask, lambda count: list(range(count))), 3))
    assert asked == [0, 1, 2]


def test_a_check_before_the_timing_is_one_visit():
    asked: list[int] = []
    visits(asked).call()
    assert asked == [0]


# -- who is asked


def test_rates_and_numbers_say_the_same():
    assert tuple((rate.limit, rate.window) for rate in map(Rate.parse, RATES)) == PERIODS
    assert rate_of(PERIODS) == Rate.parse(";".join(RATES))


def test_limits_of_the_settings_are_asked_by_name():
    """As sites do; other limits, of attacks, have none."""
    assert [policy_of(PERIODS[:1]), policy_of(PERIODS)] == ["one", "three"]
    assert policy_of([(5, 900)]) == Rate(5, 900)


@pytest.mark.parametrize("denying", [None, 0, 2])
def test_who_knows_one_limit_is_asked_once_for_each(monkeypatch, denying):
    """And all have to say yes."""
    asked: list[Any] = []

    def door(url: str, limit: int, seconds: int) -> throttle_peers.Ask:
        def ask(identity: str) -> bool:
            asked.append((limit, identity))
            return denying is None or limit != PERIODS[denying][0]

        return ask

    monkeypatch.setitem(throttle_peers.LIMITERS, LIMITS, Limiter(door))
    allowed = door_of(LIMITS, "redis://nowhere", PERIODS)("joe")
    assert allowed is (denying is None)
    everybody = [(limit, f"{at}:joe") for at, (limit, _) in enumerate(PERIODS)]
    assert asked == (everybody if denying is None else everybody[: denying + 1])


def test_who_is_not_installed_is_left_out_and_named(monkeypatch):
    gone = Limiter(throttle_peers.ours, "no_such_module", "no-such-package")
    monkeypatch.setattr(throttle_peers, "LIMITERS", {OURS: Limiter(throttle_peers.ours), LIMITS: gone})
    assert list(throttle_peers.installed()) == [OURS]
    assert throttle_peers.absence_notes() == ["Not installed here, so not measured: no-such-package."]


def test_in_a_hurry_one_of_each_package_is_attacked(monkeypatch):
    everybody = {name: Limiter(throttle_peers.ours) for name in throttle_peers.LIMITERS}
    monkeypatch.setattr(throttle_peers, "LIMITERS", everybody)
    assert attack.subjects(FULL) == list(everybody)
    assert attack.subjects(QUICK) == list(throttle_peers.PEERS)


def test_nobody_missing_needs_no_note(monkeypatch):
    monkeypatch.setattr(throttle_peers, "LIMITERS", {OURS: Limiter(throttle_peers.ours)})
    assert throttle_peers.absence_notes() == []


# -- tables


def test_who_cannot_do_a_row_is_a_contender_all_the_same():
    one, other = (Visits.of(bool, lambda count: [1] * count) for _ in range(2))
    rows = {"first": {"limit": one, "b": one}, "second": {"limit": other, "a": other}}
    assert by_name(["limit", "a", "b", "c"], rows) == {
        "limit": {"first": one, "second": other},
        "a": {"second": other},
        "b": {"first": one},
    }


def test_the_servers_part_is_commands_and_time():
    assert ServerCost(1, 14.2e-6).cell().text == "1 in 14.2 µs"
    assert ServerCost(5.85, 26.5e-6).cell().text == "5.85 in 26.5 µs"


def test_the_suite_is_one_of_the_commands():
    assert command.known_rows("throttle") == list(ROWS)
    assert set(ROWS) - set(attack.ROWS) == set(throttle.PERIODS_OF)
