"""The store that is a file: durable, of this user alone, and nobody else's file is touched."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_infra.exceptions import (
    StoreError,
    StoreIndeterminate,
    StoreReadOnly,
    StoreRejected,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv import sqlite_file
from redis_infra.kv.file_store import FileStore
from redis_infra.resilience import forks
from redis_infra.testing import FakeClock
from tests.faults.site import wait_until
from tests.forking import in_child

NOBODY = 65534
SHORT = 0.05
"""Seconds of a patience that is to end."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[FileStore]:
    with FileStore("h:", path) as store:
        yield store


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as other programs see it."""
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Somebody else's turn to write."""
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def writer_of(store: FileStore) -> sqlite3.Connection:
    store.set("opens", 1)
    database = store._file._writer.database
    assert database is not None
    return database


# --- the file -------------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_used(store: FileStore, path: Path) -> None:
    assert (store.where, repr(store)) == (str(path), f"FileStore({str(path)!r})")
    store.set("k", "v")
    assert path.exists()


def test_who_reads_makes_nothing(store: FileStore, path: Path) -> None:
    assert (store.get("k"), store.mget("k", "l"), list(store.scan()), store.ping()) == (
        None,
        [None, None],
        [],
        True,
    )
    assert list(path.parent.iterdir()) == []
    store.set("k", "v")
    assert store.get("k") == "v"


@pytest.mark.parametrize("theirs", ["no bytes", "no tables"])
def test_an_empty_file_is_taken_over_by_who_writes_and_not_by_who_reads(
    store: FileStore, path: Path, theirs: str
) -> None:
    path.touch()
    if theirs == "no tables":
        with raw(path) as database:
            database.execute("PRAGMA user_version = 1")
            database.execute("PRAGMA user_version = 0")
        assert path.stat().st_size
    before = path.read_bytes()
    assert store.get("k") is None
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    store.set("k", "v")
    assert store.get("k") == "v"


def test_it_is_for_this_user_alone(store: FileStore, path: Path) -> None:
    before = os.umask(0)
    try:
        store.set("k", "v")
    finally:
        os.umask(before)
    assert {file.name[len(path.name) :] for file in path.parent.iterdir()} == {"", "-wal", "-shm", "-lock"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_what_was_answered_is_on_the_disk(store: FileStore) -> None:
    """By what SQLite promises for this: the log is synced at each commit."""
    database = writer_of(store)
    pragmas = {
        name: database.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")
    }
    assert pragmas == {"journal_mode": ("wal",), "synchronous": (2,)}


def test_values_are_there_for_another_process_and_after_a_restart(path: Path, fake_clock: FakeClock) -> None:
    with FileStore("h:", path, clock=fake_clock) as store:
        store.set("k", b"\xff\x00")
        store.set("expires", "v", ex=10)
    fake_clock.advance(4)
    with FileStore("h:", path, clock=fake_clock) as store:
        assert (store.get_bytes("k"), store.ttl("expires")) == (b"\xff\x00", 6)
    fake_clock.jump(60)  # other processes and restarts know the wall clock only
    with FileStore("h:", path, clock=fake_clock) as store:
        assert store.get("expires") is None


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FileStore("h:", "kv.sqlite3") as store:
        monkeypatch.chdir("/")
        store.set("k", "v")
    assert (tmp_path / "kv.sqlite3").exists()


def test_what_has_expired_leaves_the_file_as_others_write(path: Path, fake_clock: FakeClock) -> None:
    with FileStore("h:", path, clock=fake_clock) as store:
        store.batch([("set", f"k{number}", 1, {"ex": 1}) for number in range(250)])
        store.set("stays", 1)
        fake_clock.advance(2)
        left = []
        for _ in range(3):
            store.incr("n")
            with raw(path) as database:
                left.append(database.execute("SELECT COUNT(*) FROM rows").fetchone()[0])
    assert left == [152, 52, 2]


def test_a_page_of_a_scan_reads_no_more_than_it_says(store: FileStore, path: Path) -> None:
    store.set("k", "v")
    with raw(path) as database:
        plan = database.execute(
            "EXPLAIN QUERY PLAN SELECT key, deadline FROM rows WHERE key >= ? ORDER BY key", ("h:",)
        ).fetchall()
    assert [step[3].partition(" USING")[0] for step in plan] == ["SEARCH rows"]


def test_a_backup_that_lost_its_log_gets_one(store: FileStore, path: Path, tmp_path: Path) -> None:
    store.set("k", "v")
    backup = tmp_path / "backup"
    with raw(path) as database:
        database.execute("VACUUM INTO ?", (str(backup),))
    with FileStore("h:", backup) as other, raw(backup) as database:
        assert other.get("k") == "v"
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# --- what is wrong with it ------------------------------------------------------------------------------


def test_a_directory_that_is_missing_is_named_with_the_setting(tmp_path: Path) -> None:
    store = FileStore("h:", tmp_path / "missing" / "kv.sqlite3")
    with pytest.raises(
        StoreUnavailable, match=r"directory of .*missing/kv.sqlite3 does not exist.*\['FILE'\]"
    ):
        store.get("k")
    assert not store.ping()
    assert store.health().status == "down"
    (tmp_path / "missing").mkdir()
    with store:
        assert store.set("k", "v")


def test_a_directory_in_its_place_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        FileStore("h:", tmp_path).get("k")


@pytest.mark.parametrize("damage", ["no database", "a page"])
def test_a_damaged_file_is_reported_and_not_touched(store: FileStore, path: Path, damage: str) -> None:
    store.mset({f"k{number}": "x" * 100 for number in range(500)})
    store.close()
    content = path.read_bytes()
    bad = b"text" * 5000 if damage == "no database" else content[:4096] + b"\xff" * (len(content) - 4096)
    path.write_bytes(bad)
    for action in (lambda: store.get("k1"), lambda: store.set("k1", "v"), lambda: store.mget("k2", "k3")):
        with pytest.raises(StoreError, match=r"is damaged .*nothing was changed") as caught:
            action()
        assert type(caught.value) is StoreError
    assert not store.ping()
    store.close()
    assert path.read_bytes() == bad
    path.write_bytes(content)
    assert store.get("k1") == "x" * 100


def test_the_database_of_something_else_is_not_touched(store: FileStore, path: Path) -> None:
    with raw(path) as database:
        database.execute("CREATE TABLE auth_user (id)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"is a database of something else; .*\['FILE'\]"):
        store.set("k", "v")
    assert path.read_bytes() == before


def test_a_file_of_a_later_version_is_not_touched(store: FileStore, path: Path) -> None:
    store.set("k", "v")
    store.close()
    with raw(path) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="later version"):
        store.get("k")


def test_a_file_that_is_removed_meanwhile_is_made_anew_and_that_is_loud(
    store: FileStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.set("k", "v")
    assert store.get("k") == "v"
    for file in list(path.parent.iterdir()):
        file.unlink()
    assert store.get("k") is None
    store.set("k", "w")
    store.close()
    assert store.get("k") == "w"
    assert "redis_infra.kv_file_replaced" in caplog.text


def test_who_waits_for_a_file_that_is_removed_writes_to_the_next(store: FileStore, path: Path) -> None:
    store.set("k", "v")
    with writing(path), open(f"{path}-lock", "rb") as lock:
        thread = threading.Thread(target=store.incr, args=("n",))
        thread.start()

        def waits() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)
            return False

        wait_until(waits, 10.0, every=0.001)
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink()
    thread.join()
    assert store.mget("k", "n") == [None, "1"]


def test_a_directory_that_is_put_in_its_place_has_a_lock_of_its_own(tmp_path: Path) -> None:
    """Or else two processes write and move the log at once: who opened it later has another lock."""
    directory = tmp_path / "data"
    directory.mkdir()
    path = directory / "kv.sqlite3"
    with FileStore("h:", path, patience=SHORT) as store:
        store.set("k", "v")
        directory.rename(tmp_path / "old")
        directory.mkdir()
        store.set("k", "w")
        with open(f"{path}-lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            with pytest.raises(StoreUnavailable, match="other processes"):
                store.set("k", "x")
        assert store.get("k") == "w"


def test_a_file_that_is_put_in_its_place_is_read(store: FileStore, path: Path, tmp_path: Path) -> None:
    with FileStore("h:", tmp_path / "other") as other:
        other.set("k", "other")
    store.set("k", "v")
    (tmp_path / "other").rename(path)
    for name in (f"{path.name}-wal", f"{path.name}-shm"):
        (tmp_path / name).unlink()
    assert store.get("k") == "other"


def as_nobody(action: Callable[[], Any]) -> Any:
    """Do something in a process that has no special rights."""

    def act() -> Any:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return action()

    return in_child(act)


@pytest.fixture
def visible() -> Iterator[Path]:
    """A directory that other users can see."""
    # TMPDIR may be of one user alone.
    with tempfile.TemporaryDirectory(prefix="ri-", dir="/tmp" if os.getuid() == 0 else None) as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def failed_with(action: Callable[[], object]) -> tuple[type, str]:
    try:
        action()
    except StoreError as error:
        return type(error), error.reason
    raise AssertionError("it did not fail")


def test_a_file_that_may_only_be_read_is_read(visible: Path) -> None:
    path = visible / "kv.sqlite3"
    with FileStore("h:", path) as store:
        store.set("k", "v")
    with raw(path) as held:
        held.execute("SELECT * FROM rows").fetchone()
        for file in visible.iterdir():
            file.chmod(0o444)
        reader = FileStore("h:", path)

        def child() -> Any:
            return reader.get("k"), failed_with(lambda: reader.set("k", "w"))

        assert as_nobody(child) == ("v", (StoreReadOnly, "the file may only be read"))
        for file in visible.iterdir():
            file.chmod(0o644)


def test_a_directory_that_may_not_be_written_is_named(visible: Path) -> None:
    visible.chmod(0o555)
    store = FileStore("h:", visible / "kv.sqlite3")
    kind, reason = as_nobody(lambda: failed_with(lambda: store.set("k", "v")))
    assert kind is StoreUnavailable
    assert "cannot be made: Permission denied" in reason
    visible.chmod(0o755)


def test_a_full_disk_refuses_and_changes_nothing(store: FileStore) -> None:
    store.set("k", "v")
    database = writer_of(store)
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="disk is full"):
        store.set("k", "x" * 100_000)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        store.batch([("set", "k", "small"), ("set", "big", "x" * 100_000)])
    assert store.get("k") == "v"
    assert store.set("k", "w")


def test_a_disk_that_fails_at_the_commit_leaves_it_open_whether_it_was_done(store: FileStore) -> None:
    """As a file that may not grow: what is written is written at the commit."""

    def child() -> Any:
        import resource

        store.set("k", "v")
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        return failed_with(lambda: store.set("k", "x" * 100_000)), store.get("k")

    (kind, reason), value = in_child(child)
    assert (kind, value) == (StoreIndeterminate, "v")
    assert "disk failed" in reason


def test_a_value_that_is_too_large_is_refused(store: FileStore) -> None:
    writer_of(store).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    with pytest.raises(StoreRejected, match="larger than the file takes"):
        store.set("k", "x" * 20_000)
    assert store.set("k", "x")


# --- turns ----------------------------------------------------------------------------------------------


def test_who_waits_too_long_for_a_turn_has_done_nothing(path: Path) -> None:
    with FileStore("h:", path, patience=SHORT) as store:
        store.set("k", "v")
        with writing(path):
            incr = store.commands.incr("n")
            for action, name in (
                (lambda: store.incr("n"), "incr"),
                (lambda: store.batch([("set", "k", 1), ("get", "k")]), "pipeline"),
                (lambda: store.execute([incr], atomic=True), "transaction"),
            ):
                with pytest.raises(
                    StoreUnavailable, match=r"not answered within .* other processes"
                ) as caught:
                    action()
                assert caught.value.waited >= SHORT
                assert caught.value.command == name
            assert store.get("k") == "v"
        assert store.incr("n") == 1


def test_nobody_writes_while_another_process_may_move_the_log(path: Path) -> None:
    """What SQLite before 3.51.3 needs: its own locks let these two happen at once."""
    with FileStore("h:", path, patience=SHORT) as store:
        store.set("k", "v")
        with open(f"{path}-lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # which only who wants it for himself waits for
            with pytest.raises(StoreUnavailable, match="other processes"):
                store.incr("n")
            assert store.get("k") == "v"
        assert store.incr("n") == 1


def test_who_waits_gets_his_turn(store: FileStore, path: Path) -> None:
    store.set("k", "v")
    with writing(path):
        thread = threading.Thread(target=store.incr, args=("n",))
        thread.start()
        assert store.get("n") is None
    thread.join()
    assert store.get("n") == "1"


def test_the_time_is_that_of_ones_turn(path: Path, fake_clock: FakeClock) -> None:
    with FileStore("h:", path, patience=20, clock=fake_clock) as store:
        store.set("k", "v", ex=5)
        answers: list[bool] = []
        with writing(path):
            thread = threading.Thread(target=lambda: answers.append(store.set("k", "w", xx=True)))
            thread.start()
            fake_clock.advance(6)
        thread.join()
        assert answers == [False]


def test_reads_wait_for_nobody(path: Path) -> None:
    with FileStore("h:", path, patience=20) as store:
        store.set("k", "v")
        with writing(path):
            threading.Thread(target=store.incr, args=("n",), daemon=True).start()
            began = time.monotonic()
            assert store.mget("k", "n") == ["v", None]
            assert store.ping()
            assert time.monotonic() - began < 10


def test_what_is_read_together_is_of_one_moment(store: FileStore, path: Path) -> None:
    store.mset({"a": 0, "b": 0})
    with FileStore("h:", path) as other:

        def work(database: sqlite3.Connection) -> list[Any]:
            query = "SELECT CAST(value AS TEXT) FROM rows WHERE key = ?"
            first = database.execute(query, ("h:a",)).fetchone()
            other.mset({"a": 1, "b": 1})
            return [first, database.execute(query, ("h:b",)).fetchone()]

        assert store._file.read(work) == [("0",), ("0",)]
    assert store.mget("a", "b") == ["1", "1"]


def test_threads_and_event_loops_count_exactly(store: FileStore) -> None:
    async def count() -> None:
        await asyncio.gather(*[store.aincr("n") for _ in range(25)])
        async with store.transaction() as transaction:
            for _ in range(5):
                transaction.incr("n")

    threads = [threading.Thread(target=asyncio.run, args=(count(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n") == "120"


# --- forks ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_forked_child_has_locks_of_its_own(store: FileStore) -> None:
    """What SQLite would leave out, had the parent the file open at the fork."""
    store.set("k", "v")
    assert store.get("k") == "v"

    def locks() -> int:
        assert store.get("k") == "v"
        return Path("/proc/locks").read_text().count(f" {os.getpid()} ")

    assert in_child(locks) == 2
    assert locks() >= 2
    assert not sqlite_file._inherited


def test_a_fork_waits_for_a_write_to_end(store: FileStore) -> None:
    store.set("n", 0)
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            store.incr("n")

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: store.incr("n")) > 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    before = int(store.get("n") or 0)
    assert in_child(lambda: store.incr("n")) == before + 1


def test_a_child_that_nobody_told_of_the_fork_leaves_the_parents_connection_alone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a server forks without Python's knowing, and tells of it afterwards."""
    store.set("k", "v")
    monkeypatch.setattr(sqlite_file, "_inherited", kept := [])
    database = writer_of(store)
    store.after_fork()
    assert kept == [database]
    assert store.get("k") == "v"
    database.close()


def test_forgotten_stores_are_not_kept_for_forks(path: Path) -> None:
    before = len(forks._files)
    store = FileStore("h:", path)
    assert len(forks._files) == before + 1
    del store
    assert len(forks._files) == before


def test_transactions_are_never_discarded_here(store: FileStore) -> None:
    """One that cannot be written raises what a single command would."""
    database = writer_of(store)
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 2}")
    transaction = store.transaction()
    transaction.incr("n")
    transaction.set("big", "x" * 100_000)
    with pytest.raises(StoreUnavailable) as caught:
        transaction.execute()
    assert not isinstance(caught.value, TransactionDiscarded)
    assert store.get("n") is None


def test_importing_it_opens_nothing() -> None:
    code = "import redis_infra.kv.file_store, sys; assert 'redis' not in sys.modules; print('ok')"
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False
    )
    assert found.stdout == "ok\n", found.stderr
