"""The logs of a host: what is let through without Redis is told to it once, whoever fails in between."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from redis.exceptions import NoScriptError, ResponseError

from redis_infra.connection.scripts import Turn
from redis_infra.resilience.statedir import StateDir
from redis_infra.throttling import host_file as host_file_module
from redis_infra.throttling import host_store as host_store_module
from redis_infra.throttling.host import NEEDED, RESTARTED, Host, monotonic_ms
from redis_infra.throttling.host_limits import HostLimits
from redis_infra.throttling.host_store import FEW, HostStore
from redis_infra.throttling.host_tables import ROWS, SEATS
from redis_infra.throttling.plans import MERGE, Entry, Plan
from redis_infra.throttling.policies import make_policy
from redis_infra.throttling.rates import Rate
from redis_infra.throttling.telling import BATCH

PLAN = Plan(make_policy("chat", Rate(5, 900)), "ri")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(StateDir.open(str(tmp_path / "state")), "redis://somewhere:6379/0")


@pytest.fixture(params=[False, True], ids=["file", "memory"])
def store(request: pytest.FixtureRequest, host: Host) -> Iterator[HostStore]:
    store = HostStore(host, 1, in_memory=request.param)
    yield store
    store.file.close()


def entries(identity: str, plan: Plan = PLAN) -> list[Entry]:
    return plan.entries(plan.tags(identity))


def hit(store: HostStore, identity: str, *, needed: bool = True) -> bool | None:
    reply = store.hit(entries(identity), 1, needed=needed)
    return None if reply is None else bool(reply[0])


def no_script() -> Exception:
    error = NoScriptError("No matching script")
    error.status_code = "NOSCRIPT"
    return error


class Server:
    """What Redis would have been told: plays the server's part in a conversation."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.marks: set[str] = set()
        self.fails_after = 10**9
        self.loses_replies = False
        self.damaged = ""
        self.knows_script = True
        self.turns = 0
        self.before_turn: Callable[[], object] = lambda: None

    def hold(self, talk: Any) -> Any:
        """Answer until the conversation is over; return what it came to."""
        try:
            return self.go_on(talk, next(talk))
        except StopIteration as end:
            return end.value

    def go_on(self, talk: Any, turn: Turn) -> Any:
        try:
            while True:
                try:
                    reply = self.reply(turn)
                except Exception as error:
                    turn = talk.throw(error)
                else:
                    turn = talk.send(reply)
        except StopIteration as end:
            return end.value

    def reply(self, turn: Turn) -> Any:
        self.turns += 1
        assert self.turns < 1000, "it never ends"
        self.before_turn()
        if isinstance(turn, tuple):
            commands = commands_in(turn)
            assert len(commands) == turn[1]
            return [self.merge(command) for command in commands]
        return self.merge(turn)

    def merge(self, packed: bytes) -> list[int]:
        words = re.findall(rb"\$\d+\r\n([^\r]*)\r\n", packed)
        if words[0] == b"UNLINK":
            self.damaged = ""
            return []
        self.knows_script = self.knows_script or words[:2] == [b"EVAL", MERGE.source.encode()]
        if not self.knows_script:
            raise no_script()
        assert words[1] in (MERGE.sha.encode(), MERGE.source.encode())
        key, mark, numbers = words[3].decode(), words[4].decode(), [int(word) for word in words[5:]]
        if key == self.damaged:
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        self.fails_after -= 1
        if self.fails_after < 0 and not self.loses_replies:
            raise ConnectionError("lost")
        if mark not in self.marks:
            self.marks.add(mark)
            self.told[key] += sum(numbers[5::2])
        if self.fails_after < 0:
            raise ConnectionError("lost on the way back")
        return [monotonic_ms(), self.told[key]]


def commands_in(turn: Turn) -> list[bytes]:
    assert isinstance(turn, tuple)
    return re.split(rb"(?=\*\d+\r\n\$7\r\nEVALSHA)", turn[0])[1:]


class Thread:
    alive = True

    def wake(self) -> None: ...


def limits_in(directory: Path) -> HostLimits:
    return HostLimits(StateDir.open(str(directory / "state")), "redis://s:1/0", 1, Thread())  # type: ignore[arg-type]


def told(server: Server, store: HostStore, host: Host) -> int:
    """Let Redis decide again, now that nobody needs the host."""
    host.words[NEEDED] = 0
    count: int = server.hold(store.handing_back(last=True))
    return count


@pytest.fixture
def server() -> Server:
    return Server()


def key_of(identity: str) -> str:
    return entries(identity)[0].key


def test_redis_is_told_of_all_that_was_let_through(store: HostStore, host: Host, server: Server) -> None:
    for identity in ("bob", "bob", "eve"):
        assert hit(store, identity)
    assert told(server, store, host) == 2
    assert server.told == {key_of("bob"): 2, key_of("eve"): 1}
    assert not host.decides
    assert store.rows() == []


def test_nobody_but_who_needs_it_decides_here_after_that(
    store: HostStore, host: Host, server: Server
) -> None:
    hit(store, "bob")
    told(server, store, host)
    assert hit(store, "bob", needed=False) is None
    assert hit(store, "bob", needed=True)


@pytest.mark.parametrize("loses_replies", [False, True])
@pytest.mark.parametrize("before", range(4))
def test_a_server_that_goes_away_while_it_is_told_is_told_the_rest_once(
    store: HostStore, host: Host, server: Server, before: int, loses_replies: bool
) -> None:
    """And what was let through between, by those whose log was on its way already, too."""
    for identity in ("ann", "bob", "eve"):
        hit(store, identity)
    server.fails_after, server.loses_replies = before, loses_replies
    if before < 3:
        with pytest.raises(ConnectionError):
            told(server, store, host)
        assert host.decides
        for identity in ("ann", "bob", "eve"):
            hit(store, identity)
    server.fails_after = 10**9
    told(server, store, host)
    each = 2 if before < 3 else 1
    assert server.told == {key_of(identity): each for identity in ("ann", "bob", "eve")}


def test_whoever_is_killed_while_telling_leaves_it_to_the_next(host: Host, server: Server) -> None:
    first = HostStore(host, 1)
    for number in range(FEW + 50):
        hit(first, f"user{number}")
    talk = first.handing_back(last=True)
    for command in commands_in(next(talk))[:20]:
        server.merge(command)  # executed, and its sender dead
    talk.close()
    second = HostStore(host, 1)
    told(server, second, host)
    assert set(server.told.values()) == {1}
    assert len(server.told) == FEW + 50
    first.file.close()
    second.file.close()


def test_requests_go_on_while_most_is_told(host: Host, server: Server) -> None:
    store = HostStore(host, 1)
    for number in range(FEW + 50):
        hit(store, f"user{number}")
    talk = store.handing_back(last=True)
    packed = next(talk)
    assert hit(store, "user3")
    assert hit(store, "late")
    host.words[NEEDED] = 0
    server.go_on(talk, packed)
    assert server.told[key_of("user3")] == 2
    assert server.told[key_of("late")] == 1
    assert not host.decides
    store.file.close()


def test_what_redis_was_told_counts_in_the_next_outage(store: HostStore, host: Host, server: Server) -> None:
    for _ in range(3):
        hit(store, "bob")
    told(server, store, host)
    assert [hit(store, "bob") for _ in range(3)] == [True, True, False]


def test_a_refund_takes_back_what_redis_has_not_been_told(
    store: HostStore, host: Host, server: Server
) -> None:
    reply = store.hit(entries("bob"), 2, needed=True)
    assert reply is not None
    store.refund(entries("bob"), 2, reply[1])
    assert store.rows() == []
    told(server, store, host)
    assert server.told == {}


def test_the_host_goes_on_deciding_while_somebody_needs_it(
    store: HostStore, host: Host, server: Server
) -> None:
    """Redis is away for him; for whoever tells it, it is not."""
    hit(store, "bob")
    assert server.hold(store.handing_back(last=True)) == 1
    assert host.decides
    assert hit(store, "bob", needed=False)


def test_who_does_not_need_the_host_waits_for_the_last_words(host: Host, server: Server) -> None:
    store = HostStore(host, 1)
    hit(store, "bob")
    host.words[NEEDED] = 0
    talk = store.handing_back(last=True)
    packed = next(talk)
    answers: list[bool | None] = []
    waiting = threading.Thread(target=lambda: answers.append(hit(store, "bob", needed=False)))
    waiting.start()
    server.go_on(talk, packed)
    waiting.join()
    assert answers == [None], "Redis decides about him"
    store.file.close()


def test_logs_are_dropped_by_the_beginning_of_their_label(store: HostStore) -> None:
    hit(store, "bob")
    store.hit(entries("bob", Plan(make_policy("chatter", Rate(5, 900)), "ri")), 1, needed=True)
    assert store.forget_where("chat:") == 1
    assert [row.name.label for row in store.rows()] == ["chatter:15min"]
    assert store.forget_where("chat[") == 0


def test_many_are_told_in_few_round_trips(store: HostStore, host: Host, server: Server) -> None:
    for number in range(3 * BATCH + 1):
        hit(store, f"user{number}")
    assert told(server, store, host) == 3 * BATCH + 1
    assert server.turns == 4
    assert set(server.told.values()) == {1}


def test_whoever_decides_meanwhile_has_his_turn_between_batches(host: Host, server: Server) -> None:
    """No transaction is longer than a batch takes, however many have to be told."""
    store = HostStore(host, 1)
    for number in range(4 * BATCH):
        hit(store, f"user{number}")
    host.words[NEEDED] = 0
    talk = store.handing_back(last=True)
    turn, frozen = next(talk), []
    for _ in range(3):
        frozen.append(sum(bool(row.token) for row in store.rows()))
        hit(store, "user7", needed=False)
        turn = talk.send(server.reply(turn))
    server.go_on(talk, turn)
    assert frozen == [BATCH] * 3
    assert server.told[key_of("user7")] == 4
    store.file.close()


def test_a_server_that_has_not_met_the_script_is_sent_it_once(
    store: HostStore, host: Host, server: Server
) -> None:
    server.knows_script = False
    for identity in ("ann", "bob", "eve"):
        hit(store, identity)
    assert told(server, store, host) == 3
    assert server.told == {key_of(identity): 1 for identity in ("ann", "bob", "eve")}
    assert server.turns == 3


def test_a_key_that_is_no_log_is_made_anew_and_costs_the_others_nothing(
    store: HostStore, host: Host, server: Server
) -> None:
    for identity in ("ann", "bob", "eve"):
        hit(store, identity)
    server.damaged = key_of("bob")
    assert told(server, store, host) == 3
    assert server.told == {key_of(identity): 1 for identity in ("ann", "bob", "eve")}


def test_a_refund_of_what_redis_is_told_of_is_for_redis(store: HostStore, host: Host, server: Server) -> None:
    reply = store.hit(entries("bob"), 2, needed=True)
    assert reply is not None
    talk = store.handing_back(last=True)
    turn = next(talk)
    assert store.refund(entries("bob"), 2, reply[1]) is False
    server.go_on(talk, turn)
    assert server.told == {key_of("bob"): 2}


def test_a_refund_of_a_quota_by_the_calendar_is_taken_back_here(store: HostStore) -> None:
    plan = Plan(make_policy("export", Rate(5, 86_400, fixed=True)), "ri")
    reply = store.hit(entries("bob", plan), 2, needed=True)
    assert reply is not None
    assert store.refund(entries("bob", plan), 2, reply[1] + 1)
    assert store.rows() == []


def test_two_limiters_may_know_of_different_numbers_of_hosts(store: HostStore) -> None:
    replies = [store.hit(entries("bob"), 1, needed=True, hosts=5) for _ in range(2)]
    assert [reply and reply[0] for reply in replies] == [1, 0]
    assert hit(store, "bob"), "one host has all five"


def test_who_shares_a_log_is_told_of_all_the_same(host: Host, server: Server) -> None:
    """Or else a flood would give newcomers a fresh budget when Redis is back."""
    store = HostStore(host, 1, in_memory=True, most=50)
    for number in range(60):
        hit(store, f"user{number}")
    assert sum(bool(hit(store, "eve")) for _ in range(9)) == 5
    told(server, store, host)
    assert server.told[key_of("eve")] == 5
    assert sum(server.told.values()) == 65
    store.file.close()


def test_who_shares_logs_takes_no_more_room_than_they_let_through(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_store_module, "GUESTS", 20)
    store = HostStore(host, 1, in_memory=True, most=50)
    allowed = [hit(store, f"user{number}") for number in range(500)]
    assert 0 < sum(map(bool, allowed[50:])) <= 20
    assert len(store.rows()) <= 50 + 20 + 4
    store.file.close()


def test_a_full_disk_gives_a_process_no_fresh_budget(tmp_path: Path, server: Server) -> None:
    """What the host let through is still there to be read."""

    def decide() -> tuple[bool, str]:
        found = limits.hit(entries("bob"), 1, needed=True)
        assert found is not None
        return bool(found[0][0]), found[1]

    limits = limits_in(tmp_path)
    assert [decide() for _ in range(2)] == [(True, "host")] * 2
    (path,) = (tmp_path / "state").glob("limits-*/logs-2.0.sqlite3")
    disk = sqlite3.connect(path, isolation_level=None)
    disk.execute("CREATE TRIGGER full BEFORE INSERT ON logs BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    assert [decide() for _ in range(2)] == [(True, "process")] * 2
    disk.execute("DROP TRIGGER full")
    assert [decide() for _ in range(2)] == [(True, "host"), (False, "host")]
    limits.host.words[NEEDED] = 0
    server.hold(limits.talk())
    assert server.told == {key_of("bob"): 5}
    disk.close()
    limits.close()


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Nothing more can be written to the logs, and all can be read."""
    (path,) = (directory / "state").glob("limits-*/logs-2.*.sqlite3")
    disk = sqlite3.connect(path, isolation_level=None)
    for what in ("INSERT", "UPDATE", "DELETE"):
        say = "BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
        disk.execute(f"CREATE TRIGGER no_{what} BEFORE {what} ON logs {say}")
    yield
    disk.close()


def come_back(server: Server, limits: HostLimits) -> None:
    limits.host.words[NEEDED] = 0
    server.hold(limits.talk())


def test_a_disk_that_is_full_when_redis_returns_keeps_nobody_from_it(tmp_path: Path, server: Server) -> None:
    limits = limits_in(tmp_path)
    for number in range(2 * BATCH):
        limits.hit(entries(f"user{number}"), 1, needed=True)
    with full_disk(tmp_path):
        come_back(server, limits)
        assert not limits.host.decides
        assert set(server.told.values()) == {1}
        assert len(server.told) == 2 * BATCH
        found = limits.hit(entries("user0"), 1, needed=True)
        assert found == ([1, ANY, 3, ANY, 0], "host"), "what Redis said is known, and counts once"
        come_back(server, limits)
        assert server.told[key_of("user0")] == 2
        assert len(list((tmp_path / "state").glob("limits-*/logs-*.sqlite3"))) == 1
    limits.close()


def test_whoever_dies_telling_from_a_full_disk_leaves_it_to_the_next(tmp_path: Path, server: Server) -> None:
    limits = limits_in(tmp_path)
    for number in range(2 * BATCH):
        limits.hit(entries(f"user{number}"), 1, needed=True)
    with full_disk(tmp_path):
        talk = limits.talk()
        for command in commands_in(next(talk))[:20]:
            server.merge(command)  # executed, and its sender dead
        talk.close()
        assert limits.host.decides
        come_back(server, limits)
    assert not limits.host.decides
    assert set(server.told.values()) == {1}
    limits.close()


def fail_to_write(limits: HostLimits) -> None:
    """Do what a request comes to for which there is no more room: all of it is undone."""
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with contextlib.suppress(sqlite3.Error), limits._shared.file.transaction() as database:
        database.execute("INSERT INTO forgotten VALUES ('chat:', 1)")
        raise full


def test_requests_that_cannot_be_written_meanwhile_do_not_keep_redis_away(
    tmp_path: Path, server: Server
) -> None:
    """SQLite counts the changes that a full disk undid as changes too."""
    limits = limits_in(tmp_path)
    for number in range(3 * BATCH):
        limits.hit(entries(f"user{number}"), 1, needed=True)
    limits.host.words[NEEDED] = 0
    with full_disk(tmp_path):
        server.before_turn = lambda: fail_to_write(limits)
        come_back(server, limits)
    assert not limits.host.decides
    assert set(server.told.values()) == {1}
    limits.close()


def test_quotas_of_a_day_are_told_after_each_outage_that_ends_on_a_full_disk(
    tmp_path: Path, server: Server
) -> None:
    """Their logs look the same each time."""
    daily = Plan(make_policy("daily", Rate.parse("10/day fixed")), "ri")
    limits = limits_in(tmp_path)
    for outage in (1, 2, 3):
        limits.hit(entries("bob", daily), 3, needed=True)
        with full_disk(tmp_path):
            come_back(server, limits)
        assert server.told == {entries("bob", daily)[0].key: 3 * outage}
    limits.close()


def test_a_full_disk_does_not_end_an_era_that_somebody_needs(tmp_path: Path, server: Server) -> None:
    limits = limits_in(tmp_path)
    limits.hit(entries("bob"), 1, needed=True)
    with full_disk(tmp_path):
        server.hold(limits.talk())
        assert limits.host.decides
        come_back(server, limits)
        assert server.told == {key_of("bob"): 1}
    limits.close()


def test_who_decided_alone_tells_redis_although_others_have_ended_the_era(
    tmp_path: Path, server: Server
) -> None:
    limits = limits_in(tmp_path)
    limits.hit(entries("bob"), 1, needed=True)
    with full_disk(tmp_path):
        assert limits.hit(entries("bob"), 1, needed=True) == ([1, ANY, 3, ANY, 0], "process")
        limits.host.hand_back()
        limits.host.words[NEEDED] = 0
        assert limits.due() == 0
        server.hold(limits.talk())
    assert server.told == {key_of("bob"): 1}, "of the rest, whoever ended the era told"
    assert limits.due() is None
    limits.close()


def test_a_file_that_was_begun_anew_is_whose_turn_comes_next(tmp_path: Path) -> None:
    """Who waits for his turn, meanwhile, must not write to what nobody reads any more."""
    one, other = limits_in(tmp_path), limits_in(tmp_path)
    one.hit(entries("bob"), 1, needed=True)
    other.hit(entries("bob"), 1, needed=True)
    with one._shared.file.transaction():
        waiting = threading.Thread(target=other.hit, args=(entries("bob"), 1), kwargs={"needed": True})
        waiting.start()
        one._shared.file.begin_another()
        one._shared.file.remove_others()
    waiting.join()
    assert [row.log[0][1] for row in one._shared.rows()] == [1]
    one.close()
    other.close()


# --- several limits of one policy -----------------------------------------------------------------------

API = Plan(make_policy("api", Rate.parse("5/15min;30/h;200/day")), "ri")


def seats_of(host: Host, identity: str) -> int:
    """Return on how many seats of the tables an identity sits."""
    number = API.tags(identity)[0].number ^ API.notes[0].policy
    slots = memoryview(host.table.memory[: ROWS * (SEATS + 1) * 64]).cast("Q")
    return slots[::8].tolist().count(number)


def test_limits_of_one_policy_are_known_together(store: HostStore, host: Host, server: Server) -> None:
    """Or else they take three seats, and there are not enough for all who came in an outage."""
    everybody = [f"user{number}" for number in range(BATCH)]
    for identity in everybody:
        store.hit(entries(identity, API), 2, needed=True)
    told(server, store, host)
    for identity in everybody:
        assert seats_of(host, identity) == 1
        assert [known.used for each in entries(identity, API) if (known := host.known(each.spot))] == [2] * 3


def test_a_limit_that_is_told_alone_keeps_what_is_known_of_the_others(
    store: HostStore, host: Host, server: Server
) -> None:
    host.note_used(API.pages, API.tags("bob"), [1, 2, 3], monotonic_ms(), 0)
    store.hit(entries("bob", API), 1, needed=True)
    store.forget([each.name for each in entries("bob", API)[1:]])
    server.told[entries("bob", API)[0].key] = 1
    told(server, store, host)
    assert [known.used for each in entries("bob", API) if (known := host.known(each.spot))] == [2, 2, 3]
    assert seats_of(host, "bob") == 1


def test_what_one_log_was_told_does_not_make_a_new_server_know_the_others(
    store: HostStore, host: Host, server: Server
) -> None:
    host.note_used(API.pages, API.tags("bob"), [1, 2, 3], monotonic_ms(), 0)
    store.hit(entries("bob", API), 1, needed=True)
    store.forget([each.name for each in entries("bob", API)[1:]])
    host.met("one")
    host.met("another")
    restarted = host.words[RESTARTED]
    assert restarted
    told(server, store, host)
    known = [host.known(each.spot) for each in entries("bob", API)]
    assert [each.used for each in known if each] == [1, 2, 3]
    assert all(each.restarted < restarted for each in known if each), "it is to be reminded of all"


def test_newcomers_share_when_there_is_no_more_room(host: Host) -> None:
    store = HostStore(host, 1, in_memory=True, most=50)
    for number in range(300):
        store.hit(entries(f"user{number}"), 1, needed=True)
    assert [hit(store, "user0") for _ in range(5)] == [True] * 4 + [False], "his own log is as it was"
    assert sum(bool(hit(store, "late")) for _ in range(9)) <= 5
    store.file.close()


def test_a_file_that_cannot_be_read_is_replaced(tmp_path: Path, server: Server) -> None:
    limits = limits_in(tmp_path)
    assert limits.hit(entries("bob"), 1, needed=True) is not None
    limits.close()
    (path,) = (tmp_path / "state").glob("limits-*/logs-2.0.sqlite3")
    path.write_bytes(b"no database")
    found = limits.hit(entries("bob"), 1, needed=True)
    assert found is not None
    assert found[1] == "process"
    limits.host.words[NEEDED] = 0
    server.hold(limits.talk())
    assert not limits.host.decides
    found = limits.hit(entries("eve"), 1, needed=True)
    assert found is not None
    assert found[1] == "host"
    limits.close()


def test_a_directory_that_was_cleaned_away_is_made_anew(tmp_path: Path) -> None:
    """Otherwise the processes that began before and those that came after would each be a host."""
    import shutil

    state_dir = StateDir.open(str(tmp_path / "state"))
    old = Host(state_dir, "redis://somewhere:6379/0")
    shutil.rmtree(tmp_path / "state")
    new = Host(state_dir, "redis://somewhere:6379/0")
    old.look()
    new.take_over()
    assert old.decides


def test_files_of_another_run_of_the_machine_are_removed(tmp_path: Path) -> None:
    """Times in them mean nothing any more."""
    old = tmp_path / "state" / "limits-0123456789abcdef-0123456789abcdef"
    old.mkdir(parents=True)
    (tmp_path / "state").chmod(0o700)
    (old / "shared").write_bytes(b"x")
    Host(StateDir.open(str(tmp_path / "state")), "redis://somewhere:6379/0")
    assert not old.exists()


def test_others_get_their_turn_within_the_time_of_a_request(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_file_module, "PATIENCE", 0.02)
    store = HostStore(host, 1)
    hit(store, "bob")
    assert host.directory is not None
    path = host.directory / "logs-2.0.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(host_file_module.HostBusy):
        hit(store, "bob")
    other.rollback()
    other.close()
    assert hit(store, "bob")
    store.file.close()


def test_what_is_of_today_here_is_of_today_on_the_servers_clock(host: Host, server: Server) -> None:
    """A quota's stamp is midnight: sent as an age it would fall before it where the clocks differ."""
    plan = Plan(make_policy("export", Rate(5, 86_400, fixed=True)), "ri")
    store = HostStore(host, 1)
    store.hit(entries("bob", plan), 2, needed=True)
    host.words[NEEDED] = 0
    talk = store.handing_back(last=True)
    turn = next(talk)
    (command,) = commands_in(turn)
    words = re.findall(rb"\$\d+\r\n([^\r]*)\r\n", command)
    assert words[-2:] == [b"0", b"2"], "age and count"
    server.go_on(talk, turn)
    store.file.close()
