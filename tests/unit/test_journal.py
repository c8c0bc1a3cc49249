"""``Journal``: what Redis missed is drained, and nothing that is added meanwhile is forgotten."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from redis_infra.keys import glob_to_regex
from redis_infra.resilience import journal as journal_module
from redis_infra.resilience.journal import Batch, Entry, Journal, Kind, decode
from redis_infra.resilience.statedir import JournalFile, StateDir
from redis_infra.testing import FakeClock

NAMESPACE = "site:[0-9]*"
OTHER = "blog:[0-9]*"
SERVER = "redis://cache.example:6379"
DATABASE = "redis://cache.example:6379/0"

forking = multiprocessing.get_context("fork")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(clock: FakeClock) -> Journal:
    return Journal(1000, 1 << 20, clock=clock)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDir]:
    opened = StateDir.open(str(tmp_path / "state"))
    yield opened
    opened.close()


@pytest.fixture
def file(directory: StateDir) -> JournalFile:
    return directory.journal(SERVER, DATABASE)


@pytest.fixture
def on_disk(file: JournalFile, clock: FakeClock) -> Journal:
    return Journal(1000, 1 << 20, file, clock)


def names(count: int, prefix: str = "site:1:") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def drain(journal: Journal) -> Batch:
    batch = journal.take()
    journal.done(batch)
    return batch


def lines(file: JournalFile) -> list[tuple[str, str]]:
    assert file.path is not None
    return [(entry.kind.name, entry.text) for entry in decode(file.path.read_bytes())]


def in_child(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked child, which then ends."""
    ours, theirs = forking.Pipe()
    child = forking.Process(target=lambda: theirs.send(work()))
    child.start()
    child.join()
    assert child.exitcode == 0
    return ours.recv()


# Adding and asking


def test_a_new_journal_is_empty(journal):
    assert journal.empty
    assert len(journal) == journal.pending == 0
    assert not journal.covers("site:1:a")
    assert len(journal.take()) == 0


def test_added_keys_are_covered_and_no_others(journal):
    journal.add(["site:1:a", "site:1:b"], NAMESPACE)
    assert not journal.empty
    assert [journal.covers(f"site:1:{key}") for key in "abc"] == [True, True, False]


def test_adding_nothing_changes_nothing(journal):
    journal.add([], NAMESPACE)
    journal.absorb([])
    journal.absorb([Entry(Kind.NAMESPACE, NAMESPACE)])
    assert journal.empty


def test_any_iterable_will_do(journal):
    journal.add((name for name in ["site:1:a"]), NAMESPACE)
    assert journal.take().names == ("site:1:a",)


def test_a_key_added_often_is_drained_once(journal):
    for _ in range(10):
        journal.add(["site:1:a"], NAMESPACE)
    assert journal.pending == 1
    assert drain(journal).names == ("site:1:a",)


def test_a_pattern_covers_what_it_matches(journal):
    journal.add_pattern("site:1:user:*")
    assert [journal.covers(name) for name in ("site:1:user:7", "site:1:room:7")] == [True, False]
    assert journal.take().patterns == ("site:1:user:*",)


def test_since_is_when_it_ceased_to_be_empty(journal, clock):
    assert (journal.since, journal.oldest) == (None, 0.0)
    journal.add(["a"], NAMESPACE)
    began = clock.time()
    clock.advance(5)
    journal.add(["b"], NAMESPACE)
    assert (journal.since, journal.oldest) == (began, 5.0)
    drain(journal)
    assert (journal.since, journal.oldest) == (None, 0.0)


# Draining


def test_what_was_drained_is_forgotten(journal):
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    journal.add_delta("site:1:counter", 5)
    batch = journal.take()
    assert (batch.names, batch.patterns, batch.deltas) == (
        ("site:1:a",),
        ("site:1:b*",),
        {"site:1:counter": 5},
    )
    assert len(batch) == 3
    journal.done(batch)
    assert journal.empty
    assert not any(map(journal.covers, ("site:1:a", "site:1:b", "site:1:counter")))


def test_what_is_being_drained_is_still_covered(journal):
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    journal.take()
    assert journal.covers("site:1:a")
    assert journal.covers("site:1:b")
    assert not journal.empty


def test_what_was_added_again_while_it_was_drained_stays(journal):
    journal.add(["site:1:a", "site:1:b"], NAMESPACE)
    batch = journal.take()
    journal.add(["site:1:b"], NAMESPACE)
    journal.done(batch)
    assert [journal.covers("site:1:a"), journal.covers("site:1:b")] == [False, True]
    assert journal.take().names == ("site:1:b",)


def test_a_pattern_added_again_while_it_was_drained_stays(journal):
    journal.add_pattern("site:1:*")
    batch = journal.take()
    journal.add_pattern("site:1:*")
    journal.done(batch)
    assert journal.take().patterns == ("site:1:*",)


def test_a_key_added_while_its_pattern_is_drained_belongs_to_the_next_batch(journal):
    """The scan may have passed it. Taking the whole pattern again would never end under steady writes."""
    journal.add_pattern("site:1:*")
    batch = journal.take()
    journal.add(["site:1:a"], NAMESPACE)
    journal.done(batch)
    following = journal.take()
    assert (following.names, following.patterns) == (("site:1:a",), ())


def test_a_key_under_a_pattern_that_nobody_drains_yet_goes_with_it(journal):
    journal.add_pattern("site:1:*")
    journal.add(["site:1:a"], NAMESPACE)
    assert journal.pending == 1


def test_a_drain_that_failed_begins_again_with_everything(journal):
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    journal.take()
    journal.add(["site:1:c"], NAMESPACE)
    assert set(journal.take().names) == {"site:1:a", "site:1:c"}
    assert drain(journal).patterns == ("site:1:b*",)
    assert journal.empty


def test_a_part_of_a_batch_can_be_settled_first(journal):
    journal.add(["site:1:a", "site:1:b"], NAMESPACE)
    journal.add_delta("site:1:counter", 5)
    batch = journal.take()
    journal.done(dataclasses.replace(batch, names=("site:1:a",), patterns=(), deltas={}))
    assert [journal.covers(f"site:1:{key}") for key in ("a", "b", "counter")] == [False, True, True]
    journal.done(dataclasses.replace(batch, names=()))
    assert journal.take().names == ("site:1:b",)


def test_settling_twice_is_as_once(journal):
    journal.add(["site:1:a"], NAMESPACE)
    batch = drain(journal)
    journal.add(["site:1:a"], NAMESPACE)
    journal.done(batch)
    assert journal.covers("site:1:a")


def test_a_batch_does_not_change(journal):
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_delta("site:1:counter", 1)
    batch = journal.take()
    journal.add_delta("site:1:counter", 1)
    drain(journal)
    assert (batch.names, dict(batch.deltas)) == (("site:1:a",), {"site:1:counter": 1})


# Counters


def test_increments_of_one_key_are_one_sum(journal):
    for delta in (5, -2, 4):
        journal.add_delta("site:1:counter", delta)
    assert journal.covers("site:1:counter")
    assert drain(journal).deltas == {"site:1:counter": 7}
    assert journal.empty


def test_an_increment_of_a_dirty_key_is_moot(journal):
    """The key will be deleted."""
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    journal.add_delta("site:1:a", 1)
    journal.add_delta("site:1:b", 1)
    assert journal.take().deltas == {}


def test_a_key_that_becomes_dirty_drops_its_sum(journal):
    for counter in "abc":
        journal.add_delta(f"site:1:{counter}", 1)
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    assert journal.take().deltas == {"site:1:c": 1}


def test_what_was_counted_while_it_was_sent_stays(journal):
    journal.add_delta("site:1:counter", 5)
    batch = journal.take()
    journal.add_delta("site:1:counter", 2)
    journal.done(batch)
    assert journal.take().deltas == {"site:1:counter": 2}


def test_what_was_taken_back_while_it_was_sent_is_owed_to_redis(journal):
    journal.add_delta("site:1:counter", 5)
    batch = journal.take()
    journal.add_delta("site:1:counter", -5)
    journal.done(batch)
    assert drain(journal).deltas == {"site:1:counter": -5}
    assert journal.empty


def test_a_sum_that_began_anew_is_not_the_one_that_was_sent(journal):
    """Sent as 5; then deleted, drained, and counted again from nothing."""
    journal.add_delta("site:1:counter", 5)
    batch = journal.take()
    journal.add(["site:1:counter"], NAMESPACE)
    drain(journal)
    journal.add_delta("site:1:counter", 3)
    journal.done(batch)
    assert journal.take().deltas == {"site:1:counter": 3}


# Too much


@pytest.mark.parametrize("bound", [{"max_keys": 10}, {"max_bytes": 80}])
def test_too_many_names_give_way_to_their_namespace(bound):
    journal = Journal(**{"max_keys": 10**6, "max_bytes": 10**6, **bound})
    journal.add(names(10), NAMESPACE)
    assert not journal.collapsed
    journal.add(names(12), NAMESPACE)
    assert journal.collapsed
    assert journal.pending == 1
    assert all(map(journal.covers, names(1000)))
    assert drain(journal).patterns == (NAMESPACE,)
    assert not journal.collapsed
    assert journal.empty


def test_an_alias_that_missed_nothing_keeps_its_keys():
    journal = Journal(10, 10**6)
    journal.add(["blog:1:a"], OTHER)
    drain(journal)
    journal.add(names(11), NAMESPACE)
    assert not journal.covers("blog:1:a")
    assert journal.take().patterns == (NAMESPACE,)


def test_every_alias_that_missed_something_gives_way():
    journal = Journal(10, 10**6)
    journal.add(names(6), NAMESPACE)
    journal.add(names(6, "blog:1:"), OTHER)
    assert set(journal.take().patterns) == {NAMESPACE, OTHER}


def test_after_giving_way_single_names_take_no_room():
    journal = Journal(10, 10**6)
    journal.add(names(1000), NAMESPACE)
    journal.add(names(1000, "site:2:"), NAMESPACE)
    assert journal.pending == 1


def test_draining_what_gave_way_ends_also_under_steady_writes():
    journal = Journal(10, 10**6)
    journal.add(names(1000), NAMESPACE)
    batch = journal.take()
    journal.add(["site:1:5"], NAMESPACE)
    journal.done(batch)
    assert drain(journal).names == ("site:1:5",)
    assert journal.empty


def test_when_the_drain_fails_names_give_way_again():
    journal = Journal(10, 10**6)
    journal.add(names(11), NAMESPACE)
    journal.take()
    journal.add(names(11), NAMESPACE)
    assert journal.pending == 1
    assert drain(journal).patterns == (NAMESPACE,)
    assert journal.empty


def test_sums_give_way_with_the_keys_of_their_alias():
    journal = Journal(10, 10**6)
    journal.add_delta("site:1:counter", 1)
    journal.add(names(10), NAMESPACE)
    assert (journal.take().deltas, journal.take().patterns) == ({}, (NAMESPACE,))


def test_too_many_sums_give_way_to_a_namespace_that_is_known():
    journal = Journal(10, 10**6)
    for name in names(11):
        journal.add_delta(name, 1, NAMESPACE)
    assert (journal.take().deltas, journal.take().patterns) == ({}, (NAMESPACE,))


@pytest.mark.parametrize("namespace", [NAMESPACE, r"my\[site\]:[-0-9]**"])
def test_too_many_patterns_give_way_to_their_namespace(namespace):
    journal = Journal(1000, 10**6, max_patterns=10)
    prefix = namespace.partition("[-")[0].partition("[0")[0]
    for number in range(11):
        journal.add_pattern(f"{prefix}1:user:{number}:*", namespace)
    assert journal.take().patterns == (namespace,)


def test_patterns_that_may_reach_beyond_the_namespace_stay():
    """Only what certainly lies within can give way."""
    journal = Journal(2, 10**6)
    journal.add_pattern("*:user:7")
    journal.add_pattern("site:1:user:*")
    journal.add(names(3), NAMESPACE)
    assert set(journal.take().patterns) == {"*:user:7", NAMESPACE}


def test_what_no_namespace_covers_is_kept_over_the_bound():
    """Better too much than stale."""
    journal = Journal(10, 10**6)
    journal.add(names(50, "stray:"), NAMESPACE)
    journal.add(names(200), NAMESPACE)
    assert all(map(journal.covers, names(50, "stray:")))
    batch = drain(journal)
    assert (set(batch.names), batch.patterns) == (set(names(50, "stray:")), (NAMESPACE,))
    journal.add(names(11), NAMESPACE)
    assert journal.pending == 1


def test_what_cannot_give_way_is_not_gone_through_at_every_addition(file):
    journal = Journal(10, 10**6, file)
    written = set()
    for name in names(500, "stray:"):
        journal.add([name], NAMESPACE)
        written.add(file.path)
    assert journal.pending == 500
    assert len(written) < 10


def test_a_bound_of_nothing_is_a_bound_of_one():
    journal = Journal(0, 0)
    journal.add(["stray"], NAMESPACE)
    assert drain(journal).names == ("stray",)


def test_150000_keys_are_not_slow():
    """An outage in which a site deletes more than the journal holds; measured 0.4 s, one core."""
    journal = Journal(100_000, 16 << 20)
    everything = [(name,) for name in names(150_000)]
    began = time.process_time()
    for name in everything:
        journal.add(name, NAMESPACE)
    assert time.process_time() - began < 4
    assert journal.take().patterns == (NAMESPACE,)


# Other processes' entries


def test_what_others_left_is_taken_over(journal):
    journal.absorb(
        [Entry(Kind.NAMESPACE, NAMESPACE), Entry(Kind.KEY, "site:1:a"), Entry(Kind.PATTERN, "site:1:b*")]
    )
    assert [journal.covers(f"site:1:{key}") for key in "abc"] == [True, True, False]
    batch = drain(journal)
    assert (batch.names, batch.patterns) == (("site:1:a",), ("site:1:b*",))
    assert journal.empty


def test_what_others_left_drops_our_sum(journal):
    journal.add_delta("site:1:a", 1)
    journal.absorb([Entry(Kind.KEY, "site:1:a")])
    assert journal.take().deltas == {}


def test_too_much_of_others_gives_way_to_the_namespace_they_left():
    journal = Journal(10, 10**6)
    journal.absorb([Entry(Kind.NAMESPACE, NAMESPACE)] + [Entry(Kind.KEY, name) for name in names(11)])
    assert journal.take().patterns == (NAMESPACE,)


def test_a_namespace_that_was_read_once_is_known_for_what_is_read_later():
    """Readers go on at an offset, and do not see the beginning again."""
    journal = Journal(10, 10**6)
    journal.absorb([Entry(Kind.NAMESPACE, NAMESPACE), Entry(Kind.KEY, "site:1:a")])
    drain(journal)
    journal.absorb([Entry(Kind.KEY, name) for name in names(11)])
    assert journal.take().patterns == (NAMESPACE,)


def test_what_others_left_is_not_written_to_our_file(on_disk, file):
    """Or two processes would hand each other the same keys for ever."""
    on_disk.absorb([Entry(Kind.KEY, "site:1:theirs"), Entry(Kind.PATTERN, "site:1:b*")])
    assert file.path is None
    ours = names(9)
    on_disk.add(ours, NAMESPACE)
    batch = on_disk.take()
    on_disk.done(dataclasses.replace(batch, names=tuple(ours[1:]), patterns=()))
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("KEY", ours[0])]


@pytest.mark.parametrize("theirs_first", [True, False])
def test_what_others_left_and_we_missed_too_is_ours(on_disk, file, theirs_first):
    """Also in a file that was rewritten since."""

    def ours() -> None:
        on_disk.add(["site:1:a"], NAMESPACE)
        on_disk.add_pattern("site:1:b*", NAMESPACE)

    def theirs() -> None:
        on_disk.absorb([Entry(Kind.KEY, "site:1:a"), Entry(Kind.PATTERN, "site:1:b*")])

    for step in (theirs, ours) if theirs_first else (ours, theirs):
        step()
    on_disk.add(names(9), NAMESPACE)
    written = file.path
    on_disk.done(dataclasses.replace(on_disk.take(), names=tuple(names(9)), patterns=()))
    assert file.path != written
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("PATTERN", "site:1:b*"), ("KEY", "site:1:a")]


# On disk


def test_what_was_added_is_on_disk_when_the_call_returns(on_disk, file):
    on_disk.add(["site:1:a"], NAMESPACE)
    on_disk.add_pattern("site:1:b*", NAMESPACE)
    on_disk.add(["blog:1:a"], OTHER)
    assert lines(file) == [
        ("NAMESPACE", NAMESPACE),
        ("KEY", "site:1:a"),
        ("PATTERN", "site:1:b*"),
        ("NAMESPACE", OTHER),
        ("KEY", "blog:1:a"),
    ]


def test_what_was_added_again_is_written_again(on_disk, file):
    """Another process may have drained the first, and somebody may have stored it anew since."""
    on_disk.add(["site:1:a"], NAMESPACE)
    on_disk.add(["site:1:a"], NAMESPACE)
    on_disk.add_pattern("site:1:*", NAMESPACE)
    on_disk.add(["site:1:b"], NAMESPACE)
    assert [text for kind, text in lines(file) if kind == "KEY"] == ["site:1:a", "site:1:a", "site:1:b"]


def test_sums_are_not_written(on_disk, file):
    on_disk.add_delta("site:1:counter", 1, NAMESPACE)
    assert file.path is None


def test_the_file_is_gone_when_everything_is_drained(on_disk, tmp_path):
    on_disk.add(names(10), NAMESPACE)
    drain(on_disk)
    assert list((tmp_path / "state").iterdir()) == []


def test_the_file_shrinks_to_what_is_left(on_disk, file):
    on_disk.add(names(10), NAMESPACE)
    batch = on_disk.take()
    on_disk.add(["site:1:3"], NAMESPACE)
    on_disk.done(batch)
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("KEY", "site:1:3")]


def test_one_key_added_for_ever_does_not_fill_the_disk(on_disk, file, monkeypatch):
    monkeypatch.setattr(journal_module, "FILE_ROOM", 1000)
    biggest = 0
    for _ in range(1000):
        on_disk.add(["site:1:a"], NAMESPACE)
        biggest = max(biggest, file.size)
    assert biggest < 1100
    assert ("KEY", "site:1:a") in lines(file)


def test_giving_way_replaces_the_file(file, tmp_path):
    journal = Journal(10, 10**6, file)
    journal.add(names(10), NAMESPACE)
    journal.add(["site:1:more"], NAMESPACE)
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("PATTERN", NAMESPACE)]
    assert list((tmp_path / "state").iterdir()) == [file.path]
    journal.add(["site:1:after"], NAMESPACE)
    assert lines(file)[-1] == ("KEY", "site:1:after")


def test_what_the_disk_refuses_stays_in_memory(directory, file, clock, tmp_path):
    (tmp_path / "state").write_text("in the way")
    journal = Journal(1000, 10**6, file, clock)
    journal.add(["site:1:a"], NAMESPACE)
    journal.add_pattern("site:1:b*")
    assert journal.covers("site:1:a")
    assert not directory.usable
    assert drain(journal).names == ("site:1:a",)
    assert journal.empty


def test_when_the_disk_is_back_everything_is_written(directory, file, clock, tmp_path):
    (tmp_path / "state").write_text("in the way")
    journal = Journal(1000, 10**6, file, clock)
    journal.add(["site:1:a"], NAMESPACE)
    (tmp_path / "state").unlink()
    clock.advance(journal_module.FILE_RETRY - 0.01)
    journal.add(["site:1:b"], NAMESPACE)
    assert file.path is None
    clock.advance(0.01)
    journal.add(["site:1:c"], NAMESPACE)
    assert lines(file) == [("NAMESPACE", NAMESPACE)] + [("KEY", f"site:1:{key}") for key in "abc"]
    journal.add(["site:1:d"], NAMESPACE)
    assert lines(file)[-1] == ("KEY", "site:1:d")
    assert directory.usable


def test_a_directory_that_was_deleted_is_made_anew_with_everything(on_disk, file, tmp_path):
    on_disk.add(["site:1:a"], NAMESPACE)
    shutil.rmtree(tmp_path / "state")
    on_disk.add(["site:1:b"], NAMESPACE)
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("KEY", "site:1:a"), ("KEY", "site:1:b")]


def test_another_process_drains_what_a_killed_one_left(directory, tmp_path):
    def miss_and_die() -> None:
        mine = StateDir.open(str(tmp_path / "state"))
        journal = Journal(1000, 10**6, mine.journal(SERVER, DATABASE))
        journal.add(["site:1:a\n", "site:1:\ud800"], NAMESPACE)
        journal.add_pattern("site:1:b*")
        os.kill(os.getpid(), 9)

    child = forking.Process(target=miss_and_die)
    child.start()
    child.join()
    (left,) = directory.foreign_journals(DATABASE)
    entries, _ = left.entries()
    ours = Journal(1000, 10**6)
    ours.absorb(entries)
    batch = drain(ours)
    assert (set(batch.names), batch.patterns) == ({"site:1:a\n", "site:1:\ud800"}, ("site:1:b*",))
    assert left.remove()
    assert directory.foreign_journals(DATABASE) == []


# Recent deletes


def test_recent_deletes_are_those_of_the_last_seconds(journal):
    for at, name in [(100.0, "old"), (101.0, "a"), (105.0, "b"), (106.0, "a"), (110.0, "c")]:
        journal.note_deleted(name, at)
    assert journal.recent_deletes(111.0) == ["a", "b", "c"]
    assert journal.recent_deletes(111.0, within=2.0) == ["c"]
    assert journal.empty


def test_recent_deletes_are_bounded(journal):
    for number in range(journal_module.RECENT + 10):
        journal.note_deleted(str(number), 0.0)
    found = journal.recent_deletes(0.0)
    assert len(found) == journal_module.RECENT
    assert found[-1] == str(journal_module.RECENT + 9)


# Threads and forks


def test_threads_lose_nothing_while_it_is_drained():
    """Four writers, one drainer: each key of each writer is drained, and the journal ends empty."""
    journal = Journal(10**6, 10**9)
    barrier = threading.Barrier(5)
    drained: set[str] = set()

    def fill(writer: int) -> None:
        barrier.wait()
        for name in names(2000, f"site:{writer}:"):
            journal.add([name], NAMESPACE)

    writers = [threading.Thread(target=fill, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    barrier.wait()
    while any(writer.is_alive() for writer in writers) or not journal.empty:
        drained.update(drain(journal).names)
    assert drained == {name for writer in range(4) for name in names(2000, f"site:{writer}:")}


def test_asking_never_meets_a_half_changed_journal():
    """A key that gives way to its namespace is covered at every moment."""
    journal = Journal(50, 10**6)
    journal.add(["site:1:watched"], NAMESPACE)
    gaps: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not journal.covers("site:1:watched"):
                gaps.append(journal.pending)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(200):
        journal.add(names(60, f"site:{turn}:"), NAMESPACE)
        journal.add_pattern(f"blog:{turn}:*")
        journal.take()
        journal.add(["site:1:watched"], NAMESPACE)
    done.set()
    watcher.join()
    assert gaps == []


def test_a_finalizer_may_delete_a_key_while_the_journal_is_busy(journal):
    """The garbage collector runs where it likes, also under our lock."""

    def with_finalizer() -> Iterator[str]:
        yield "site:1:a"
        journal.add(["site:1:finalized"], NAMESPACE)

    with journal._lock:
        journal.add(with_finalizer(), NAMESPACE)
    assert set(journal.take().names) == {"site:1:a", "site:1:finalized"}


def test_a_child_keeps_what_is_dirty_and_writes_to_its_own_file(on_disk, directory, file):
    on_disk.add(["site:1:parent"], NAMESPACE)
    before = file.path

    def in_the_child() -> tuple[bool, list[tuple[str, str]], bool]:
        directory.after_fork()
        on_disk.after_fork()
        on_disk.add(["site:1:child"], NAMESPACE)
        return on_disk.covers("site:1:parent"), lines(file), file.path != before

    covered, written, is_another = in_child(in_the_child)
    assert covered
    assert is_another
    assert written == [("NAMESPACE", NAMESPACE), ("KEY", "site:1:child")]
    assert lines(file) == [("NAMESPACE", NAMESPACE), ("KEY", "site:1:parent")]


def test_a_child_that_has_drained_leaves_its_parents_file(on_disk, file):
    on_disk.add(["site:1:parent"], NAMESPACE)

    def in_the_child() -> tuple[tuple[str, ...], bool]:
        on_disk.after_fork()
        return drain(on_disk).names, on_disk.empty

    assert in_child(in_the_child) == (("site:1:parent",), True)
    assert file.path is not None
    assert file.path.exists()


def test_increments_are_sent_by_the_parent_alone(journal):
    journal.add_delta("site:1:counter", 5)

    def in_the_child() -> tuple[int, bool, bool]:
        journal.after_fork()
        return len(journal.take()), journal.empty, journal.covers("site:1:counter")

    assert in_child(in_the_child) == (0, True, False)
    assert journal.take().deltas == {"site:1:counter": 5}


def test_a_fork_while_another_thread_has_the_lock_does_not_hang_the_child(journal):
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with journal._lock:
            holding.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    try:
        assert in_child(lambda: (journal.after_fork(), journal.add(["a"], NAMESPACE), journal.covers("a"))[2])
    finally:
        release.set()
        holder.join()


# Everything together

SITES = ["site:1:", "blog:1:"]
KEYS = [f"{site}{key}" for site in SITES for key in ("a", "b", "ab", "c", "*", "\n", "\ud800")]
PATTERNS = ["site:1:a*", "site:*", "*b", "blog:1:[ab]", "blog:1:?"]


def namespace_of(name: str) -> str:
    return NAMESPACE if name.startswith("site:") else OTHER


class JournalMachine(RuleBasedStateMachine):
    """Redis as it would be: which keys are stale in it, and what its counters have missed.

    A batch is executed the moment it is taken: the worst case for what is added before it is settled.
    """

    batches: Bundle[tuple[Batch, set[str], int]] = Bundle("batches")
    max_keys, max_patterns = 10**6, 100
    parent = ""

    @initialize()
    def begin(self) -> None:
        self.directory = StateDir.open(os.path.join(self.parent, "state"))
        self.file = self.directory.journal(SERVER, DATABASE)
        self.journal = Journal(self.max_keys, 10**6, self.file, max_patterns=self.max_patterns)
        self.now = 0
        self.stale: dict[str, int] = {}
        """Key -> when Redis missed it last; ``ours`` has those that are not another process' alone."""
        self.ours: dict[str, int] = {}
        self.owed: dict[str, int] = {}
        self.counted_since: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.file.remove()
            self.directory.close()

    def missed(self, *missed: str, ours: bool = True) -> None:
        self.now += 1
        for name in missed:
            self.stale[name] = self.now
            if ours:
                self.ours[name] = self.now
            self.owed.pop(name, None)

    @rule(added=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    def add(self, added: list[str]) -> None:
        for name in added:
            self.journal.add([name], namespace_of(name))
            self.missed(name)

    @rule(pattern=st.sampled_from(PATTERNS))
    def add_pattern(self, pattern: str) -> None:
        self.journal.add_pattern(pattern)
        self.missed(*filter(glob_to_regex(pattern).match, KEYS))

    @rule(left=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    def absorb(self, left: list[str]) -> None:
        namespaces = [Entry(Kind.NAMESPACE, namespace_of(name)) for name in left]
        self.journal.absorb(namespaces + [Entry(Kind.KEY, name) for name in left])
        self.missed(*left, ours=False)

    @rule(pattern=st.sampled_from(PATTERNS))
    def absorb_pattern(self, pattern: str) -> None:
        self.journal.absorb([Entry(Kind.PATTERN, pattern)])
        self.missed(*filter(glob_to_regex(pattern).match, KEYS), ours=False)

    @rule(name=st.sampled_from(KEYS), delta=st.integers(-3, 3))
    def add_delta(self, name: str, delta: int) -> None:
        self.journal.add_delta(name, delta, namespace_of(name))
        if name not in self.stale:
            self.now += 1
            if name not in self.owed:
                self.counted_since[name] = self.now
            self.owed[name] = self.owed.get(name, 0) + delta

    @rule(target=batches)
    def take(self) -> Any:
        batch = self.journal.take()
        self.now += 1
        regexes = [glob_to_regex(text) for text in batch.patterns]
        reached = {name for name in KEYS if any(regex.match(name) for regex in regexes)} | {*batch.names}
        assert reached >= self.stale.keys()
        self.check_sums(batch)
        return batch, reached, self.now

    def check_sums(self, batch: Batch) -> None:
        assert batch.deltas == self.owed

    @rule(taken=consumes(batches))
    def done(self, taken: Any) -> None:
        batch, reached, at = taken
        self.journal.done(batch)
        for known in (self.stale, self.ours):
            for name in [name for name in known if name in reached and known[name] < at]:
                del known[name]
        for name, sent in batch.deltas.items():
            if name in self.owed and self.counted_since[name] < at:
                self.owed[name] -= sent
                if not self.owed[name]:
                    del self.owed[name]

    @rule(taken=consumes(batches))
    def fail(self, taken: Any) -> None:
        """The drain met a fault: nobody settles this batch."""

    @invariant()
    @precondition(lambda self: hasattr(self, "journal"))
    def what_redis_missed_is_covered(self) -> None:
        assert {name for name in KEYS if self.journal.covers(name)} == self.stale.keys() | self.owed.keys()

    @invariant()
    @precondition(lambda self: hasattr(self, "journal"))
    def whoever_reads_the_file_knows_of_all_that_is_ours(self) -> None:
        reader = Journal(10**6, 10**6)
        if self.file.path is not None:
            reader.absorb(decode(self.file.path.read_bytes()))
        assert all(map(reader.covers, self.ours))

    @invariant()
    @precondition(lambda self: hasattr(self, "journal"))
    def empty_is_empty(self) -> None:
        assert self.journal.empty == (self.journal.pending == 0)
        if self.journal.empty:
            assert self.file.path is None


class CrowdedMachine(JournalMachine):
    """With room for five names and three patterns it covers more than it must, but no less."""

    max_keys, max_patterns = 5, 3

    def check_sums(self, batch: Batch) -> None:
        """They give way with the names."""

    @invariant()
    @precondition(lambda self: hasattr(self, "journal"))
    def what_redis_missed_is_covered(self) -> None:
        assert all(map(self.journal.covers, self.stale))

    @invariant()
    @precondition(lambda self: hasattr(self, "journal"))
    def it_is_bounded(self) -> None:
        assert self.journal.pending <= self.max_keys + len(PATTERNS) + len(SITES)


def run_machine(machine: type[JournalMachine], directory: Path, *, examples: int) -> None:
    case = machine.TestCase("runTest")
    case.settings = settings(max_examples=examples, stateful_step_count=30, deadline=None)
    machine.parent = str(directory)
    case.runTest()


@pytest.mark.parametrize("machine", [JournalMachine, CrowdedMachine])
def test_nothing_that_redis_missed_is_lost_whatever_happens(machine, tmp_path):
    run_machine(machine, tmp_path, examples=50)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", [JournalMachine, CrowdedMachine])
def test_nothing_is_lost_in_tens_of_thousands_of_steps(machine, tmp_path):
    run_machine(machine, tmp_path, examples=2000)
