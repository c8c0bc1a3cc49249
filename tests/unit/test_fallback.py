"""The store in this process' memory: Redis' contract, with bounds."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from redis_infra.cache.fallback import NO_CREATE, FallbackStore, Missing, NotInteger
from redis_infra.exceptions import CounterOverflow
from redis_infra.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FallbackStore:
    return FallbackStore(max_entries=1000, max_bytes=100_000, max_ttl=None, clock=clock)


@pytest.fixture
def small(clock: FakeClock) -> FallbackStore:
    """Three entries, thirty characters."""
    return FallbackStore(max_entries=3, max_bytes=30, max_ttl=None, clock=clock)


@pytest.fixture
def capped(clock: FakeClock) -> FallbackStore:
    return FallbackStore(max_entries=1000, max_bytes=100_000, max_ttl=30.0, clock=clock)


# --- one value


def test_what_was_set_is_there(store: FallbackStore) -> None:
    assert store.set("a", b"1", None)
    assert store.get("a") == b"1"
    assert store.exists("a")


def test_what_was_not_set_is_not(store: FallbackStore) -> None:
    assert store.get("a") is None
    assert not store.exists("a")


def test_empty_value_is_a_value(store: FallbackStore) -> None:
    store.set("a", b"", None)
    assert store.get("a") == b""
    assert store.exists("a")
    assert not store.set("a", b"1", None, nx=True)


def test_value_ends_with_its_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 0.5)
    clock.advance(0.49)
    assert store.get("a") == b"1"
    clock.advance(0.01)
    assert store.get("a") is None
    assert not store.exists("a")


def test_ttl_does_not_follow_the_wall_clock(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 10)
    clock.jump(3600)
    assert store.get("a") == b"1"


def test_set_replaces_value_and_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    store.set("a", b"2", None)
    clock.advance(2)
    assert store.get("a") == b"2"


@pytest.mark.parametrize("ttl", [0, -1, -0.5])
def test_ttl_that_is_over_removes(store: FallbackStore, ttl: float) -> None:
    store.set("a", b"1", None)
    assert store.set("a", b"2", ttl) is True
    assert store.get("a") is None


def test_nx_stores_only_where_nothing_is(store: FallbackStore, clock: FakeClock) -> None:
    assert store.set("a", b"1", 1, nx=True) is True
    assert store.set("a", b"2", 1, nx=True) is False
    assert store.get("a") == b"1"
    clock.advance(1)
    assert store.set("a", b"2", 1, nx=True) is True


def test_xx_stores_only_where_something_is(store: FallbackStore, clock: FakeClock) -> None:
    assert store.set("a", b"1", 1, xx=True) is False
    assert store.get("a") is None
    store.set("a", b"1", 1)
    assert store.set("a", b"2", 1, xx=True) is True
    clock.advance(1)
    assert store.set("a", b"3", 1, xx=True) is False


def test_nx_and_xx_at_once_never_store(store: FallbackStore) -> None:
    assert store.set("a", b"1", None, nx=True, xx=True) is False
    store.set("a", b"1", None)
    assert store.set("a", b"2", None, nx=True, xx=True) is False
    assert store.get("a") == b"1"


@pytest.mark.parametrize("ttl", [0, -1])
def test_nx_with_a_ttl_that_is_over_leaves_nothing_and_touches_nothing(
    store: FallbackStore, ttl: float
) -> None:
    assert store.set("a", b"1", ttl, nx=True) is True
    assert not store.exists("a")
    store.set("a", b"1", None)
    assert store.set("a", b"2", ttl, nx=True) is False
    assert store.get("a") == b"1"


# --- time to live


def test_touch_gives_a_new_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    assert store.touch("a", 10) is True
    clock.advance(9)
    assert store.get("a") == b"1"


def test_touch_without_ttl_makes_persistent(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    assert store.touch("a", None) is True
    assert store.touch("a", None) is True
    clock.advance(1e9)
    assert store.get("a") == b"1"


@pytest.mark.parametrize("ttl", [None, 10, 0])
def test_touch_of_nothing_is_false(store: FallbackStore, clock: FakeClock, ttl: float | None) -> None:
    assert store.touch("a", ttl) is False
    store.set("a", b"1", 1)
    clock.advance(1)
    assert store.touch("a", ttl) is False


@pytest.mark.parametrize("ttl", [0, -1])
def test_touch_with_a_ttl_that_is_over_removes(store: FallbackStore, ttl: float) -> None:
    store.set("a", b"1", None)
    assert store.touch("a", ttl) is True
    assert store.get("a") is None


def test_ttl_tells_what_is_left(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 10)
    store.set("b", b"1", None)
    clock.advance(4)
    assert store.ttl("a") == pytest.approx(6)
    assert store.ttl("b") is None


def test_ttl_of_nothing_is_missing(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    clock.advance(1)
    for name in ("a", "b"):
        with pytest.raises(Missing):
            store.ttl(name)


@pytest.mark.parametrize("ttl", [None, 3600, 31])
def test_long_ttls_are_capped(capped: FallbackStore, ttl: float | None) -> None:
    capped.set("set", b"1", ttl)
    capped.set("touched", b"1", 1)
    capped.touch("touched", ttl)
    capped.incr("counted", 1, create_ttl=ttl)
    assert [capped.ttl(name) for name in ("set", "touched", "counted")] == [30, 30, 30]


def test_short_ttls_are_kept(capped: FallbackStore) -> None:
    capped.set("a", b"1", 29.5)
    assert capped.ttl("a") == pytest.approx(29.5)


# --- names


def test_rename_keeps_value_and_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 10)
    clock.advance(4)
    assert store.rename("a", "b") is True
    assert store.get("a") is None
    assert store.get("b") == b"1"
    assert store.ttl("b") == pytest.approx(6)


def test_rename_replaces_what_is_there(store: FallbackStore) -> None:
    store.set("a", b"1", None)
    store.set("b", b"22222", 1)
    assert store.rename("a", "b") is True
    assert store.get("b") == b"1"
    assert store.ttl("b") is None
    assert store.nbytes == len("b") + len(b"1")


def test_rename_to_itself_changes_nothing(store: FallbackStore) -> None:
    store.set("a", b"1", 10)
    assert store.rename("a", "a") is True
    assert store.get("a") == b"1"
    assert store.ttl("a") == pytest.approx(10)


def test_rename_of_nothing_is_false_and_leaves_the_other(store: FallbackStore, clock: FakeClock) -> None:
    store.set("b", b"2", None)
    store.set("a", b"1", 1)
    clock.advance(1)
    assert store.rename("a", "b") is False
    assert store.rename("c", "b") is False
    assert store.get("b") == b"2"


def test_delete_counts_what_was_there(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", None)
    store.set("b", b"1", None)
    store.set("over", b"1", 1)
    clock.advance(1)
    assert store.delete() == 0
    assert store.delete("a", "a", "over", "never") == 1
    assert store.get_many(["a", "b"]) == [None, b"1"]


def test_get_many_answers_in_order(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", None)
    store.set("b", b"2", 1)
    store.set("c", b"3", None)
    clock.advance(1)
    assert store.get_many(["c", "b", "a", "c", "z"]) == [b"3", None, b"1", b"3", None]
    assert store.get_many(iter(())) == []


def test_delete_matching_reads_patterns_as_redis_does(store: FallbackStore) -> None:
    for name in (":1:chat:1", ":1:chat:2", ":1:chat:10", ":1:chats", ":1:user:1", ":1:[x]"):
        store.set(name, b"1", None)
    assert store.delete_matching(r":1:\[x\]") == 1
    assert store.delete_matching(":1:chat:?") == 2
    assert store.delete_matching(":1:chat:*") == 1
    assert store.delete_matching("nothing*") == 0
    assert sorted(store.names()) == [":1:chats", ":1:user:1"]


def test_delete_matching_does_not_count_what_is_over(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a1", b"1", 1)
    store.set("a2", b"1", None)
    clock.advance(1)
    assert store.delete_matching("a*") == 1


def test_delete_where_takes_any_predicate(store: FallbackStore) -> None:
    for name in ("a", "b", "c"):
        store.set(name, b"1", None)
    assert store.delete_where({"a", "c", "d"}.__contains__) == 2
    assert store.names() == ["b"]


def test_names_are_those_that_match_and_live(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a1", b"1", None)
    store.set("a2", b"1", 1)
    store.set("b", b"1", None)
    clock.advance(1)
    assert store.names("a*") == ["a1"]
    assert sorted(store.names()) == ["a1", "b"]


def test_clear_removes_everything(store: FallbackStore) -> None:
    store.set("a", b"1", None)
    store.clear()
    assert store.get("a") is None
    assert len(store) == 0
    assert store.nbytes == 0


# --- counting


@pytest.mark.parametrize(
    ("raw", "delta", "total"), [(b"5", 1, 6), (b"5", -7, -2), (b"-1", 1, 0), (b"0", 0, 0)]
)
def test_incr_adds(store: FallbackStore, raw: bytes, delta: int, total: int) -> None:
    store.set("a", raw, None)
    assert store.incr("a", delta) == total
    assert store.get("a") == str(total).encode()


def test_incr_keeps_the_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 10)
    clock.advance(4)
    store.incr("a", 1)
    assert store.ttl("a") == pytest.approx(6)


def test_incr_of_nothing_is_missing_and_creates_nothing(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    clock.advance(1)
    with pytest.raises(Missing):
        store.incr("a", 1)
    assert not store.exists("a")


def test_incr_can_create_and_then_keeps_that_ttl(store: FallbackStore, clock: FakeClock) -> None:
    assert store.incr("a", 3, create_ttl=10) == 3
    clock.advance(4)
    assert store.incr("a", 3, create_ttl=10) == 6
    assert store.ttl("a") == pytest.approx(6)


def test_incr_can_create_for_ever_and_for_no_time(store: FallbackStore) -> None:
    assert store.incr("for ever", 1, create_ttl=None) == 1
    assert store.ttl("for ever") is None
    assert store.incr("for no time", 1, create_ttl=0) == 1
    assert not store.exists("for no time")


@pytest.mark.parametrize(
    ("raw", "delta"),
    [
        (b"9223372036854775807", 1),
        (b"-9223372036854775808", -1),
        (b"1", 2**63),
        (b"9223372036854775808", -1),
        (b"1" + b"0" * 30, 1),
    ],
)
def test_incr_beyond_64_bits_is_an_error_and_changes_nothing(
    store: FallbackStore, raw: bytes, delta: int
) -> None:
    store.set("a", raw, None)
    with pytest.raises(CounterOverflow):
        store.incr("a", delta)
    assert store.get("a") == raw


def test_created_counter_must_fit_64_bits(store: FallbackStore) -> None:
    with pytest.raises(CounterOverflow):
        store.incr("a", 2**63, create_ttl=None)
    assert not store.exists("a")


@pytest.mark.parametrize("raw", [b"", b"-", b"1.5", b" 1", b"1_0", b"+1", b"\x80\x05K\x01.", b"9" * 5000])
def test_incr_of_something_else_is_not_an_integer(store: FallbackStore, raw: bytes) -> None:
    store.set("a", raw, None)
    with pytest.raises(NotInteger):
        store.incr("a", 1)
    assert store.get("a") == raw


def test_sentinel_has_a_name() -> None:
    assert repr(NO_CREATE) == "NO_CREATE"
    assert copy.deepcopy(NO_CREATE) is NO_CREATE


def test_update_replaces_and_keeps_the_ttl(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1.5", 10)
    clock.advance(4)
    assert store.update("a", lambda raw: raw + b"0") == b"1.50"
    assert store.get("a") == b"1.50"
    assert store.ttl("a") == pytest.approx(6)


def test_update_of_nothing_is_missing(store: FallbackStore) -> None:
    with pytest.raises(Missing):
        store.update("a", bytes)


def test_update_whose_function_fails_changes_nothing(store: FallbackStore) -> None:
    store.set("a", b"1", None)
    with pytest.raises(ZeroDivisionError):
        store.update("a", lambda raw: b"%d" % (1 // 0))
    assert store.get("a") == b"1"


def test_update_starts_again_when_somebody_was_faster(store: FallbackStore) -> None:
    seen = []

    def function(raw: bytes) -> bytes:
        if not seen:
            store.set("a", b"10", None)
        seen.append(raw)
        return b"%d" % (int(raw) + 1)

    store.set("a", b"1", None)
    assert store.update("a", function) == b"11"
    assert seen == [b"1", b"10"]


def test_update_does_not_bring_back_what_was_deleted_meanwhile(store: FallbackStore) -> None:
    store.set("a", b"1", None)
    with pytest.raises(Missing):
        store.update("a", lambda raw: b"%d" % store.delete("a"))
    assert not store.exists("a")


# --- bounds


def test_least_recently_used_goes_first(small: FallbackStore) -> None:
    for name in ("a", "b", "c"):
        small.set(name, b"1", None)
    small.get("a")
    small.touch("b", None)
    small.set("d", b"1", None)
    assert sorted(small.names()) == ["a", "b", "d"]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get("a"),
        lambda store: store.get_many(["a"]),
        lambda store: store.set("a", b"2", None),
        lambda store: store.touch("a", 10),
        lambda store: store.incr("a", 1),
        lambda store: store.update("a", bytes),
        lambda store: store.rename("a", "a"),
    ],
)
def test_every_use_counts(small: FallbackStore, use: Callable[[FallbackStore], Any]) -> None:
    for name in ("a", "b", "c"):
        small.set(name, b"1", None)
    use(small)
    small.set("d", b"1", None)
    assert small.exists("a")
    assert not small.exists("b")


def test_looking_is_not_using(small: FallbackStore) -> None:
    for name in ("a", "b", "c"):
        small.set(name, b"1", None)
    small.exists("a")
    small.ttl("a")
    small.set("d", b"1", None)
    assert not small.exists("a")


def test_bytes_are_bounded(small: FallbackStore) -> None:
    small.set("a", b"x" * 9, None)
    small.set("b", b"x" * 9, None)
    small.set("c", b"x" * 10, None)
    assert sorted(small.names()) == ["b", "c"]
    assert small.nbytes == 21


def test_one_large_value_may_push_out_many(small: FallbackStore) -> None:
    for name in ("a", "b"):
        small.set(name, b"x", None)
    small.set("c", b"x" * 29, None)
    assert small.names() == ["c"]


def test_value_larger_than_the_store_is_not_kept_and_the_old_one_is_gone(small: FallbackStore) -> None:
    small.set("a", b"old", None)
    small.set("b", b"other", None)
    assert small.set("a", b"x" * 30, None) is True
    assert small.get("a") is None
    assert small.get("b") == b"other"


def test_value_that_grows_stays_within_bounds(small: FallbackStore) -> None:
    small.set("a", b"x" * 10, None)
    small.set("b", b"x" * 10, None)
    small.update("b", lambda raw: raw * 2)
    assert small.names() == ["b"]
    small.rename("b", "b" * 30)
    assert small.names() == []
    assert small.nbytes == 0


def test_expired_entries_make_room_before_live_ones(small: FallbackStore, clock: FakeClock) -> None:
    small.set("live", b"1", None)
    small.set("over", b"1", 1)
    small.set("also", b"1", None)
    clock.advance(1)
    small.set("new", b"1", None)
    assert sorted(small.names()) == ["also", "live", "new"]
    assert small.stats()["evicted"] == 0


def test_store_that_is_full_sweeps_once_a_second(small: FallbackStore, clock: FakeClock) -> None:
    """A sweep looks at everything: too much for every set into a full store."""
    for name in ("a", "b", "c"):
        small.set(name, b"1", 10)
    small.set("brief", b"1", 0.1)
    clock.advance(0.5)
    small.set("d", b"1", 10)
    assert not small.exists("b")
    clock.advance(0.5)
    small.set("e", b"1", 10)
    assert small.exists("c")


def test_store_of_no_size_keeps_nothing() -> None:
    for store in (FallbackStore(0, 100, None), FallbackStore(100, 0, None)):
        assert store.set("a", b"1", None) is True
        assert store.get("a") is None
        assert len(store) == 0


def test_stats_tell_what_happened(small: FallbackStore, clock: FakeClock) -> None:
    small.set("a", b"123", 1)
    small.set("b", b"1", None)
    small.get("a")
    small.get_many(["a", "b", "z"])
    clock.advance(1)
    small.get("a")
    assert small.stats() == {"entries": 1, "bytes": 2, "hits": 3, "misses": 2, "evicted": 0, "expired": 1}
    assert (len(small), small.nbytes) == (1, 2)


def test_length_and_bytes_do_not_count_what_is_over(store: FallbackStore, clock: FakeClock) -> None:
    store.set("a", b"1", 1)
    clock.advance(1)
    assert (len(store), store.nbytes) == (0, 0)


# --- threads, forks, interruptions


def _together(*works: Callable[[], None]) -> None:
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        start.wait()
        work()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_counters_of_many_threads_add_up(store: FallbackStore) -> None:
    def work() -> None:
        for _ in range(500):
            store.incr("a", 1, create_ttl=None)
            store.update("b", lambda raw: b"%.1f" % (float(raw) + 0.5))

    store.set("b", b"0.0", None)
    _together(*[work] * 8)
    assert store.get("a") == b"4000"
    assert store.get("b") == b"2000.0"


def test_one_thread_of_many_adds(store: FallbackStore) -> None:
    winners: list[int] = []

    def work(number: int) -> None:
        winners.extend(key for key in range(200) if store.set(f"k{key}", b"%d" % number, None, nx=True))

    _together(*[lambda number=number: work(number) for number in range(8)])
    assert sorted(winners) == list(range(200))


def test_bounds_hold_under_many_threads(clock: FakeClock) -> None:
    store = FallbackStore(max_entries=50, max_bytes=2000, max_ttl=None, clock=clock)

    def work(number: int) -> None:
        for turn in range(500):
            name = f"k{(number * 7 + turn) % 100}"
            store.set(name, b"x" * (turn % 60), None if turn % 3 else 0.5)
            store.get(name)
            clock.advance(0.01)
            if turn % 10 == 0:
                store.delete(name, "k1")
                store.rename(name, "k2")

    _together(*[lambda number=number: work(number) for number in range(8)])
    assert len(store) <= 50
    assert store.nbytes == sum(len(name) + len(store.get(name) or b"") for name in store.names())


def test_signal_handler_may_use_the_store_that_it_interrupted() -> None:
    """A lock that its owner cannot take again would hang the process here."""
    reached: list[bytes | None] = []

    class InterruptingClock(FakeClock):
        def monotonic(self) -> float:
            if not reached:
                reached.append(None)
                signal.raise_signal(signal.SIGUSR1)
            return super().monotonic()

    store = FallbackStore(10, 1000, None, clock=InterruptingClock())

    def handle(*_: object) -> None:
        store.set("from the handler", b"1", 10)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        store.set("a", b"1", 10)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert sorted(store.names()) == ["a", "from the handler"]


def test_forked_child_can_use_its_copy_whatever_another_thread_held(store: FallbackStore) -> None:
    inside, leave = threading.Event(), threading.Event()

    def predicate(_name: str) -> bool:
        inside.set()
        return not leave.wait(30)

    store.set("a", b"1", None)
    holder = threading.Thread(target=store.delete_where, args=(predicate,))
    holder.start()
    inside.wait(30)
    try:
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends a child that hangs
            store.after_fork()
            os._exit(0 if store.get("a") == b"1" and store.nbytes == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        leave.set()
        holder.join()
    assert store.get("a") == b"1"


# --- against a model


class StoreAgainstModel(RuleBasedStateMachine):
    """A store without bounds does what a dict with deadlines does."""

    names = st.sampled_from(["a", "b", "c:1", "c:2"])
    ttls = st.sampled_from([None, -1, 0, 0.5, 1, 5])

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = FallbackStore(100, 10_000, 4.0, clock=self.clock)
        self.model: dict[str, tuple[bytes, float]] = {}

    def live(self, name: str) -> bytes | None:
        raw, ends = self.model.get(name, (None, 0.0))
        return raw if ends > self.clock.monotonic() else None

    def put(self, name: str, raw: bytes, ttl: float | None) -> None:
        self.model[name] = (raw, self.clock.monotonic() + (4.0 if ttl is None else min(ttl, 4.0)))

    @rule(name=names, number=st.integers(-5, 5), ttl=ttls, nx=st.booleans(), xx=st.booleans())
    def set(self, name: str, number: int, ttl: float | None, nx: bool, xx: bool) -> None:
        there = self.live(name) is not None
        allowed = not (nx and there) and not (xx and not there)
        assert self.store.set(name, b"%d" % number, ttl, nx=nx, xx=xx) is allowed
        if allowed:
            self.put(name, b"%d" % number, ttl)

    @rule(name=names, ttl=ttls)
    def touch(self, name: str, ttl: float | None) -> None:
        raw = self.live(name)
        assert self.store.touch(name, ttl) is (raw is not None)
        if raw is not None:
            self.put(name, raw, ttl)

    @rule(name=names, delta=st.integers(-3, 3), create_ttl=ttls | st.just(NO_CREATE))
    def incr(self, name: str, delta: int, create_ttl: Any) -> None:
        raw = self.live(name)
        if raw is not None:
            self.model[name] = (b"%d" % (int(raw) + delta), self.model[name][1])
            assert self.store.incr(name, delta, create_ttl=create_ttl) == int(raw) + delta
        elif create_ttl is NO_CREATE:
            with pytest.raises(Missing):
                self.store.incr(name, delta)
        else:
            assert self.store.incr(name, delta, create_ttl=create_ttl) == delta
            self.put(name, b"%d" % delta, create_ttl)

    @rule(old=names, new=names)
    def rename(self, old: str, new: str) -> None:
        there = self.live(old) is not None
        assert self.store.rename(old, new) is there
        if there:
            self.model[new] = self.model.pop(old)

    @rule(some=st.lists(names))
    def delete(self, some: list[str]) -> None:
        assert self.store.delete(*some) == sum(self.live(name) is not None for name in set(some))
        for name in some:
            self.model.pop(name, None)

    @rule()
    def delete_matching(self) -> None:
        matching = [name for name in self.model if name.startswith("c:")]
        assert self.store.delete_matching("c:*") == sum(self.live(name) is not None for name in matching)
        for name in matching:
            del self.model[name]

    @precondition(lambda self: self.model)
    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 5]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(some=st.lists(names))
    def get_many(self, some: list[str]) -> None:
        assert self.store.get_many(some) == [self.live(name) for name in some]

    @invariant()
    def agrees(self) -> None:
        live = {name: raw for name in self.model if (raw := self.live(name)) is not None}
        assert {name: self.store.get(name) for name in self.store.names()} == live
        assert self.store.nbytes == sum(len(name) + len(raw) for name, raw in live.items())


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
