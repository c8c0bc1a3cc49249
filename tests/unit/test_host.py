"""What a host's processes know together: eras, and the least that any of them last knew to remain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redis_infra.resilience.statedir import StateDir
from redis_infra.throttling import host as host_module
from redis_infra.throttling.host import ERA, RESTARTED, SLOT, SLOTS, Host, Note, Spot, Tag
from tests.forking import in_child

MINUTE = 60_000
NOTE = Note(place=0, check=0, window=MINUTE, limit=20)


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    return StateDir.open(str(tmp_path / "state"))


@pytest.fixture
def host(state_dir: StateDir) -> Host:
    return Host(state_dir, "redis://somewhere:6379/0")


def tag(number: int) -> Tag:
    return Tag(b"", number & 0xFFFFFFFF, number >> 32)


def used(host: Host, number: int) -> int:
    known = host.known(Spot.of(tag(number), NOTE))
    return known.used if known else 0


def note(host: Host, number: int, remaining: int, at: int, restarted: int = 0) -> None:
    host.note([NOTE], [tag(number)], [remaining], at, restarted)


def test_an_era_is_the_hosts(state_dir: StateDir, host: Host) -> None:
    def other_process() -> list[bool]:
        other = Host(state_dir, "redis://somewhere:6379/0")
        before = other.decides
        return [before, other.take_over(), other.take_over()]

    assert in_child(other_process) == [False, True, False]
    assert host.decides
    host.hand_back()
    assert not host.decides


def test_each_era_is_another_one(host: Host) -> None:
    eras = set()
    for _ in range(3):
        host.take_over()
        eras.add(host.words[ERA])
        host.hand_back()
        eras.add(host.words[ERA])
    assert len(eras) == 6


def test_what_one_process_was_told_all_know(state_dir: StateDir, host: Host) -> None:
    def other_process() -> None:
        note(Host(state_dir, "redis://somewhere:6379/0"), 7, remaining=15, at=1000)

    in_child(other_process)
    note(host, 8, remaining=19, at=1000)
    host.take_over()
    assert (used(host, 7), used(host, 8), used(host, 9)) == (5, 1, 0)


def test_what_was_said_last_counts_whoever_was_told_first(host: Host) -> None:
    note(host, 7, remaining=10, at=2000)
    note(host, 7, remaining=12, at=1000)
    assert used(host, 7) == 10
    note(host, 7, remaining=18, at=3000)
    assert used(host, 7) == 2


def test_of_what_was_said_in_one_millisecond_the_least_remains(host: Host) -> None:
    note(host, 7, remaining=10, at=1000)
    note(host, 7, remaining=11, at=1000)
    assert used(host, 7) == 10


def test_what_another_run_of_the_server_said_is_older(host: Host) -> None:
    note(host, 7, remaining=10, at=9000)
    note(host, 7, remaining=19, at=1000, restarted=5)
    assert used(host, 7) == 1


def test_who_shares_a_place_is_believed_to_have_used_the_more(host: Host) -> None:
    """Otherwise a flood of made-up identities would wipe out what somebody has used."""
    other = 7 + SLOTS + (9 << 32)
    note(host, 7, remaining=3, at=1000)
    note(host, other, remaining=19, at=2000)
    assert used(host, 7) == 17
    assert used(host, other) == 17


def test_what_was_known_is_forgotten_with_its_window(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    note(host, 7, remaining=3, at=1000)
    later = host_module.monotonic_ms() + MINUTE + 1
    monkeypatch.setattr(host_module, "monotonic_ms", lambda: later)
    assert used(host, 7) == 0


def test_a_flood_leaves_the_table_as_large_as_it_is(host: Host) -> None:
    for number in range(50_000):
        note(host, number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF, remaining=0, at=1000 + number)
    assert len(host._table) == SLOTS * SLOT
    assert host.directory is not None
    assert sum(path.stat().st_size for path in host.directory.iterdir()) < 1024**2


def test_a_dead_process_leaves_what_it_knew_to_its_heir(state_dir: StateDir) -> None:
    def one_process(number: int) -> int:
        host = Host(state_dir, "redis://somewhere:6379/0")
        note(host, number, remaining=15, at=1000 + number)
        assert host.directory is not None
        return len(list(host.directory.glob("seen-*")))

    assert [in_child(lambda number=number: one_process(number)) for number in range(1, 6)] == [1] * 5  # type: ignore[misc]
    host = Host(state_dir, "redis://somewhere:6379/0")
    assert [used(host, number) for number in range(1, 6)] == [5] * 5


def test_a_forked_child_writes_to_a_table_of_its_own(host: Host) -> None:
    note(host, 7, remaining=15, at=1000)

    def child() -> list[int]:
        host.after_fork()
        note(host, 8, remaining=15, at=1000)
        assert host.directory is not None
        return [used(host, 7), len(list(host.directory.glob("seen-*")))]

    assert in_child(child) == [5, 2]
    host.take_over()
    assert used(host, 8) == 5


def test_another_run_of_the_server_is_noticed_once(host: Host) -> None:
    host.met("aaaa")
    assert host.words[RESTARTED] == 0, "the first one ever"
    host.met("aaaa")
    host.met("")
    assert host.words[RESTARTED] == 0
    host.met("bbbb")
    restarted = host.words[RESTARTED]
    assert restarted > 0
    host.met("bbbb")
    assert host.words[RESTARTED] == restarted


def test_what_is_forgotten_by_hand_is_not_known_any_more(host: Host) -> None:
    note(host, 7, remaining=0, at=1000)
    host.unlearn(Spot.of(tag(7), NOTE))
    assert used(host, 7) == 0
    note(host, 7, remaining=19, at=2000)
    assert used(host, 7) == 1


def test_files_are_this_users_alone(host: Host) -> None:
    assert host.directory is not None
    assert host.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in host.directory.iterdir()} == {0o600}


@pytest.mark.parametrize("setting", ["", "/proc/none/such"])
def test_without_a_directory_a_process_is_its_own_host(setting: str) -> None:
    host = Host(StateDir.open(setting), "redis://somewhere:6379/0")
    assert not host.shares
    assert host.problem
    note(host, 7, remaining=15, at=1000)
    host.take_over()
    assert (host.decides, used(host, 7)) == (True, 5)


def test_a_table_that_was_cut_short_is_not_read(state_dir: StateDir, host: Host) -> None:
    assert host.directory is not None
    (host.directory / f"seen-{os.getppid()}-123").write_bytes(b"half")
    note(host, 7, remaining=15, at=1000)
    host.take_over()
    assert used(host, 7) == 5
