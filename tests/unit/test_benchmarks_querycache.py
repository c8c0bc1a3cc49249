"""The judging of query caches: what counts as a computation, who is the slowest, and what a hit must be."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import querycache, querycache_forget, querycache_herd, querycache_peers
from benchmarks.harness import FULL
from benchmarks.peers import DJANGO_REDIS, OURS, VALUE
from benchmarks.querycache import ROWS, Read, hit, miss
from benchmarks.querycache_forget import LARGE, SMALL, Found, Warehouse, forget_rows
from benchmarks.querycache_herd import Act, Herd, acts_of, rows_of
from benchmarks.querycache_herd_child import CALLERS, LIMIT, WARM, Gates, Pen
from benchmarks.querycache_peers import Loads, presence_notes
from benchmarks.querycache_stock import PAGES, SCAN

# -- a hit and a miss


def test_a_hit_that_computes_is_not_timed():
    loads = Loads()
    operation = hit(loads, lambda: loads.user()(42), VALUE)
    operation.prepare()
    assert not operation.is_right(operation.call())


def test_a_hit_is_right_once_it_was_computed_before():
    loads = Loads()
    kept: list[Any] = []

    def cached() -> Any:
        if not kept:
            kept.append(loads.user()(42))
        return kept[0]

    operation = hit(loads, cached, VALUE)
    operation.prepare()
    assert operation.is_right(operation.call())


def test_a_miss_asks_for_somebody_else_each_time_and_computes():
    loads, asked = Loads(), []
    operation = miss(loads, lambda user_id: asked.append(user_id) or loads.user()(user_id))
    operation.prepare()
    assert operation.is_right(operation.call())
    assert operation.is_right(operation.call())
    assert len(set(asked)) == 2


def test_a_miss_that_computes_nothing_is_not_timed():
    operation = miss(Loads(), lambda user_id: VALUE)
    operation.prepare()
    assert not operation.is_right(operation.call())


@pytest.mark.parametrize("received", [b"$-1\r\n", b"*2\r\n$3\r\nabc\r\n$-1\r\n"])
def test_reading_what_is_not_there_is_no_limit(received):
    assert not Read(b"", len(received)).is_right(received)


def test_every_row_has_a_name_of_its_own_among_all_suites():
    assert len(set(ROWS)) == len(ROWS)
    assert command.SUITES["querycache"] is querycache
    others = {row for name, suite in command.SUITES.items() if name != "querycache" for row in suite.ROWS}
    assert not others & set(ROWS)


def test_who_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(querycache_peers, "is_installed", lambda name: False)
    [note] = presence_notes()
    assert note == "Not installed here, so not measured: django-cacheops, cashews, dogpile.cache."


# -- a herd


def process(waited: list[float], computed: int) -> dict[str, Any]:
    """Return what one process says of one run without and one with an expired value."""
    expired = [[[0.002, 0.002, 0.2], 1]]
    return {"cold": [[waited, computed]], "stale": expired, "spread": expired, "raised": {}}


def beside_the_limit(**herds: Herd) -> dict[str, Herd]:
    """Return herds by name, and as many callers who read what is there."""
    read = [[[0.0015], 0]]
    return {LIMIT: Herd.of([{"cold": [], "stale": read, "spread": read, "raised": {}}]), **herds}


def test_callers_of_all_processes_are_one_herd():
    [act] = acts_of([process([0.2, 0.21], 3)["cold"], process([0.25], 3)["cold"]])
    assert act == Act([0.2, 0.21, 0.25], 3)


def test_one_computation_and_the_slowest_caller_are_judged():
    rows = rows_of(beside_the_limit(redis_infra=Herd.of([process([0.2, 0.25], 1), process([0.21], 1)])))
    assert [row.verdict() for row in rows] == [
        "met (1.00)",
        "met (250.00 ms)",
        "met (1.00)",
        "met (1.33 x)",
        "",
        "met (2.00 ms)",
    ]


def test_a_second_computation_is_one_too_many():
    assert (
        rows_of(beside_the_limit(redis_infra=Herd.of([process([0.2], 2)])))[0].verdict()
        == "**missed** (2.00)"
    )


def test_the_worst_run_counts_for_computations_and_the_median_run_for_callers():
    runs = [Act([0.2], 1), Act([0.9], 3), Act([0.21], 1)]
    ours = Herd(runs, [Act([0.001], 1)], [Act([0.001], 1)], {})
    computed, slowest, *_ = rows_of(beside_the_limit(redis_infra=ours))
    assert (computed.figure, round(slowest.figure)) == (3, 210)


def test_what_is_raised_breaks_it():
    said = [{**process([0.2], 1), "raised": {"TimeoutError": 2}}, {**process([0.2], 1), "raised": {}}]
    row = rows_of(beside_the_limit(redis_infra=Herd.of(said)))[0]
    assert row.verdict() == "**missed** (1.00; raises TimeoutError 2 times)"
    assert row.cells[OURS].text == "1, raises TimeoutError 2 times"


def test_the_limit_computes_nothing_and_is_not_judged():
    rows = rows_of(beside_the_limit(redis_infra=Herd.of([process([0.2], 1)])))
    assert [LIMIT in row.cells for row in rows] == [False, False, False, True, True, True]


def test_who_cannot_serve_what_has_expired_has_no_cell_there():
    cold = {"cold": [[[0.2], 1]], "stale": [], "spread": [], "raised": {}}
    rows = rows_of(
        {**beside_the_limit(redis_infra=Herd.of([process([0.2], 1)])), DJANGO_REDIS: Herd.of([cold])}
    )
    assert [DJANGO_REDIS in row.cells for row in rows] == [True, True, False, False, False, False]


class OnlyProcess:
    """Meets nobody."""

    def wait(self, patience: float) -> None:
        pass


class Value:
    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def get_lock(self) -> threading.Lock:
        return self._lock


def pen() -> Pen:
    return Pen(0, OnlyProcess(), Value(), Value())


def test_all_callers_ask_and_every_computation_counts(monkeypatch):
    monkeypatch.setattr("benchmarks.querycache_herd_child.SECONDS", 0.0)
    one = pen()
    waited, computed = one.act(Gates(one.compute), one.compute, "report", 0.0, Counter())
    assert (len(waited), computed) == (CALLERS, CALLERS)


def test_awaiting_callers_ask_too(monkeypatch):
    monkeypatch.setattr("benchmarks.querycache_herd_child.SECONDS", 0.0)
    one = pen()
    with asyncio.Runner() as runner:
        waited, computed = one.act(Gates(one.acompute, runner=runner), one.acompute, "report", 0.0, Counter())
    assert (len(waited), computed) == (CALLERS, CALLERS)


def test_callers_may_arrive_one_after_another():
    """The last of them when nearly all of the time is over, and no sooner."""
    one, moments = pen(), []
    began = time.monotonic()
    one.drive(Gates(), lambda key: moments.append(time.monotonic()), "report", began, Counter(), spread=0.1)
    assert len(moments) == CALLERS
    assert max(moments) - began >= 0.1 * (CALLERS - 1) / CALLERS


def test_getting_warm_is_no_computation():
    one = pen()
    _, computed = one.act(Gates(one.compute), one.compute, WARM, 0.0, Counter())
    assert computed == 0


def test_what_a_caller_meets_with_is_counted():
    def get(key: str) -> None:
        raise TimeoutError(key)

    one, raised = pen(), Counter[str]()
    waited = one.drive(Gates(get), get, "report", 0.0, raised, callers=3)
    assert (len(waited), raised) == (3, {"TimeoutError": 3})


def test_only_who_is_installed_is_asked(monkeypatch):
    asked = []

    def run(module: str, name: str, task: str) -> list[Any]:
        asked.append(name)
        return [process([0.2], 1)]

    monkeypatch.setattr(querycache_herd, "is_installed", lambda name: False)
    monkeypatch.setattr(querycache_herd, "run_child", run)
    querycache_herd.tables(FULL, lambda row: None)
    assert asked == [LIMIT, OURS, f"{OURS}, tasks", "django-redis `get_or_set`"]


# -- forgetting


def found(sizes: dict[int, float]) -> Found:
    """Return what two contenders took, ours by size."""
    it = Found()
    for size, seconds in sizes.items():
        for what in ("chat", "pages", "tag", "lost"):
            it.add(what, OURS, size, seconds)
        it.add("chat", SCAN, size, size / 1e6)
    return it


def test_a_million_and_growth_are_held():
    rows = {
        row.title: row.verdict() for row in forget_rows(found({SMALL: 0.008, LARGE: 0.01}), (SMALL, LARGE))
    }
    assert rows["`chat:42:*`, 1,000 of 1,000,000"] == "met (10.00 ms)"
    assert rows["growth"] == "met (1.25 x)"


def test_too_slow_and_growing_is_missed():
    rows = {
        row.title: row.verdict() for row in forget_rows(found({SMALL: 0.008, LARGE: 0.02}), (SMALL, LARGE))
    }
    assert rows["`chat:42:*`, 1,000 of 1,000,000"] == "**missed** (20.00 ms)"
    assert rows["growth"] == "**missed** (2.50 x)"


def test_in_a_hurry_there_is_nothing_to_grow_to():
    rows = forget_rows(found({SMALL: 0.008}), (SMALL,))
    assert [row.target for row in rows] == [None] * len(rows)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_it_is_another_chat_each_round(size):
    chats = [Warehouse(size).chat(turn) for turn in range(9)]
    assert len(set(chats)) == 9
    assert all(0 <= chat < size // PAGES for chat in chats)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_wildcard_in_the_middle_is_for_a_thousand_too(size):
    pages = 10 if Warehouse(size).pages().endswith("?") else 1
    assert pages * (size // PAGES) == PAGES


def test_what_is_promised_of_memory_is_in_bytes_of_the_very_keys():
    assert querycache_forget.MEMORY.bound == 2 * len("chat:42:messages:042") + 250
