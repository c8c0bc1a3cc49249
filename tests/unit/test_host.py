"""What a host's processes know together: eras, and the least that any of them last knew to remain."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from redis_infra.resilience.statedir import StateDir
from redis_infra.throttling import host as host_module
from redis_infra.throttling.host import CLOSING, ERA, FORGOTTEN, LEASE, NEEDED, RESTARTED, Host
from redis_infra.throttling.host_tables import Note, Spot, Tag, pages_of
from tests.forking import in_child

MINUTE = 60_000
NOTE = Note(policy=0, salt=1, window=MINUTE, limit=20)


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    return StateDir.open(str(tmp_path / "state"))


@pytest.fixture
def host(state_dir: StateDir) -> Host:
    return Host(state_dir, "redis://somewhere:6379/0")


def tag(number: int) -> Tag:
    return Tag(b"", number)


def used(host: Host, number: int) -> int:
    known = host.known(Spot.of(tag(number), NOTE))
    return known.used if known else 0


def note(host: Host, number: int, remaining: int, at: int, restarted: int = 0) -> None:
    host.table.note(pages_of([NOTE]), (tag(number),), [1, at, remaining, 0, 0], restarted)


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


def test_what_was_known_is_forgotten_with_its_window(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    note(host, 7, remaining=3, at=1000)
    later = host_module.monotonic_ms() + MINUTE + 1
    monkeypatch.setattr(host_module, "monotonic_ms", lambda: later)
    assert used(host, 7) == 0


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
    host.unlearn(pages_of([NOTE]), [tag(7)])
    assert used(host, 7) == 0
    note(host, 7, remaining=19, at=2000)
    assert used(host, 7) == 1


def test_files_are_this_users_alone(host: Host) -> None:
    assert host.directory is not None
    assert host.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in host.directory.iterdir()} == {0o600}


def test_sites_that_share_a_database_have_eras_and_tables_of_their_own(state_dir: StateDir) -> None:
    blue, green = (Host(state_dir, "redis://somewhere:6379/0", prefix) for prefix in ("blue", "green"))
    note(blue, 7, remaining=15, at=1000)
    blue.take_over()
    assert (blue.decides, green.decides) == (True, False)
    assert (used(blue, 7), used(green, 7)) == (5, 0)
    since = Host.decides_since(state_dir, "redis://somewhere:6379/0")
    assert since is not None, "one of them does"


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


# --- files that others spoil ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", [NEEDED, LEASE, CLOSING])
@pytest.mark.parametrize("garbage", [2**64 - 1, 2**63, 1])
def test_times_that_nobody_can_have_written_count_for_nothing(host: Host, word: int, garbage: int) -> None:
    """They would keep the host from Redis for years, and are no time that a thread can wait."""
    host.words[word] = garbage
    assert host.left(word) == 0
    host.keep(word, 40)
    assert 0 < host.left(word) <= 40


def test_a_count_goes_on_after_its_end(host: Host) -> None:
    host.words[FORGOTTEN] = 2**64 - 1
    host.has_forgotten()
    assert host.words[FORGOTTEN] == 0


@pytest.mark.parametrize("name", ["shared", "seen-*"])
def test_a_file_that_was_cut_short_is_made_whole(host: Host, name: str) -> None:
    assert host.directory is not None
    (path,) = host.directory.glob(name)
    os.truncate(path, 0)
    host.look()
    note(host, 7, remaining=15, at=1000)
    host.take_over()
    assert (host.decides, used(host, 7)) == (True, 5)


def test_who_begins_anew_takes_along_what_he_knows(state_dir: StateDir, host: Host) -> None:
    note(host, 7, remaining=15, at=1000)
    host.met("aaaa")
    host.met("bbbb")
    restarted = host.words[RESTARTED]
    host.take_over()
    shutil.rmtree(state_dir.where)
    host.look()
    assert host.shares
    assert (host.decides, used(host, 7), host.words[RESTARTED]) == (True, 5, restarted)

    def other_process() -> list[int | bool]:
        other = Host(state_dir, "redis://somewhere:6379/0")
        return [other.decides, used(other, 7)]

    assert in_child(other_process) == [True, 5]


def test_a_directory_that_can_be_used_by_now_is_used(tmp_path: Path) -> None:
    """A process that began on a full disk shares as soon as there is room, and not with its next start."""
    (tmp_path / "state").write_text("in the way")
    host = Host(StateDir.open(str(tmp_path / "state")), "redis://somewhere:6379/0")
    note(host, 7, remaining=15, at=1000)
    host.take_over()
    assert not host.shares
    (tmp_path / "state").unlink()
    host.look()
    assert not host.shares, "it does not try each second"
    host.look(again=True)
    assert (host.shares, host.problem, host.decides, used(host, 7)) == (True, "", True, 5)
