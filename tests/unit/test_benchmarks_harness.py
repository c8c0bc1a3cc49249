"""The arithmetic of the benchmarks: turns, medians, ratios, verdicts, tables; and that nobody cheats."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from itertools import count as counting

import pytest

from benchmarks.contest import Contest, Spec, WrongAnswerError, time_together
from benchmarks.harness import (
    Cell,
    Plan,
    Row,
    Samples,
    Table,
    Target,
    calibrate,
    duration,
    interleave,
    noise_note,
    percentile,
    pin_to_one_core,
    ratio_row,
    time_calls,
)
from benchmarks.peers import LOCMEM, OURS, Operation

PLAN = Plan(rounds=3, seconds=0.01, repeats=1)


def fixed(seconds_each: float, log: list[str] | None = None, name: str = "") -> Callable[[int], float]:
    """Return a trial in which an operation takes exactly so long."""

    def trial(count: int) -> float:
        if log is not None:
            log.append(name)
        return seconds_each * count

    return trial


def samples(**values: list[float]) -> Samples:
    return Samples(dict(values))


# -- trials


def test_time_calls_makes_exactly_so_many_calls():
    calls: list[int] = []
    assert time_calls(lambda: calls.append(1), 7) >= 0
    assert len(calls) == 7


@pytest.mark.parametrize(("each", "expected"), [(0.001, 10), (0.00001, 1000), (0.5, 1)])
def test_calibrate_fills_the_time_of_a_trial(each, expected):
    assert calibrate(fixed(each), 0.01) == expected


def test_calibrate_ends_where_the_clock_sees_nothing():
    assert calibrate(fixed(0.0), 0.01) == 1_000_000


def test_calibrate_is_not_fooled_by_one_slow_trial():
    """Two of the three trials of each size are undisturbed, and the best one counts."""
    disturbed = iter([5.0])

    def trial(count: int) -> float:
        return 0.001 * count + next(disturbed, 0.0)

    assert calibrate(trial, 0.01) == 10


def test_contenders_take_turns_within_every_round():
    log: list[str] = []
    trials = {name: fixed(1.0, log, name) for name in "abc"}
    interleave(trials, PLAN)
    assert log[-9:] == list("abcabcabc")


def test_interleave_reports_seconds_of_one_operation_per_round():
    found = interleave({"a": fixed(0.001), "b": fixed(0.002)}, PLAN)
    assert found.by_name == {"a": pytest.approx([0.001] * 3), "b": pytest.approx([0.002] * 3)}


def test_pinning_leaves_one_core_and_names_it():
    if not hasattr(os, "sched_setaffinity"):
        assert pin_to_one_core() is None
        return
    before = os.sched_getaffinity(0)
    try:
        core = pin_to_one_core()
        assert os.sched_getaffinity(0) == {core}
        assert core in before
    finally:
        os.sched_setaffinity(0, before)


# -- statistics


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)]
)
def test_percentile_lies_between_its_neighbours(fraction, expected):
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], fraction) == pytest.approx(expected)


def test_percentile_of_a_single_value_is_that_value():
    assert percentile([2.5], 0.9) == 2.5


def test_median_ignores_the_one_bad_round():
    assert samples(a=[1.0, 1.0, 9.0]).median("a") == 1.0


def test_ratio_is_taken_inside_each_round():
    """The machine was three times slower in the second round, for both: the ratio does not notice."""
    found = samples(limit=[1.0, 3.0, 1.0], ours=[1.2, 3.6, 1.3])
    assert found.ratio("ours", "limit") == pytest.approx(1.2)


def test_added_is_taken_inside_each_round():
    found = samples(limit=[1.0, 5.0, 2.0], ours=[1.5, 5.5, 2.6])
    assert found.added("ours", "limit") == pytest.approx(0.5)


def test_spread_is_the_tenth_and_ninetieth_percentile():
    assert samples(a=[float(value) for value in range(11)]).spread("a") == (1.0, 9.0)


def test_rounds_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        samples(a=[1.0], b=[1.0, 2.0]).ratio("a", "b")


def test_divided_turns_a_turn_of_many_into_one_operation():
    assert samples(a=[50.0, 100.0]).divided(50).by_name == {"a": [1.0, 2.0]}


# -- targets and verdicts


@pytest.mark.parametrize(
    ("target", "text"),
    [(Target(1.3, " x"), "1.3 x"), (Target(1, " µs", added=True), "+1 µs"), (Target(0.55, " s"), "0.55 s")],
)
def test_target_reads_as_in_the_table(target, text):
    assert target.text() == text


@pytest.mark.parametrize(("figure", "is_met"), [(1.2, True), (1.3, True), (1.304, True), (1.306, False)])
def test_target_is_judged_as_printed(figure, is_met):
    assert Target(1.3, " x").is_met(figure) is is_met


def row(**changes: object) -> Row:
    facts: dict[str, object] = {
        "slug": "get",
        "title": "get",
        "cells": {},
        "figure": 1.0,
        "target": Target(1.3, " x"),
    }
    return Row(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"figure": 1.21}, "met (1.21 x)"),
        ({"figure": 1.52}, "**missed** (1.52 x)"),
        ({"figure": 1.21, "broken": "raises OSError"}, "**missed** (1.21 x; raises OSError)"),
        ({"target": None}, ""),
        ({"target": Target(10, " ms", added=True), "figure": -2.0}, "met (-2.00 ms)"),
        ({"target": Target(10, " ms", added=True), "figure": 12.0}, "**missed** (+12.00 ms)"),
    ],
)
def test_verdict_says_plainly_whether_the_figure_is_held(changes, verdict):
    assert row(**changes).verdict() == verdict


# -- rows and tables


def test_ratio_row_gives_every_contender_and_judges_ours():
    found = samples(limit=[10e-6, 10e-6], ours=[12e-6, 12e-6], peer=[20e-6, 20e-6])
    made = ratio_row("get", "`get`", found, base="limit", ours="ours", target=Target(1.3, " x"))
    assert {name: cell.text for name, cell in made.cells.items()} == {
        "limit": "10.0 µs (1.00 x)",
        "ours": "12.0 µs (1.20 x)",
        "peer": "20.0 µs (2.00 x)",
    }
    assert made.figure == pytest.approx(1.2)


def test_ratio_row_keeps_the_facts_for_programs():
    made = ratio_row("get", "`get`", samples(limit=[1e-6, 1e-6]), base="limit", ours="limit")
    assert made.cells["limit"].facts == {"median_us": 1.0, "ratio": 1.0, "p10_us": 1.0, "p90_us": 1.0}


def table() -> Table:
    cells = {"limit": Cell("10 µs", {"median_us": 10.0}), "ours": Cell("12 µs", {"median_us": 12.0})}
    return Table(
        title="Cache",
        note="How to read it.",
        contenders=["limit", "ours", "peer"],
        rows=[row(cells=cells, figure=1.2)],
        footnotes=["Noise."],
    )


def test_table_is_markdown_with_an_empty_cell_for_who_did_not_take_part():
    assert table().markdown() == (
        "### Cache\n\n"
        "How to read it.\n\n"
        "|  | limit | ours | peer | hold | redis_infra holds it |\n"
        "| --- | ---: | ---: | ---: | ---: | --- |\n"
        "| get | 10 µs | 12 µs |  | 1.3 x | met (1.20 x) |\n\n"
        "Noise.\n"
    )


def test_table_for_programs_has_hold_figure_and_facts():
    assert table().as_dict()["rows"] == [
        {
            "row": "get",
            "title": "get",
            "hold": "1.3 x",
            "figure": 1.2,
            "verdict": "met (1.20 x)",
            "contenders": {"limit": {"median_us": 10.0}, "ours": {"median_us": 12.0}},
        }
    ]


def test_noise_note_names_every_row():
    assert noise_note("`limit`", {"get": (1e-6, 2e-6), "set": (3e-6, 4e-6)}) == (
        "Noise, 10th to 90th percentile of `limit`: get: 1.00 µs to 2.00 µs; set: 3.00 µs to 4.00 µs."
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (100.0, "100 s"),
        (0.5, "500 ms"),
        (0.0312, "31.2 ms"),
        (14.7e-6, "14.7 µs"),
        (2.56e-6, "2.56 µs"),
        (30e-9, "0.03 µs"),
        (0.0, "0.00 µs"),
        (1234.5, "1,234 s"),
    ],
)
def test_duration_reads_the_way_people_say_it(seconds, text):
    assert duration(seconds) == text


# -- contests


def contest(asked: Callable[[], int], **answers: object) -> Contest:
    """Return a contest in which each contender gives one answer, and 42 is right."""
    contenders = {
        name: {"get": Operation(lambda answer=answer: answer, lambda: None, lambda result: result == 42)}
        for name, answer in answers.items()
    }
    return Contest(title="", note="", contenders=contenders, commands=asked)


def measure(contest: Contest) -> Table:
    return contest.table([Spec("get", "get", Target(1000, " x"))], PLAN, lambda row: None)


def test_contest_measures_who_answers_right_and_asks_redis():
    table = measure(contest(counting(0, 2).__next__, limit=42, **{OURS: 42}))
    assert table.contenders == ["limit", OURS]
    assert table.rows[0].verdict().startswith("met")


def test_contest_refuses_a_wrong_answer():
    with pytest.raises(WrongAnswerError, match=f"{OURS}: get gave 41"):
        measure(contest(counting(0, 2).__next__, limit=42, **{OURS: 41}))


def test_contest_refuses_who_does_not_ask_redis():
    """Between two questions the server counts only the question itself: a fallback has answered."""
    with pytest.raises(WrongAnswerError, match="did not ask Redis"):
        measure(contest(counting(0, 1).__next__, limit=42, **{OURS: 42}))


def test_memory_need_not_ask_redis():
    answers = {LOCMEM: 42, OURS: 42}
    steps = iter([0, 1, 1, 3] * 2)  # nothing but the question for memory, one command more for ours
    assert measure(contest(lambda: next(steps), **answers)).rows[0].cells.keys() == answers.keys()


def test_tasks_at_once_each_make_every_call():
    made: list[int] = []

    async def call() -> None:
        made.append(1)

    assert asyncio.run(time_together(call, 3, tasks=5)) >= 0
    assert len(made) == 15


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_was_frozen_before_stays_so(is_frozen):
    """Tests are, by the ten thousand: each gc.collect() of those that came after took a second."""
    frozen = gc.get_freeze_count()
    try:
        gc.unfreeze()
        if is_frozen:
            gc.freeze()
        interleave({"one": fixed(0.001)}, PLAN)
        assert (gc.get_freeze_count() > 0) == is_frozen
    finally:
        if frozen:
            gc.freeze()
