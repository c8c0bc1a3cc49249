"""What was no invalidation does no harm when Redis returns: locks, fills, counters."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.outages import Outage
from tests.faults.site import MARGIN, SiteProcess, WorkerError, wait_until
from tests.faults.test_stale import let_notice

FACES = pytest.mark.parametrize("face", ["sync", "async"])
RECOVERED = 5.0 * MARGIN


@pytest.fixture
def outage(make_outage: Any) -> Outage:
    return make_outage("refused")


@FACES
def test_a_lock_of_another_host_is_still_held(face: str, outage: Outage, make_site: Any) -> None:
    """Our processes took it too, in memory and among themselves; that gives them no right to remove it."""
    ours = make_site(outage.url).process(face=face)
    theirs = make_site(outage.server.url, host="b").process()
    assert theirs.add("lock", "theirs", 600) is True
    ours.get("lock")
    outage.begin()
    let_notice(ours)
    assert ours.add("lock", "ours", 600) is True
    assert ours.add("lock", "ours", 600) is False
    outage.end()
    wait_until(ours.is_well, RECOVERED)
    assert ours.get("lock") == "theirs"
    assert ours.add("lock", "ours", 600) is False
    assert theirs.add("lock", "theirs again", 600) is False


@pytest.mark.parametrize("kind", ["swallowed", "frozen"])
def test_the_add_that_met_the_fault_takes_no_lock_away(kind: str, make_outage: Any, make_site: Any) -> None:
    outage = make_outage(kind)
    ours = make_site(outage.url).process()
    theirs = make_site(outage.server.url, host="b").process()
    assert theirs.add("lock", "theirs", 600) is True
    ours.get("lock")
    outage.begin()
    ours.add("lock", "ours", 600)
    outage.end()
    wait_until(ours.is_well, RECOVERED)
    assert ours.get("lock") == "theirs"


@FACES
def test_fills_do_not_empty_the_working_set(face: str, outage: Outage, make_site: Any) -> None:
    """A site that goes on reading through an outage finds its cache as warm as it was."""
    process = make_site(outage.url).process(face=face)
    process.set_numbered("page", 200, "warm")
    outage.begin()
    let_notice(process)
    for number in range(200):
        assert process.fill(f"page{number}", "computed again") == "computed again"
    outage.end()
    wait_until(process.is_well, RECOVERED)
    names = [f"page{number}" for number in range(200)]
    assert process.get_many(names) == dict.fromkeys(names, "warm")


@FACES
def test_reads_and_deletes_of_others_leave_the_rest_warm(face: str, outage: Outage, make_site: Any) -> None:
    process = make_site(outage.url).process(face=face)
    process.set_numbered("page", 10, "warm")
    outage.begin()
    let_notice(process)
    process.delete("page3")
    outage.end()
    wait_until(process.is_well, RECOVERED)
    assert sorted(process.get_many([f"page{number}" for number in range(10)])) == [
        f"page{number}" for number in range(10) if number != 3
    ]


@FACES
def test_a_counter_that_could_not_be_reached_gets_its_delta(
    face: str, outage: Outage, make_site: Any
) -> None:
    process = make_site(outage.url).process(face=face)
    process.set("visits", 100)
    outage.begin()
    let_notice(process)
    for _ in range(7):
        process.incr_or_create("visits", 2)
    process.incr("visits", 3)
    process.decr("visits")
    outage.end()
    wait_until(process.is_well, RECOVERED)
    assert process.get("visits") == 100 + 7 * 2 + 3 - 1


def test_deltas_of_several_processes_add_up(outage: Outage, make_site: Any) -> None:
    processes = make_site(outage.url).processes(3)
    processes[0].set("visits", 100)
    outage.begin()
    let_notice(*processes)
    for process in processes:
        process.incr_or_create("visits", 5)
    outage.end()
    for process in processes:
        wait_until(process.is_well, RECOVERED)
    assert processes[0].get("visits") == 115


def test_a_delta_makes_no_counter(outage: Outage, make_site: Any) -> None:
    """It has ended meanwhile, or never was in Redis: one without its start would be wrong for ever."""
    process = make_site(outage.url).process()
    outage.begin()
    let_notice(process)
    process.incr_or_create("visits", 5)
    outage.end()
    wait_until(process.is_well, RECOVERED)
    assert process.get("visits") is None


def test_a_child_does_not_send_its_parents_deltas(outage: Outage, make_site: Any) -> None:
    parent = make_site(outage.url).process()
    parent.set("visits", 100)
    outage.begin()
    let_notice(parent)
    parent.incr_or_create("visits", 5)
    child = parent.fork()
    child.incr_or_create("visits", 1)
    outage.end()
    for process in (parent, child):
        wait_until(lambda process=process: process.get("x") is None and process.is_well(), RECOVERED)
    assert parent.get("visits") == 106


def counted(process: SiteProcess, name: str, *args: Any) -> None:
    """Count, if the process can; of a key that it does not have it says what locmem says."""
    try:
        process._do(name, *args)
    except WorkerError as error:
        if error.kind != "ValueError":
            raise


@FACES
@pytest.mark.parametrize("name", ["incr", "incr_or_create"])
def test_lost_replies_never_count_twice(name: str, face: str, proxy: TcpProxy, make_site: Any) -> None:
    """Each was executed once; the client cannot know, and must not try again."""
    process = make_site(proxy.url, BREAKER={"probe_base": "10ms", "probe_cap": "20ms"}).process(face=face)
    process.set("visits", 100)
    counted(process, name, "visits")
    for _ in range(10):
        wait_until(process.is_well, RECOVERED)
        proxy.lose_replies(1, request=b"EVALSHA")
        counted(process, name, "visits")
        proxy.heal()
    wait_until(process.is_well, RECOVERED)
    assert process.get("visits") == 111


@FACES
@pytest.mark.parametrize("kind", ["frozen", "held"])
def test_a_count_that_timed_out_counts_once_or_not_at_all(
    kind: str, face: str, make_outage: Any, make_site: Any
) -> None:
    outage = make_outage(kind)
    process = make_site(outage.url).process(face=face)
    process.set("visits", 100)
    process.incr("visits", 1)
    outage.begin()
    counted(process, "incr", "visits", 10)
    outage.end()
    wait_until(process.is_well, RECOVERED)
    assert process.get("visits") in (101, 111)


def test_a_drain_that_breaks_off_sends_no_delta_twice(
    server: RedisServer, proxy: TcpProxy, make_site: Any
) -> None:
    """The connection that replays the deltas is lost with the first one's reply on its way."""
    process = make_site(proxy.url).process()
    process.set_many({"a": 100, "b": 100})
    process.incr("a", 0)
    server.freeze()
    let_notice(process)
    process.incr_or_create("a", 1)
    process.incr_or_create("b", 1)
    proxy.lose_replies(1, request=b"EVALSHA")
    server.thaw()
    wait_until(process.is_well, RECOVERED)
    assert process.get("a") in (100, 101)
    assert process.get("b") in (100, 101)


def test_deltas_that_met_a_full_server_count_once(server: RedisServer, make_site: Any) -> None:
    """Writes stop and go on again before anybody has asked whether they do."""
    process = make_site(server.url, BREAKER={"probe_base": "1s", "probe_cap": "1s"}).process()
    process.set("visits", 100)
    server.config_set("maxmemory", 1)
    process.incr_or_create("visits", 1)
    server.config_set("maxmemory", 0)
    for _ in range(20):
        process.delete("unrelated")
        process.incr_or_create("visits", 1)
    wait_until(process.is_well, 2 * RECOVERED)
    assert process.get("visits") == 121


@FACES
def test_a_float_counter_through_a_lost_reply(face: str, proxy: TcpProxy, make_site: Any) -> None:
    """It is counted by compare and set; no error but those of locmem may come of it."""
    process = make_site(proxy.url).process(face=face)
    process.set("price", 1.5)
    counted(process, "incr", "price", 0.5)
    proxy.lose_replies(1, request=b"EVALSHA")
    counted(process, "incr", "price", 0.5)
    assert process.get("price") in (2.0, 2.5, None)
