"""``StateDir``: real directories, real processes; what the disk refuses is never an exception."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.resilience import statedir
from redis_infra.resilience.journal import Kind, decode, encode
from redis_infra.resilience.statedir import Entry, ForeignJournal, JournalFile, Process, StateDir

SERVER = "redis://cache.example:6379"
DATABASE = "redis://cache.example:6379/0"
NAMESPACE = "site:[0-9]*"

forking = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the directory will be; nothing is there yet."""
    return tmp_path / "state"


@pytest.fixture
def directory(path: Path) -> Iterator[StateDir]:
    opened = StateDir.open(str(path))
    yield opened
    opened.close()


@pytest.fixture
def journal(directory: StateDir) -> JournalFile:
    return directory.journal(SERVER, DATABASE)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    return lambda: [record for record in caplog.records if "state_dir_unusable" in record.message]


def write(file: JournalFile, *names: str, namespace: str = NAMESPACE) -> bool:
    return file.append(Kind.KEY, names, namespace)


def keys(journal: ForeignJournal, since: int = 0) -> list[str]:
    return [entry.text for entry in journal.entries(since)[0] if entry.kind is Kind.KEY]


def in_child(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked child, which then ends."""
    ours, theirs = forking.Pipe()
    child = forking.Process(target=lambda: theirs.send(work()))
    child.start()
    child.join()
    assert child.exitcode == 0
    return ours.recv()


class Neighbour:
    """Another process of the site; it does what it is told, one thing at a time."""

    def __init__(self, path: Path) -> None:
        self._pipe, theirs = forking.Pipe()
        self.process = forking.Process(target=self._live, args=(path, theirs), daemon=True)
        self.process.start()

    @staticmethod
    def _live(path: Path, pipe: Any) -> None:
        directory = StateDir.open(str(path))
        while True:
            name, *args = pipe.recv()
            if name == "write":
                pipe.send(write(directory.journal(SERVER, DATABASE), *args))
            else:
                pipe.send(getattr(directory, name)(*args))

    def tell(self, name: str, *args: Any) -> Any:
        self._pipe.send((name, *args))
        return self._pipe.recv()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def neighbour(path: Path) -> Iterator[Neighbour]:
    started = Neighbour(path)
    yield started
    started.kill()


# Lines


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(Kind))
def test_any_text_survives_the_disk(text, kind):
    """Control characters, line breaks and lone surrogates too."""
    assert decode(encode(kind, text)) == [Entry(kind, text)]


@given(st.text(st.characters(exclude_categories=())))
def test_a_line_is_printable_ascii(text):
    line = encode(Kind.KEY, text)
    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()


def test_a_surrogate_pair_stays_a_pair():
    """JSON would make one character of it."""
    assert decode(encode(Kind.KEY, "\ud83d\ude00")) == [Entry(Kind.KEY, "\ud83d\ude00")]


@pytest.mark.parametrize(
    "line",
    [b"", b"# comment", b"Xkey", b"Ka\\q", b"Ka\\", b"K\\x1", b"K\\U00110000", b"Ka\tb", b"K\xff", b"\0K"],
)
def test_damaged_lines_are_left_out(line):
    assert [entry.text for entry in decode(b"Kbefore\n" + line + b"\nKafter\n")] == ["before", "after"]


@given(st.binary())
def test_no_bytes_break_the_reader(data):
    assert all(isinstance(entry, Entry) for entry in decode(data))


# Making it


def test_nothing_is_made_before_something_is_written(directory, path):
    directory.journal(SERVER, DATABASE)
    directory.foreign_journals(DATABASE)
    directory.statuses()
    directory.clear_status("web")
    directory.changed(0.0)
    assert not path.exists()
    assert directory.usable


def test_it_is_made_for_its_owner_alone(directory, journal, path):
    umask = os.umask(0)
    try:
        write(journal, "site:1:a")
        directory.write_status("web", {})
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_auto_is_this_users_directory_under_the_temporary_one(monkeypatch, tmp_path):
    monkeypatch.setattr(statedir.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert StateDir.open("auto").path == tmp_path / f"redis_infra-{os.geteuid()}"


def test_auto_is_the_systems_directory_where_nothing_else_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(statedir.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.delenv("TEMP", raising=False)
    monkeypatch.delenv("TMP", raising=False)
    assert StateDir.open("auto").path == Path("/tmp") / f"redis_infra-{os.geteuid()}"


def test_a_relative_path_does_not_move_with_the_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    directory = StateDir.open("state")
    monkeypatch.chdir("/")
    assert directory.path == tmp_path / "state"


def test_missing_parents_are_made(tmp_path):
    directory = StateDir.open(str(tmp_path / "var" / "state"))
    assert write(directory.journal(SERVER, DATABASE), "a")
    directory.close()


@pytest.mark.parametrize("setting", [None, ""])
def test_off_is_memory_only_and_nothing_to_warn_of(setting, warnings):
    directory = StateDir.open(setting)
    assert not directory.usable
    assert "off" in directory.problem
    assert directory.path is None
    assert not write(directory.journal(SERVER, DATABASE), "a")
    directory.write_status("web", {})
    directory.clear_status("web")
    assert directory.foreign_journals(DATABASE) == directory.statuses() == []
    assert not directory.changed(0.0)
    assert warnings() == []


def test_a_path_that_cannot_be_one_is_refused_and_said(warnings):
    directory = StateDir.open("/tmp/a\0b")
    assert "null character" in directory.problem
    assert not write(directory.journal(SERVER, DATABASE), "a")
    assert len(warnings()) == 1


# Not to be trusted


def make_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.mkdir(mode=0o700)
    path.symlink_to(target)


def make_strangers(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to somebody else")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)


UNTRUSTED = {
    "symlink": (make_link, "symbolic link"),
    "dangling": (lambda path: path.symlink_to(path.with_name("nowhere")), "symbolic link"),
    "file": (lambda path: path.write_text(""), "not a directory"),
    "readable": (lambda path: (path.mkdir(), path.chmod(0o750)), "chmod 700"),
    "searchable": (lambda path: (path.mkdir(), path.chmod(0o701)), "chmod 700"),
    "owner": (make_strangers, "belongs to user 65534"),
}


@pytest.mark.parametrize(("make", "remedy"), UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_what_cannot_be_trusted_is_not_used_and_said_once(make, remedy, path, warnings):
    make(path)
    before = path.lstat().st_mtime_ns
    for directory in (StateDir.open(str(path)), StateDir.open(str(path))):
        assert not write(directory.journal(SERVER, DATABASE), "secret")
        directory.write_status("web", {"secret": 1})
        assert directory.foreign_journals(DATABASE) == directory.statuses() == []
        assert not directory.usable
        assert remedy in directory.problem
    assert path.lstat().st_mtime_ns == before
    assert [record.__dict__["redis_infra.path"] for record in warnings()] == [str(path)]
    assert remedy in warnings()[0].__dict__["redis_infra.problem"]
    assert warnings()[0].levelno == logging.WARNING


def test_journals_in_a_directory_of_others_are_not_read(path, neighbour, directory):
    """Whoever could plant one there could have every key deleted."""
    neighbour.tell("write", "site:1:a")
    (found,) = directory.foreign_journals(DATABASE)
    path.chmod(0o777)
    assert directory.foreign_journals(DATABASE) == []
    assert found.entries() == ([], 0)


def test_a_directory_that_was_put_right_is_used_again(path, directory, journal):
    path.mkdir(mode=0o755)
    assert not write(journal, "a")
    path.chmod(0o700)
    assert write(journal, "a")
    assert directory.usable


def test_a_symlink_in_a_files_place_is_not_followed(directory, path, tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    path.mkdir(mode=0o700)
    (path / f"status-{statedir.digest('web')}-{os.getpid()}-{Process.this().start}.json").symlink_to(target)
    directory.write_status("web", {"state": "open"})
    assert target.read_text() == "precious"


# What the disk refuses


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """A disk that is full: what goes past ``size`` bytes of a file is refused, to root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Modes do not stop root."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_full_disk_leaves_whole_lines_and_one_warning(path, directory, journal, warnings):
    assert write(journal, "first")
    with no_file_longer_than(journal.size + 20):
        assert not write(journal, "much too long to go into what is left of the disk")
        assert not write(journal, "x" * 100)
        directory.write_status("web", {"text": "x" * 1000})
    assert os.strerror(errno.EFBIG) in directory.problem
    assert len(warnings()) == 1
    assert journal.path.read_bytes().endswith(b"\nKfirst\n")
    assert list(path.iterdir()) == [journal.path]


def test_a_disk_that_has_room_again_is_used_again(directory, journal):
    with no_file_longer_than(10):
        assert not write(journal, "a")
        assert not directory.usable
    assert write(journal, "a")
    assert directory.usable


def test_a_file_that_could_not_be_begun_leaves_nothing(path, journal):
    with no_file_longer_than(10):
        assert not write(journal, "a")
    assert list(path.iterdir()) == []


def test_a_directory_that_may_not_be_written_is_memory_only():
    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent, "state")
        path.mkdir(mode=0o500)
        if os.geteuid() == 0:
            os.chmod(parent, 0o755)
            os.chown(path, 65534, 65534)
        with as_an_ordinary_user():
            directory = StateDir.open(str(path))
            assert not write(directory.journal(SERVER, DATABASE), "a")
            directory.write_status("web", {})
        path.chmod(0o700)
    assert os.strerror(errno.EACCES) in directory.problem


@pytest.mark.parametrize("parent", ["/dev/null", "/proc/nothing"])
def test_a_directory_that_cannot_be_made_is_memory_only(parent):
    directory = StateDir.open(f"{parent}/state")
    assert not write(directory.journal(SERVER, DATABASE), "a")
    directory.write_status("web", {})
    assert directory.problem.startswith(parent)


def test_a_directory_that_is_deleted_under_us_is_memory_only_until_it_is_made_anew(path, journal, directory):
    assert write(journal, "a")
    shutil.rmtree(path)
    assert not write(journal, "b")
    assert not directory.usable
    assert journal.rewrite([NAMESPACE], [], ["a", "b"])
    assert directory.usable
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_file_that_is_deleted_under_us_is_noticed_at_the_next_write(journal):
    write(journal, "a")
    journal.path.unlink()
    assert not write(journal, "b")


def test_nothing_is_written_into_what_got_the_number_of_our_file(journal, tmp_path):
    write(journal, "a")
    number = journal._log._descriptor
    os.close(number)
    assert not write(journal, "b")
    with (tmp_path / "precious").open("w+") as precious:
        os.dup2(precious.fileno(), number)
        assert not write(journal, "c")
        journal.remove()
        os.write(number, b"untouched")
        os.close(number)
    assert (tmp_path / "precious").read_text() == "untouched"


def test_a_file_that_cannot_be_removed_is_emptied(path, journal, directory):
    write(journal, "a")
    file = journal.path
    path.chmod(0o755)
    journal.remove()
    assert file.stat().st_size == 0
    assert "chmod 700" in directory.problem


def test_removing_what_somebody_else_removed_is_fine(path, journal, directory):
    write(journal, "a")
    shutil.rmtree(path)
    journal.remove()
    assert directory.usable


# Journals


def test_what_a_living_process_wrote_is_read_by_others(directory, neighbour):
    neighbour.tell("write", "site:1:a", "site:1:b")
    (found,) = directory.foreign_journals(DATABASE)
    assert (found.pid, found.alive) == (neighbour.pid, True)
    assert found.entries()[0] == [
        Entry(Kind.NAMESPACE, NAMESPACE),
        Entry(Kind.KEY, "site:1:a"),
        Entry(Kind.KEY, "site:1:b"),
    ]


def test_what_was_read_is_not_read_again(directory, neighbour):
    neighbour.tell("write", "site:1:a")
    (found,) = directory.foreign_journals(DATABASE)
    _, offset = found.entries()
    assert found.entries(offset) == ([], offset)
    neighbour.tell("write", "site:1:b")
    assert keys(found, offset) == ["site:1:b"]


def test_a_killed_process_leaves_its_journal(directory, neighbour):
    neighbour.tell("write", "site:1:a")
    neighbour.kill()
    (found,) = directory.foreign_journals(DATABASE)
    assert not found.alive
    assert found.path.name in repr(found)
    assert keys(found) == ["site:1:a"]


def test_our_own_journal_is_not_foreign(directory, journal):
    write(journal, "a")
    assert directory.foreign_journals(DATABASE) == []
    assert StateDir.open(str(directory.path)).foreign_journals(DATABASE) == []


def test_another_databases_journal_is_not_ours_to_drain(directory, neighbour):
    neighbour.tell("write", "a")
    assert directory.foreign_journals(DATABASE + "1") == []


def test_a_journal_has_keys_and_says_for_humans_which_server(path, journal):
    write(journal, "site:1:a")
    assert journal.path.read_text() == f"# {SERVER}\nN{NAMESPACE}\nKsite:1:a\n"
    assert journal.path.parent == path
    assert "example" not in journal.path.name


def test_a_torn_last_line_is_ignored_until_it_is_whole(directory, neighbour):
    neighbour.tell("write", "site:1:a")
    (found,) = directory.foreign_journals(DATABASE)
    with found.path.open("ab") as file:
        file.write(b"Ksite:1:")
        file.flush()
        entries, offset = found.entries()
        assert [entry.text for entry in entries] == [NAMESPACE, "site:1:a"]
        file.write(b"b\n")
    assert keys(found, offset) == ["site:1:b"]


def test_the_torn_journal_of_a_dead_process_can_be_removed(directory, neighbour):
    neighbour.tell("write", "site:1:a")
    neighbour.kill()
    (found,) = directory.foreign_journals(DATABASE)
    with found.path.open("ab") as file:
        file.write(b"Kto")
    assert keys(found) == ["site:1:a"]
    assert found.remove()
    assert not found.path.exists()


def test_a_living_process_keeps_its_journal(directory, neighbour):
    neighbour.tell("write", "a")
    (found,) = directory.foreign_journals(DATABASE)
    found.entries()
    assert not found.remove()
    assert found.path.exists()


def test_what_was_written_after_the_last_look_is_not_thrown_away(directory, neighbour):
    """Read while it lived; then it wrote once more and died."""
    neighbour.tell("write", "a")
    (found,) = directory.foreign_journals(DATABASE)
    found.entries()
    neighbour.tell("write", "b")
    neighbour.kill()
    assert not found.remove()
    assert keys(found) == ["a", "b"]
    assert found.remove()


def test_what_nobody_read_is_not_removed(directory, neighbour):
    neighbour.tell("write", "a")
    neighbour.kill()
    (found,) = directory.foreign_journals(DATABASE)
    assert not found.remove()


def test_a_journal_in_a_directory_that_others_can_write_is_not_removed(path, directory, neighbour):
    neighbour.tell("write", "a")
    neighbour.kill()
    (found,) = directory.foreign_journals(DATABASE)
    found.entries()
    path.chmod(0o777)
    assert not found.remove()
    assert found.path.exists()


def test_two_may_remove_one_journal(directory, neighbour):
    neighbour.tell("write", "a")
    neighbour.kill()
    (first,), (second,) = directory.foreign_journals(DATABASE), directory.foreign_journals(DATABASE)
    first.entries()
    second.entries()
    assert first.remove()
    assert second.remove()
    assert second.entries() == ([], 0)


def test_an_empty_file_of_a_dead_process_goes_by_itself(directory, neighbour):
    neighbour.tell("write", "a")
    (found,) = directory.foreign_journals(DATABASE)
    os.truncate(found.path, 0)
    assert directory.foreign_journals(DATABASE) == []
    assert found.path.exists()
    neighbour.kill()
    assert directory.foreign_journals(DATABASE) == []
    assert not found.path.exists()


def test_files_of_other_kinds_are_left_alone(directory, path):
    path.mkdir(mode=0o700)
    (path / "journal-notes.txt").write_text("mine")
    (path / "journal-xyz-1-2-3.log").write_text("mine")
    assert directory.foreign_journals(DATABASE) == directory.statuses() == []
    assert len(list(path.iterdir())) == 2


def test_the_file_is_gone_when_it_is_drained(path, journal):
    write(journal, "a")
    journal.remove()
    assert list(path.iterdir()) == []
    assert journal.path is None
    assert (journal.size, journal.lines) == (0, 0)


def test_a_new_file_is_never_taken_for_the_old_one(journal):
    """Readers remember how far they came by path."""
    write(journal, "a")
    first = journal.path
    journal.remove()
    write(journal, "b")
    assert journal.path != first


def test_a_rewritten_file_has_what_it_is_given_and_the_old_one_is_gone(path, journal):
    write(journal, "a", "b", "c")
    assert journal.rewrite([NAMESPACE], ["site:*"], ["c"])
    assert list(path.iterdir()) == [journal.path]
    assert decode(journal.path.read_bytes()) == [
        Entry(Kind.NAMESPACE, NAMESPACE),
        Entry(Kind.PATTERN, "site:*"),
        Entry(Kind.KEY, "c"),
    ]
    assert journal.lines == 3
    write(journal, "d")
    assert journal.path.read_bytes().endswith(b"\nKc\nKd\n")


def test_a_file_rewritten_with_nothing_is_gone(path, journal):
    write(journal, "a")
    assert journal.rewrite([NAMESPACE], [], [])
    assert list(path.iterdir()) == []


def test_a_rewrite_that_fails_keeps_the_old_file(path, journal):
    write(journal, "a")
    before = journal.path
    with no_file_longer_than(journal.size):
        assert not journal.rewrite([], [], ["b" * 1000])
    assert list(path.iterdir()) == [journal.path] == [before]
    assert journal.path.read_bytes().endswith(b"\nKa\n")
    assert write(journal, "c")


def test_the_same_database_has_one_file(directory, journal):
    assert directory.journal(SERVER, DATABASE) is journal
    assert directory.journal(SERVER, "another") is not journal


def test_closing_leaves_the_journal_to_others(directory, journal):
    before = os.listdir("/dev/fd")
    write(journal, "a")
    file = journal.path
    directory.close()
    assert file.exists()
    assert os.listdir("/dev/fd") == before
    assert write(journal, "b")


# Processes


def start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_this_process_lives():
    assert Process.this().alive
    assert Process.this().pid == os.getpid()


def test_a_reused_pid_is_not_the_process_that_had_it(neighbour):
    assert not Process(neighbour.pid, "1").alive
    assert not Process(os.getpid(), "1").alive


def test_a_process_that_ended_is_dead():
    assert not in_child(Process.this).alive


def test_a_zombie_is_dead(neighbour):
    """A killed worker whose master has not looked after it yet writes nothing any more."""
    process = Process(neighbour.pid, start_of(neighbour.pid))
    assert process.alive
    os.kill(neighbour.pid, signal.SIGKILL)
    os.waitid(os.P_PID, neighbour.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive


def test_a_programs_name_does_not_confuse_us(tmp_path):
    """The kernel writes the name in parentheses, which it may hold itself."""
    program = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            stat_file = Path(f"/proc/{process.pid}/stat")
            while b") Z 1 (" not in stat_file.read_bytes():  # the child has not become the program yet
                os.sched_yield()
            assert Process(process.pid, start_of(process.pid)).alive
        finally:
            process.kill()


def test_without_proc_a_process_is_told_by_its_id_alone(monkeypatch, tmp_path, path, neighbour):
    """macOS has no /proc: the living are found, the dead are, and a reused id of ours is not us."""

    def look() -> tuple[list[tuple[bool, list[str]]], bool]:
        statedir.PROC = tmp_path
        statedir._this.cache_clear()
        mine = StateDir.open(str(path))
        write(mine.journal(SERVER, DATABASE), "mine")
        seen = [(found.alive, keys(found)) for found in mine.foreign_journals(DATABASE)]
        return seen, Process(os.getpid(), "t1").alive

    neighbour.tell("write", "site:1:a")
    assert in_child(look) == ([(True, ["site:1:a"])], False)
    neighbour.kill()
    seen, reused_is_alive = in_child(look)
    assert sorted(seen) == [(False, ["mine"]), (False, ["site:1:a"])]
    assert not reused_is_alive


def test_a_process_of_another_user_is_taken_for_living(monkeypatch, tmp_path):
    """Better drained twice than removed while it is written."""
    monkeypatch.setattr(statedir, "PROC", tmp_path)
    with as_an_ordinary_user():
        assert Process(1, "t1").alive


# Forks


def test_a_child_begins_a_file_of_its_own(directory, journal, path):
    write(journal, "parent")
    parents = journal.path.read_bytes()

    def in_the_child() -> tuple[bool, bytes]:
        directory.after_fork()
        written = write(journal, "child")
        return written, journal.path.read_bytes()

    written, childs = in_child(in_the_child)
    assert written
    assert childs.endswith(b"\nKchild\n")
    assert b"parent" not in childs
    assert journal.path.read_bytes() == parents
    assert write(journal, "parent again")


def test_a_child_that_nobody_told_writes_into_its_own_file_too(journal):
    """uWSGI forks without Python's hooks, unless it is asked to call them."""
    write(journal, "parent")
    parents = journal.path
    assert in_child(lambda: (write(journal, "child"), journal.path != parents)) == (True, True)
    assert b"child" not in parents.read_bytes()


@pytest.mark.parametrize("told", [True, False])
def test_a_child_does_not_remove_its_parents_file(directory, journal, told):
    write(journal, "parent")

    def in_the_child() -> None:
        if told:
            directory.after_fork()
        journal.remove()
        journal.rewrite([], [], ["x"])
        journal.remove()

    in_child(in_the_child)
    assert journal.path.exists()


def test_a_child_does_not_keep_its_parents_file_open(directory, journal):
    write(journal, "parent")
    file = journal.path

    def is_open() -> bool:
        descriptors = [os.path.join("/dev/fd", each) for each in os.listdir("/dev/fd")]
        return any(os.path.samefile(each, file) for each in descriptors if os.path.exists(each))

    def in_the_child() -> tuple[bool, bool]:
        before = is_open()
        directory.after_fork()
        return before, is_open()

    assert in_child(in_the_child) == (True, False)
    assert is_open()


def test_a_child_closes_nothing_that_got_the_number_of_the_file(directory, journal, tmp_path):
    """A daemon closes everything it inherits before it calls anybody."""
    write(journal, "parent")

    def in_the_child() -> bytes:
        os.close(journal._log._descriptor)
        reused = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        directory.after_fork()
        os.write(reused, b"still open")
        return (tmp_path / "other").read_bytes()

    assert in_child(in_the_child) == b"still open"


def test_a_forked_child_is_another_process_to_its_parent(directory, journal, path):
    write(journal, "parent")

    def in_the_child() -> list[str]:
        directory.after_fork()
        write(journal, "child")
        return [key for found in directory.foreign_journals(DATABASE) for key in keys(found)]

    assert in_child(in_the_child) == ["parent"]
    assert [keys(found) for found in directory.foreign_journals(DATABASE)] == [["child"]]


# Whether it is worth a look


@pytest.fixture
def lstats(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lstat calls that are made."""
    calls: list[Any] = []
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    return calls


def settle(path: Path) -> None:
    """Let the directory's last change be a while ago."""
    os.utime(path, (time.time() - 60, time.time() - 60))


def test_the_first_look_finds_a_directory_that_is_there(directory, path):
    path.mkdir(mode=0o700)
    assert directory.changed(0.0)


def test_a_missing_directory_costs_one_call_a_second(directory, lstats):
    looks = [directory.changed(100.0 + step / 10) for step in range(30)]
    assert not any(looks)
    assert len(lstats) == 3


def test_within_a_second_nothing_is_looked_at(directory, path, lstats):
    path.mkdir(mode=0o700)
    directory.changed(100.0)
    lstats.clear()
    assert not any(directory.changed(100.0 + step / 100) for step in range(100))
    assert lstats == []


def test_what_has_not_changed_is_not_worth_a_look(directory, path):
    path.mkdir(mode=0o700)
    settle(path)
    assert [directory.changed(now) for now in (0.0, 1.0, 2.0)] == [True, False, False]


def test_a_new_journal_is_worth_a_look(directory, path, neighbour):
    path.mkdir(mode=0o700)
    settle(path)
    directory.changed(0.0)
    neighbour.tell("write", "a")
    assert directory.changed(1.0)


def test_a_change_in_the_same_tick_as_the_look_is_not_missed(directory, path):
    """File systems stamp in steps of up to two seconds."""
    path.mkdir(mode=0o700)
    assert directory.changed(0.0)
    assert directory.changed(1.0)
    settle(path)
    assert [directory.changed(2.0), directory.changed(3.0)] == [True, False]


def test_while_journals_of_others_are_there_each_second_is_worth_a_look(directory, path, neighbour):
    """Appending to a file does not touch the directory."""
    neighbour.tell("write", "a")
    directory.foreign_journals(DATABASE)
    settle(path)
    assert [directory.changed(now, DATABASE) for now in (0.0, 1.0, 2.0)] == [True, True, True]
    assert [directory.changed(now, "other") for now in (0.0, 1.0, 2.0)] == [True, False, False]
    assert [directory.changed(now) for now in (0.0, 1.0, 2.0)] == [True, True, True]


def test_when_they_are_gone_it_is_quiet_again(directory, path, neighbour):
    neighbour.tell("write", "a")
    neighbour.kill()
    (found,) = directory.foreign_journals(DATABASE)
    found.entries()
    found.remove()
    directory.foreign_journals(DATABASE)
    settle(path)
    assert [directory.changed(now, DATABASE) for now in (0.0, 1.0)] == [True, False]


def test_one_database_does_not_take_anothers_look(directory, path):
    path.mkdir(mode=0o700)
    assert directory.changed(0.0, "a")
    assert directory.changed(0.0, "b")


def test_a_directory_that_went_away_is_quiet(directory, path, neighbour):
    neighbour.tell("write", "a")
    directory.foreign_journals(DATABASE)
    shutil.rmtree(path)
    assert not directory.changed(0.0, DATABASE)


# Status


def test_a_status_says_whose_it_is_and_how_old(directory, neighbour):
    neighbour.tell("write_status", "web", {"state": "open", "pending": 3})
    (found,) = directory.statuses()
    assert 0 <= found.pop("age") < 60
    assert found == {"name": "web", "pid": neighbour.pid, "alive": True, "state": "open", "pending": 3}


def test_a_later_status_replaces_the_earlier(directory, path):
    directory.write_status("web", {"state": "open"})
    directory.write_status("web", {"state": "recovering"})
    assert [status["state"] for status in directory.statuses()] == ["recovering"]
    assert len(list(path.iterdir())) == 1


def test_each_name_and_process_has_its_own(directory, neighbour):
    directory.write_status("a/b", {})
    directory.write_status("c", {})
    neighbour.tell("write_status", "c", {})
    found = sorted((status["name"], status["pid"]) for status in directory.statuses())
    assert found == sorted([("a/b", os.getpid()), ("c", os.getpid()), ("c", neighbour.pid)])


def test_a_cleared_status_is_gone(directory, path):
    directory.write_status("web", {})
    directory.clear_status("web")
    directory.clear_status("web")
    assert directory.statuses() == []
    assert list(path.iterdir()) == []


def test_the_last_words_of_the_dead_are_kept_for_an_hour(directory, path, neighbour):
    neighbour.tell("write_status", "web", {})
    neighbour.kill()
    (file,) = path.iterdir()
    os.utime(file, (time.time() - 3500, time.time() - 3500))
    (found,) = directory.statuses()
    assert not found["alive"]
    assert 3500 <= found["age"] < 3560
    os.utime(file, (time.time() - 3601, time.time() - 3601))
    assert directory.statuses() == []
    assert list(path.iterdir()) == []


def test_the_living_keep_their_status_however_old(directory, path, neighbour):
    neighbour.tell("write_status", "web", {})
    (file,) = path.iterdir()
    os.utime(file, (0, 0))
    assert [status["alive"] for status in directory.statuses()] == [True]


def test_a_status_from_the_future_has_no_negative_age(directory, path):
    directory.write_status("web", {})
    (file,) = path.iterdir()
    os.utime(file, (time.time() + 1000, time.time() + 1000))
    assert directory.statuses()[0]["age"] == 0.0


def test_a_status_that_cannot_be_read_still_tells_of_its_process(directory, path, neighbour):
    neighbour.tell("write_status", "web", {})
    (file,) = path.iterdir()
    for damaged in (b'{"na', b"[]", b"\xff"):
        file.write_bytes(damaged)
        (found,) = directory.statuses()
        assert found.keys() == {"pid", "alive", "age"}


def test_a_draft_that_a_killed_process_left_goes_with_its_status(directory, path, neighbour):
    neighbour.tell("write_status", "web", {})
    (file,) = path.iterdir()
    draft = file.rename(file.with_name(f"{file.stem}-7.tmp"))
    assert directory.statuses() == []
    neighbour.kill()
    os.utime(draft, (0, 0))
    assert directory.statuses() == []
    assert not draft.exists()


def test_values_that_json_does_not_know_are_shown_as_text(directory, tmp_path):
    directory.write_status("web", {"path": tmp_path, "text": "\ud800\n", ("odd",): 1})
    (found,) = directory.statuses()
    assert found["path"] == str(tmp_path)
    assert found["text"] == "\ud800\n"


def test_a_reader_never_sees_half_a_status(directory, path, neighbour):
    sizes = [10, 100_000]
    neighbour.tell("write_status", "web", {"text": ""})
    for turn in range(50):
        neighbour._pipe.send(("write_status", "web", {"text": "x" * sizes[turn % 2]}))
        (found,) = directory.statuses()
        assert len(found["text"]) in (0, *sizes)
        neighbour._pipe.recv()


# As a library


def test_importing_and_opening_has_no_effect(tmp_path):
    code = (
        "import os, sys; from redis_infra.resilience.statedir import StateDir; StateDir.open('auto');"
        "print(os.listdir(os.environ['TMPDIR']), 'redis' in sys.modules, 'django' in sys.modules)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"[] False False\n"


def test_nothing_is_left_open(directory, neighbour):
    before = os.listdir("/dev/fd")
    neighbour.tell("write", "a")
    for found in directory.foreign_journals(DATABASE):
        found.entries()
        found.remove()
    directory.write_status("web", {})
    directory.statuses()
    directory.clear_status("web")
    assert os.listdir("/dev/fd") == before


def test_a_status_file_is_plain_json(directory, path):
    directory.write_status("web", {"state": "open"})
    (file,) = path.iterdir()
    with contextlib.closing(file.open()) as text:
        assert json.load(text) == {"name": "web", "state": "open"}
