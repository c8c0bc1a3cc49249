"""What was taken away while Redis did not listen does not come back with it, in any process of the site."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from tests.faults.outages import KINDS, Outage
from tests.faults.site import MARGIN, Site, SiteProcess, WorkerError, wait_until

BOUND = 1.0 * MARGIN
"""Seconds after Redis answers in which the last process of a host has heard."""

WAYS: dict[str, Callable[[SiteProcess], Any]] = {
    "delete": lambda process: process.delete("k"),
    "delete_many": lambda process: process.delete_many(["k", "other"]),
    "clear": lambda process: process.clear(),
    "delete_pattern": lambda process: process.delete_pattern("k*"),
    "set": lambda process: process.set("k", "new"),
    "set_many": lambda process: process.set_many({"k": "new"}),
    "set, over at once": lambda process: process.set("k", "new", 0),
    "touch": lambda process: process.touch("k", 1000),
    "touch, over at once": lambda process: process.touch("k", 0),
    "incr_version": lambda process: process.incr_version("k"),
}


def expect_gone(*processes: SiteProcess, key: str = "k", within: float = BOUND) -> None:
    """The old value is a miss in every process, and stays one."""
    wait_until(lambda: all(process.get(key) != "old" for process in processes), within)
    wait_until(lambda: all(process.is_well() for process in processes), 5 * MARGIN)
    assert [process.get(key) for process in processes] == [None] * len(processes)


def three_that_know(site: Site, *keys: str, face: str = "sync") -> list[SiteProcess]:
    """Processes that have all read the old values from Redis; the first one has the face."""
    processes = [site.process(face=face), *site.processes(2)]
    let_know(*processes, keys=keys or ("k",))
    return processes


def let_know(*processes: SiteProcess, keys: tuple[str, ...] = ("k",)) -> None:
    """On a busy machine it may take a second try: 250 ms for a connection can be too little there."""
    values = dict.fromkeys(keys, "old")

    def know() -> bool:
        processes[0].set_many(values)
        return all(process.get_many(keys) == values and process.is_well() for process in processes)

    wait_until(know, 5 * MARGIN)


def let_notice(*processes: SiteProcess) -> None:
    """Whether by itself or because another one's journal says so."""
    for process in processes:
        for _ in range(3):
            process.get("unrelated")
        assert not process.is_well()


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_deleted_in_an_outage(kind: str, make_outage: Any, make_site: Any) -> None:
    """Of three processes one deletes, one is busy, and one sleeps through the outage."""
    outage: Outage = make_outage(kind)
    deleting, busy, idle = three_that_know(make_site(outage.url))
    outage.begin()
    let_notice(deleting, busy)
    deleting.delete("k")
    assert deleting.get("k") is None
    outage.end()
    assert deleting.get("k") is None
    expect_gone(deleting, busy, idle)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_takes_a_value_away(way: Any, make_outage: Any, make_site: Any) -> None:
    outage = make_outage("refused")
    changing, busy, idle = three_that_know(make_site(outage.url))
    outage.begin()
    let_notice(changing, busy)
    with suppress(WorkerError) if way is WAYS["incr_version"] else nullcontext():
        way(changing)  # a key that is not in memory cannot be moved there
    outage.end()
    assert changing.get("k") in (None, "new")
    expect_gone(changing, busy, idle)


@pytest.mark.parametrize(
    ("way", "kind", "face"),
    [
        *[("delete", kind, "sync") for kind in KINDS],
        ("delete", "frozen", "async"),
        ("set", "frozen", "sync"),
        ("set", "held", "async"),
        ("clear", "frozen", "async"),
    ],
)
def test_the_operation_that_met_the_fault(
    way: str, kind: str, face: str, make_outage: Any, make_site: Any
) -> None:
    outage = make_outage(kind)
    changing, busy, idle = three_that_know(make_site(outage.url), face=face)
    outage.begin()
    WAYS[way](changing)
    assert changing.get("k") == ("new" if way == "set" else None)
    let_notice(busy)
    outage.end()
    expect_gone(changing, busy, idle)


@pytest.mark.parametrize("kind", ["frozen", "killed", "refused"])
def test_the_process_that_deleted_is_killed(kind: str, make_outage: Any, make_site: Any) -> None:
    """``kill -9``, before Redis is back: others put right what it wrote down, and so does who comes new."""
    outage = make_outage(kind)
    site = make_site(outage.url)
    deleting, busy, idle = three_that_know(site)
    outage.begin()
    let_notice(deleting, busy)
    deleting.delete("k")
    deleting.kill()
    outage.end()
    newcomer = site.process()
    assert newcomer.get("k") is None
    expect_gone(newcomer, busy, idle)


def test_the_whole_site_is_killed(make_outage: Any, make_site: Any) -> None:
    outage = make_outage("refused")
    site = make_site(outage.url)
    processes = three_that_know(site)
    outage.begin()
    let_notice(*processes)
    processes[0].delete("k")
    for process in processes:
        process.kill()
    outage.end()
    newcomers = site.processes(3)
    assert [process.get("k") for process in newcomers] == [None] * 3
    expect_gone(*newcomers)


def test_a_process_killed_in_the_moment_of_the_fault(make_outage: Any, make_site: Any) -> None:
    """The delete has not even returned: the site may have it or not, but whoever was told must be right."""
    outage = make_outage("swallowed")
    site = make_site(outage.url)
    deleting, busy, idle = three_that_know(site)
    outage.begin()
    deleting.delete("k")
    deleting.kill()
    outage.end()
    expect_gone(busy, idle)


@pytest.mark.parametrize(
    "at_once", [pytest.param(1, marks=pytest.mark.long), 5000], ids=["one by one", "many at once"]
)
def test_more_keys_than_a_journal_holds(at_once: int, make_outage: Any, make_site: Any) -> None:
    """150,000 deletes overflow a journal of 100,000 keys: the whole namespace goes, and nobody else's."""
    count = 150_000
    outage = make_outage("refused")
    site, neighbour = make_site(outage.url), make_site(outage.url, KEY_PREFIX="site2").process()
    fill = "for i = 0, ARGV[2] - 1 do redis.call('SET', ARGV[1] .. i, '1') end"
    outage.server.command("EVAL", fill, 0, "site:1:n", count, timeout=60)
    neighbour.set("k", "theirs")
    deleting, busy, idle = three_that_know(site)
    outage.begin()
    let_notice(deleting, busy)
    deleting.delete_numbered("n", count, at_once)
    outage.end()
    sample = [f"n{number}" for number in range(0, count, count // 100)]
    wait_until(lambda: all(process.get_many(sample) == {} for process in (deleting, busy, idle)), 2 * BOUND)
    wait_until(deleting.is_well, 10 * MARGIN)
    assert outage.server.command("EXISTS", *[f"site:1:n{number}" for number in range(count)], timeout=60) == 0
    assert neighbour.get("k") == "theirs"


def test_a_process_that_forks_in_the_outage(make_outage: Any, make_site: Any) -> None:
    """What the parent wrote down, and what the child did, outlive both."""
    outage = make_outage("refused")
    deleting, busy, idle = three_that_know(make_site(outage.url), "before", "by-child", "by-parent")
    outage.begin()
    let_notice(deleting, busy)
    deleting.delete("before")
    child = deleting.fork()
    child.delete("by-child")
    deleting.delete("by-parent")
    assert child.get("before") is None
    deleting.kill()
    outage.end()
    for key in ("before", "by-child", "by-parent"):
        expect_gone(child, busy, idle, key=key)


def test_parent_and_child_both_die(make_outage: Any, make_site: Any) -> None:
    outage = make_outage("refused")
    deleting, busy, idle = three_that_know(make_site(outage.url), "before", "by-child")
    outage.begin()
    let_notice(deleting)
    deleting.delete("before")
    child = deleting.fork()
    child.delete("by-child")
    child.kill()
    deleting.kill()
    outage.end()
    expect_gone(busy, idle, key="before")
    expect_gone(busy, idle, key="by-child")


def test_a_second_outage_does_not_serve_the_first_ones_values(make_outage: Any, make_site: Any) -> None:
    outage = make_outage("refused")
    first, second = make_site(outage.url).processes(2)
    outage.begin()
    let_notice(first)
    first.set("k", "old")
    outage.end()
    wait_until(first.is_well, 5 * MARGIN)
    second.set("k", "newer")
    outage.begin()
    let_notice(first)
    assert first.get("k") is None


def test_what_a_process_keeps_in_memory_while_it_waits_for_its_next_probe(
    make_outage: Any, make_site: Any
) -> None:
    """After a long outage that is some seconds off; what others deleted is gone within one all the same."""
    outage = make_outage("refused")
    deleting, keeping = make_site(outage.url, BREAKER={"probe_base": "20s", "probe_cap": "20s"}).processes(2)
    outage.begin()
    let_notice(deleting, keeping)
    keeping.set_many({"k": "old", "k2": "old"})
    assert keeping.get("k") == "old"
    deleting.delete("k")
    deleting.delete_pattern("k2*")
    outage.end()
    wait_until(lambda: keeping.get("k") is None and keeping.get("k2") is None, BOUND)
