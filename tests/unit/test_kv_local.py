"""Stores that are their own server mean what Redis means, to the letter; and memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_infra.conf import AliasSettings
from redis_infra.exceptions import (
    CounterOverflow,
    StoreError,
    StoreQuotaExceeded,
    StoreRejected,
    StoreTypeError,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv.base import KVStore
from redis_infra.kv.commands import OP_LIFETIME, Command
from redis_infra.kv.file_store import FileStore
from redis_infra.kv.local import PAGE
from redis_infra.kv.memory_store import ROW_BYTES, MemoryStore
from redis_infra.kv.redis_store import RedisStore
from redis_infra.testing import FakeClock
from tests.forking import in_child

LONG = 100_000
"""Seconds that no test takes."""
TICK = 0.001
"""What a key lives longer than its deadline: Redis' last millisecond."""


@pytest.fixture(params=["memory", "file"])
def local(request: pytest.FixtureRequest, fake_clock: FakeClock, tmp_path: Path) -> Iterator[KVStore]:
    """A store of each kind, on a clock of the test's."""
    if request.param == "memory":
        yield MemoryStore("ri:kv:", clock=fake_clock)
    else:
        with FileStore("ri:kv:", tmp_path / "kv.sqlite3", clock=fake_clock) as store:
            yield store


# --- beside a real server -------------------------------------------------------------------------------

KEYS = st.sampled_from(["n", "n", "n", "a", "a", "a", "", "é\0", "{x}y", "\U0010ffff", "a*[b]?"])
INTEGERS = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62)]) | st.integers(-99, 99)
ODD = ["-0", "+1", " 1", "1 ", "01", "-01", "", "1.0", "१", "1\n", "-", "--1", "1_0", "0x1"]
ODD += ["9223372036854775808", "-9223372036854775809", "99999999999999999999", "9" * 400]
VALUES = INTEGERS | st.sampled_from(ODD) | st.text(max_size=8) | st.binary(max_size=8) | st.floats(-9, 9)


def call(name: str, *args: Any, **named: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *args, st.fixed_dictionaries({}, optional=named))


CALLS = st.one_of(
    call("get", KEYS),
    call("get_bytes", KEYS),
    call("set", KEYS, VALUES, nx=st.booleans()),
    call("set", KEYS, VALUES, xx=st.booleans(), px=st.sampled_from([LONG * 1000, 2 * LONG * 1000])),
    call("set", KEYS, VALUES, nx=st.booleans(), keepttl=st.booleans()),
    call("set", KEYS, VALUES, ex=st.sampled_from([LONG, 3 * LONG])),
    call("incr", KEYS),
    call("incr", KEYS, INTEGERS, op_id=st.sampled_from(["one", "two"])),
    call("mget", KEYS, KEYS, KEYS),
    call("mset", st.dictionaries(KEYS, VALUES, min_size=1, max_size=3)),
    call("delete", KEYS, KEYS),
    call("exists", KEYS, KEYS, KEYS),
    call("expire", KEYS, st.sampled_from([LONG, 2 * LONG, 0, -1])),
    call("ttl", KEYS),
    call("pttl", KEYS),
)
STEPS = st.lists(
    CALLS
    | st.tuples(st.sampled_from(["pipeline", "transaction"]), st.lists(CALLS, max_size=6))
    | st.tuples(st.just("scan"), KEYS),
    max_size=25,
)


@dataclass(frozen=True)
class Refused:
    """An error, for comparison; a server's text may go on, with the script's name."""

    kind: type
    key: str
    index: int | None
    reason: str

    @classmethod
    def of(cls, error: StoreError) -> Refused:
        reason = error.reason.partition(" script:")[0]
        return cls(type(error), error.key, getattr(error, "index", None), reason)


def outcome(store: KVStore, step: tuple[Any, ...]) -> Any:
    """Return what a step comes to, as different stores may be compared by it."""
    name, *args = step
    home = store.commands.home
    if name == "scan":
        return sorted(store.scan(*args))
    if name in ("pipeline", "transaction"):
        with getattr(store, name)() as pipeline:
            for each, *arguments, named in args[0]:
                getattr(pipeline, each)(*arguments, **named)
            handles = list(pipeline._handles)
        return [
            coarse(calls[0], handle._answer, home) for calls, handle in zip(args[0], handles, strict=True)
        ]
    *arguments, named = args
    try:
        return coarse(name, getattr(store, name)(*arguments, **named), home)
    except StoreError as error:
        return coarse(name, error, home)


def coarse(name: str, answer: Any, home: str) -> Any:
    if isinstance(answer, StoreError):
        return Refused.of(answer)
    # Of times left only what does not depend on how fast the test is.
    return round(answer / (LONG * (1000 if name == "pttl" else 1)), 1) if "ttl" in name else answer


@pytest.fixture(scope="module")
def stores(
    redis_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[KVStore]]]:
    """Make one store of each kind, which have nothing in common with those of another home."""
    path = tmp_path_factory.mktemp("kv") / "kv.sqlite3"
    alias = AliasSettings.load(redis_server.url, {"OPTIONS": {"COMMAND_TIMEOUT": "20s"}})
    made: list[KVStore] = []

    def make(home: str) -> list[KVStore]:
        made.append(FileStore(home, path))
        return [RedisStore(home, alias), MemoryStore(home), made[-1]]

    yield make
    for store in made:
        store.close()


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_whatever_is_called_a_server_answers_the_same(
    stores: Callable[[str], list[KVStore]], steps: list[tuple[Any, ...]]
) -> None:
    server, *others = stores(f"{os.urandom(8).hex()}:")
    try:
        for step in steps:
            expected = outcome(server, step)
            for other in others:
                assert outcome(other, step) == expected, f"{other!r} at {step!r}"
    finally:
        for other in others:
            other.close()


@pytest.mark.parametrize("value", [*ODD, "0", "-1", str(2**63 - 1), str(-(2**63))])
@pytest.mark.parametrize("by", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_counters_are_what_a_server_counts_with(
    stores: Callable[[str], list[KVStore]], value: str, by: int
) -> None:
    steps = [
        ("pipeline", [("set", "n", value, {}), ("incr", "n", by, {}), ("incr", "n", by, {"op_id": "x"})]),
        ("get", "n", {}),
    ]
    server, *others = stores(f"{os.urandom(8).hex()}:")
    expected = [outcome(server, step) for step in steps]
    for other in others:
        assert [outcome(other, step) for step in steps] == expected


# --- time -----------------------------------------------------------------------------------------------


def test_a_key_is_there_to_its_last_millisecond_and_not_beyond(local: KVStore, fake_clock: FakeClock) -> None:
    local.set("k", "v", px=1500)
    fake_clock.advance(1.5)
    assert (local.get("k"), local.pttl("k"), local.exists("k"), list(local.scan())) == ("v", 0, 1, ["k"])
    fake_clock.advance(TICK)
    assert (local.get("k"), local.pttl("k"), local.exists("k"), list(local.scan())) == (None, -2, 0, [])
    assert local.delete("k") == 0
    assert not local.expire("k", 5)


@pytest.mark.parametrize(
    ("px", "seconds"), [(1, 0), (499, 0), (500, 1), (1499, 1), (1500, 2), (2000, 2), (10_499, 10)]
)
def test_ttl_rounds_to_the_nearest_second(local: KVStore, px: int, seconds: int) -> None:
    local.set("k", "v", px=px)
    assert (local.ttl("k"), local.pttl("k")) == (seconds, px)


def test_an_expired_key_is_not_there_for_who_writes(local: KVStore, fake_clock: FakeClock) -> None:
    local.batch([("set", key, "7", {"px": 10}) for key in ("nx", "xx", "n", "kept")])
    fake_clock.advance(1)
    assert local.batch([("set", "xx", "1", {"xx": True}), ("set", "nx", "1", {"nx": True})]) == [False, True]
    assert local.incr("n") == 1
    local.set("kept", "8", keepttl=True)
    assert (local.ttl("n"), local.ttl("kept")) == (-1, -1)


def test_what_keeps_the_time_to_live_and_what_takes_it_off(local: KVStore) -> None:
    names = ("incr", "incr_once", "keepttl", "set", "mset", "expire")
    local.batch([("set", name, 1, {"ex": 50}) for name in names])
    local.incr("incr")
    local.incr("incr_once", op_id="x")
    local.set("keepttl", 2, keepttl=True)
    local.set("set", 2)
    local.mset({"mset": 2})
    assert local.expire("expire", 70)
    assert [local.ttl(name) for name in names] == [50, 50, 50, -1, -1, 70]


@pytest.mark.parametrize("seconds", [0, -1, -0.001])
def test_expiring_now_deletes(local: KVStore, seconds: float) -> None:
    local.set("k", 1)
    assert local.expire("k", seconds)
    assert local.get("k") is None
    assert not local.expire("k", seconds)


def test_a_deadline_that_was_replaced_does_not_hold(local: KVStore, fake_clock: FakeClock) -> None:
    local.batch([("set", key, 1, {"ex": 5}) for key in ("later", "never", "again")])
    local.expire("later", 50)
    local.set("never", 1)
    local.delete("again")
    local.set("again", 1, ex=50)
    fake_clock.advance(6)
    for number in range(5):
        local.set(f"other{number}", 1)
    assert local.exists("later", "never", "again") == 3


def test_an_operation_is_remembered_for_ten_minutes(local: KVStore, fake_clock: FakeClock) -> None:
    assert [local.incr("n", op_id="x"), local.incr("n"), local.incr("n", op_id="x")] == [1, 2, 1]
    fake_clock.advance(OP_LIFETIME / 1000)
    assert local.incr("n", op_id="x") == 1
    fake_clock.advance(TICK)
    assert local.incr("n", op_id="x") == 3
    assert list(local.scan()) == ["n"]


def test_a_refused_operation_is_not_remembered(local: KVStore) -> None:
    local.set("n", 2**63 - 1)
    with pytest.raises(CounterOverflow, match="increment or decrement would overflow"):
        local.incr("n", op_id="x")
    local.set("n", 4)
    assert local.incr("n", op_id="x") == 5


# --- errors ---------------------------------------------------------------------------------------------


def test_one_that_is_refused_leaves_the_others(local: KVStore) -> None:
    for pipeline in (local.pipeline(), local.transaction()):
        pipeline.set("t", "text")
        pipeline.incr("t")
        pipeline.incr("n")
        done, refused, counted = pipeline.execute()
        assert (done, type(refused), refused.index) == (True, StoreTypeError, 1)
        assert counted == int(local.get("n") or 0)


def test_a_command_that_was_alone_has_no_place(local: KVStore) -> None:
    local.set("t", "text")
    with pytest.raises(StoreTypeError, match="not an integer") as caught:
        local.incr("t")
    assert caught.value.index is None


class Append(Command[int]):
    """A command of a site's own, for servers."""

    name = "append"
    keys = ("k",)
    words = ("APPEND", "k", "v")

    def read(self, reply: Any) -> int:
        return int(reply)


def test_a_command_that_only_servers_know_is_refused(local: KVStore) -> None:
    with pytest.raises(StoreRejected, match="unknown command 'append'"):
        local.call(Append())
    assert [type(each) for each in local.execute([Append()])] == [StoreRejected]


# --- scanning -------------------------------------------------------------------------------------------


def test_pages_are_right_while_keys_come_and_go(local: KVStore) -> None:
    """Each key that is there all the time comes exactly once."""
    rng = random.Random(7)
    stay = {f"k:{number}" for number in rng.sample(range(10**6), 3 * PAGE)}
    local.mset(dict.fromkeys([*stay, "j:1", "l:1"], 1))
    seen: list[str] = []
    for number, key in enumerate(local.scan("k:")):
        seen.append(key)
        if number % 500 == 0:
            local.mset({f"k:new{rng.random()}": 1 for _ in range(50)})
            local.delete([key for key in local.mget("j:1") if key] + [f"k:gone{number}"])
    assert sorted(key for key in seen if key in stay) == sorted(stay)
    assert len(set(seen)) == len(seen)
    assert all(key.startswith("k:") for key in seen)


@pytest.mark.parametrize("start", ["", "a", "a*", "\U0010ffff", "\ud7ff", "\uffff", "b\0", "\x7f", "é"])
def test_a_prefix_is_a_prefix(local: KVStore, start: str) -> None:
    keys = ["", "a", "a*", "a*b", "ab", "b", "b\0", "b\0c", "b\x01", "\x7f", "\x80", "é", "éa", "\ud7ff"]
    keys += ["\ue000", "\uffff", "\U00010000", "\U0010ffff", "\U0010ffff\U0010ffff", "\U0010ffffa"]
    local.mset(dict.fromkeys(keys, 1))
    assert sorted(local.scan(start)) == sorted(key for key in keys if key.startswith(start))


def pages(store: KVStore, prefix: str = "") -> Iterator[list[str]]:
    """Yield what a store says, page by page."""
    cursor = "0"
    while True:
        cursor, names = store.call(store.commands.scan(prefix, cursor))
        yield names
        if cursor == "0":
            return


def test_no_key_is_on_two_pages(local: KVStore) -> None:
    keys = [f"k{number:05}" for number in range(2 * PAGE + 1)]
    local.mset(dict.fromkeys(keys, 1))
    found: list[str] = []
    for page in pages(local):
        found += page
        local.delete(keys[-1], keys[0])
        local.mset({keys[-1]: 1, keys[0]: 1})
    assert [local.commands.bare(name) for name in found] == keys


def test_keys_that_come_after_a_scan_are_in_the_next(local: KVStore) -> None:
    local.mset({"b:1": 1, "c:1": 1})
    assert list(local.scan("b:")) == ["b:1"]
    local.mset({"b:3": 1, "a:1": 1})
    local.set("b:2", 1)
    assert list(local.scan("b:")) == ["b:1", "b:2", "b:3"]


def test_keys_of_another_home_are_not_seen(local: KVStore) -> None:
    local.set("mine", 1)
    local.commands = type(local.commands)("ri:kw:")
    local.set("theirs", 1)
    assert list(local.scan()) == ["theirs"]


def test_a_full_page_that_is_the_last_ends_the_scan(local: KVStore) -> None:
    local.mset({f"k{number}": 1 for number in range(PAGE)})
    assert len(list(local.scan())) == PAGE


def test_a_page_of_expired_keys_does_not_end_the_scan(local: KVStore, fake_clock: FakeClock) -> None:
    local.batch([("set", f"a{number}", 1, {"px": 5}) for number in range(PAGE + 5)])
    local.set("z", 1)
    fake_clock.advance(1)
    assert list(local.scan()) == ["z"]


def test_a_cursor_of_a_server_is_refused(local: KVStore) -> None:
    with pytest.raises(StoreRejected, match="invalid cursor"):
        local.call(local.commands.scan("", "17"))


# --- memory ---------------------------------------------------------------------------------------------


def test_a_full_store_refuses_what_needs_more_room_and_forgets_nothing(fake_clock: FakeClock) -> None:
    store = MemoryStore("h:", max_entries=3, clock=fake_clock)
    store.mset({"a": 1, "b": 1, "c": 1})
    with pytest.raises(StoreQuotaExceeded, match=r"3 entries \(max_entries of MemoryStore\)") as caught:
        store.set("d", 1)
    assert (caught.value.command, caught.value.key) == ("set", "h:d")
    with pytest.raises(StoreQuotaExceeded):
        store.mset({"a": 2, "e": 2})
    assert store.mget("a", "b", "c", "d", "e") == ["1", "1", "1", None, None]
    store.set("a", "something else")
    assert store.incr("b") == 2
    with pytest.raises(StoreQuotaExceeded):
        store.incr("b", op_id="x")
    assert store.get("b") == "2"
    store.delete("c")
    assert store.set("d", 1)


def test_bytes_are_bounded_too() -> None:
    store = MemoryStore("", max_bytes=2 * ROW_BYTES + 100)
    store.set("a", "x" * 40)
    store.set("b", "x" * 40)
    with pytest.raises(StoreQuotaExceeded, match=r"600 bytes \(max_bytes of MemoryStore\)"):
        store.set("b", "x" * 80)
    assert store.set("b", "x" * 58)
    assert store.set("b", "x")


def test_what_has_expired_makes_room_first(fake_clock: FakeClock) -> None:
    store = MemoryStore("h:", max_entries=100, clock=fake_clock)
    store.batch([("set", f"k{number}", 1, {"ex": 10}) for number in range(99)])
    store.set("stays", 1)
    fake_clock.advance(11)
    store.mset({f"n{number}": 1 for number in range(99)})
    assert store.exists("stays", "n0", "n98") == 3


def test_what_expires_is_gone_from_memory_though_nobody_asks_for_it(fake_clock: FakeClock) -> None:
    store = MemoryStore("h:", clock=fake_clock)
    for number in range(5000):
        store.set(f"k{number}", "v", ex=1)
        fake_clock.advance(0.01)
    assert len(store._table._rows) < 200
    assert len(store._table._queue) < 2000


def test_a_key_that_is_set_again_and_again_leaves_nothing_behind(fake_clock: FakeClock) -> None:
    store = MemoryStore("h:", clock=fake_clock)
    list(store.scan())
    for _ in range(3000):
        store.set("n", 0, ex=100, nx=True)
        store.incr("n")
    assert len(store._table._queue) == 1
    store.delete("n")
    for number in range(10_000):
        store.set("k", "v", ex=100 + number)
        store.set(f"other{number}", 1)
        store.delete(f"other{number}")
    assert len(store._table._queue) < 1100
    assert len(store._table._order or ()) < 1100
    assert store._table.bytes == len("h:kv") + ROW_BYTES
    assert list(store.scan()) == ["k"]


def test_a_transaction_without_room_is_discarded_as_a_whole(fake_clock: FakeClock) -> None:
    store = MemoryStore("h:", max_entries=3, clock=fake_clock)
    store.set("a", 1, ex=10)
    store.set("b", "x")
    transaction = store.transaction()
    transaction.incr("a")
    transaction.delete("b")
    transaction.expire("a", 99)
    transaction.mset({"c": 1, "d": 1, "e": 1})
    with pytest.raises(TransactionDiscarded, match="max_entries") as caught:
        transaction.execute()
    assert caught.value.index == 3
    assert store.mget("a", "b", "c") == ["1", "x", None]
    assert store.ttl("a") == 10
    assert store._table.bytes == len("h:a1" + "h:bx") + 2 * ROW_BYTES


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(
        CALLS
        | st.tuples(st.just("transaction"), st.lists(CALLS, max_size=4))
        | st.tuples(st.just("scan"), KEYS)
        | st.tuples(st.just("wait"), st.sampled_from([1, 1.5 * LONG])),
        max_size=40,
    )
)
def test_what_memory_counts_is_what_it_holds(steps: list[tuple[Any, ...]]) -> None:
    clock = FakeClock()
    store = MemoryStore("h:", max_entries=5, clock=clock)
    for step in steps:
        if step[0] == "wait":
            clock.advance(step[1])
            continue
        with contextlib.suppress(TransactionDiscarded):
            outcome(store, step)
        table = store._table
        assert table.bytes == sum(len(k) + len(v) + ROW_BYTES for k, (v, _) in table._rows.items())
        assert len(table._rows) <= 5
        queued = set(table._queue)
        assert all((row[1], key) in queued for key, row in table._rows.items() if row[1] is not None)
        assert table._order is None or set(table._order) >= set(table._rows)


def test_threads_count_exactly() -> None:
    store = MemoryStore("h:")
    barrier = threading.Barrier(8)

    def count() -> None:
        barrier.wait()
        for _ in range(1000):
            store.incr("n")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n") == "8000"


def test_event_loops_use_memory_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("h:")

    async def use() -> Any:
        monkeypatch.setattr(asyncio, "to_thread", None)
        counted = await asyncio.gather(*[store.aincr("n") for _ in range(50)])
        return max(counted), await store.abatch([("set", "k", "v"), ("get", "k")])

    assert asyncio.run(use()) == (50, [True, "v"])
    assert asyncio.run(store.aget("n")) == "50"


def test_what_interrupts_a_command_in_its_thread_is_refused_and_does_not_hang() -> None:
    """As a signal handler, or a ``__del__``: this clock is asked in the middle of every command."""

    class Interrupting(FakeClock):
        def monotonic(self) -> float:
            if interruptions:
                interruptions.pop()()
            return super().monotonic()

    def interrupt() -> None:
        for action in (lambda: store.incr("n"), lambda: store.batch([("incr", "n"), ("get", "n")])):
            with pytest.raises(StoreUnavailable, match="in the middle of another command"):
                action()
            refused.append(1)

    interruptions: list[Callable[[], None]] = []
    refused: list[int] = []
    store = MemoryStore("h:", clock=Interrupting())
    interruptions.append(interrupt)
    assert store.incr("n") == 1
    interruptions.append(interrupt)
    assert store.batch([("incr", "n"), ("incr", "n")]) == [2, 3]
    assert len(refused) == 4


def test_a_command_that_was_broken_off_leaves_the_store_usable() -> None:
    class Breaking(FakeClock):
        def monotonic(self) -> float:
            if breaks:
                raise breaks.pop()
            return super().monotonic()

    breaks: list[BaseException] = []
    store = MemoryStore("h:", clock=Breaking())
    for action in (lambda: store.incr("n"), lambda: store.batch([("incr", "m")])):
        breaks.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            action()
    assert store.incr("n") == 1


def test_a_forked_child_goes_on_with_a_copy(local: KVStore) -> None:
    """Though another thread is in the middle of a command: of memory it is the child's own, of a file not."""
    local.incr("n")

    def child() -> tuple[int, int]:
        local.after_fork()
        return local.incr("n"), local.incr("n")

    if isinstance(local, MemoryStore):
        with local._lock:
            local._table.bytes += 1000
            assert in_child(child) == (2, 3)
        assert local.get("n") == "1"
    else:
        assert in_child(child) == (2, 3)
        assert local.get("n") == "3"


def test_closing_forgets_nothing(local: KVStore) -> None:
    local.set("k", "v")
    local.close()
    local.close()
    assert local.get("k") == "v"
    assert local.ping()
    assert local.health().status == "ok"
