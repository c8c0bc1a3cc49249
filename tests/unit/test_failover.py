"""``Failover``: who answers a call, what becomes of it when Redis fails, and who is told.

The journal, the fallback, the circuits and the translation of exceptions are the real ones; Redis is a
function that answers or raises what redis-py and our connections raise.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis._parsers import _HiredisParser

from redis_infra.cache.fallback import FallbackStore
from redis_infra.connection.failures import LinkClosed, LinkTimeout, PoolExhausted, classify
from redis_infra.exceptions import CounterOverflow, StoreUnavailable
from redis_infra.instrumentation import Counters, reset_log
from redis_infra.resilience.breaker import CircuitBreaker
from redis_infra.resilience.failover import READ, Effect, Failover, Kind
from redis_infra.resilience.journal import Journal
from redis_infra.resilience.prober import Prober
from redis_infra.testing import FakeClock
from tests.forking import in_child

NAMESPACE = "site:[0-9]*"


def reply(text: str) -> Exception:
    """The exception that redis-py makes of an error reply."""
    return _HiredisParser.parse_error(text)


def broken(*, executed: bool | None = None, stale: bool = False) -> LinkClosed:
    error = LinkClosed("ConnectionResetError")
    error.executed, error.stale = executed, stale
    return error


def silent(*, executed: bool | None = None) -> LinkTimeout:
    error = LinkTimeout("no reply within 0.25 s")
    error.executed = executed
    return error


class Home:
    namespace = NAMESPACE


class Redis:
    """What a primary meets: its answers in turn, raised if they are exceptions; then "from Redis"."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args[0] if len(args) == 1 else args)
        answer = self.answers.pop(0) if self.answers else "from Redis"
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def acall(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return self(*args)


def from_memory(*_args: Any) -> str:
    return "from memory"


@dataclass
class Site:
    """A failover with everything that it needs; ``healed`` is set when the prober's thread was at work."""

    clock: FakeClock = field(default_factory=FakeClock)
    renewals: int = 0
    looks: list[float] = field(default_factory=list)
    healed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reach, self.access, self.writes = (
            CircuitBreaker("redis://a:6379", guards, clock=self.clock)
            for guards in ("reach", "access", "writes")
        )
        self.journal = Journal(1000, 1 << 20, clock=self.clock)
        self.store = FallbackStore(100, 10_000, 30.0, self.clock)
        self.prober = Prober(self._heal, "test", clock=self.clock)
        self.failover = Failover(
            reach=self.reach,
            access=self.access,
            writes=self.writes,
            journal=self.journal,
            local=self.store,
            prober=self.prober,
            classify=classify,
            renew=self._renew,
            watch=self.looks.append,
            counters=Counters(),
            clock=self.clock,
        )

    def _heal(self, budget: float | None) -> None:
        self.healed.set()

    def _renew(self) -> None:
        self.renewals += 1

    def wait_for_the_thread_to_end(self) -> None:
        thread = self.prober._thread
        if thread is not None:
            thread.join(5)

    @property
    def open_circuits(self) -> set[str]:
        return {each.circuit for each in (self.reach, self.access, self.writes) if not each.closed}

    def recover(self, breaker: CircuitBreaker) -> None:
        """As recovery does it: drained first, then trusted."""
        self.journal.done(self.journal.take())
        self.clock.advance(breaker.probe_cap)
        breaker.begin_probe()
        breaker.close()


@pytest.fixture(autouse=True)
def _quiet_log():
    reset_log()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.prober.retire()


@pytest.fixture(params=["run", "arun"])
def ask(request, site) -> Callable[..., Any]:
    """``ask(redis, effect)``: one call through the failover, sync or async."""

    def run(redis: Redis, effect: Effect = READ, *args: Any, fallback: Any = from_memory) -> Any:
        if request.param == "run":
            return site.failover.run(redis, fallback, effect, *args)
        return asyncio.run(site.failover.arun(redis.acall, fallback, effect, *args))

    return run


@pytest.fixture(params=["read", "aread", "first read", "first aread"])
def read(request, site) -> Callable[..., Any]:
    """``read(redis, name)``: one read of one key, sync or async. The very first looks at the journals."""
    way, first = request.param.split()[-1], "first" in request.param
    if not first:
        site.failover.run(Redis(), from_memory)

    def run(redis: Redis, name: str = "site:1:k", local: Any = from_memory) -> Any:
        if way == "read":
            return site.failover.read(redis, b"GET", local, name)
        return asyncio.run(site.failover.aread(redis.acall, b"GET", local, name))

    return run


def change(*names: str, **more: Any) -> Effect:
    return Effect(Kind.CHANGE, names or ("site:1:k",), Home(), **more)


def fill(name: str = "site:1:k") -> Effect:
    return Effect(Kind.FILL, (name,), Home(), stores=True, repeatable=False)


def count(delta: int = 1, name: str = "site:1:n") -> Effect:
    return Effect(Kind.COUNT, (name,), Home(), delta=delta, repeatable=False)


REFUSED = redis_errors.ConnectionError("Error 111 connecting to a:6379. Connection refused.")
OOM = "OOM command not allowed when used memory > 'maxmemory'."


class TestAllIsWell:
    def test_redis_answers(self, site, ask):
        assert ask(Redis("stored")) == "stored"
        assert site.failover.clear

    def test_both_get_the_arguments(self, site, ask):
        redis = Redis("stored", REFUSED)
        assert ask(redis, READ, "key") == "stored"
        assert ask(redis, READ, "key", fallback=lambda key: f"local {key}") == "local key"
        assert redis.calls == ["key", "key"]

    def test_nobody_counts_what_redis_answered(self, site, ask):
        ask(Redis())
        assert site.failover.counters.snapshot()["fallback_ops"] == 0

    def test_none_is_an_answer(self, site, ask, read):
        assert ask(Redis(None)) is None
        assert read(Redis(None)) is None

    def test_the_hosts_journals_are_looked_at_once_a_second(self, site, ask):
        for _ in range(5):
            ask(Redis())
        assert len(site.looks) == 1
        site.clock.advance(1)
        for _ in range(5):
            ask(Redis())
        assert site.looks == [1000.0, 1001.0]

    def test_they_are_looked_at_before_redis_is_asked(self, site, ask):
        redis = Redis()
        site.failover._watch = lambda now: site.looks.append(len(redis.calls))
        ask(redis)
        assert site.looks == [0]


class TestFaults:
    @pytest.mark.parametrize(
        ("error", "opens"),
        [
            (REFUSED, {"reach"}),
            (ConnectionResetError("reset by peer"), {"reach"}),
            (OSError(-2, "Name or service not known"), {"reach"}),
            (reply("LOADING Redis is loading the dataset in memory"), {"reach"}),
            (reply("ERR max number of clients reached"), {"reach"}),
            (reply("BUSY Redis is busy running a script."), {"reach"}),
            (reply("MASTERDOWN Link with MASTER is down"), {"reach"}),
            (silent(), set()),
            (PoolExhausted(50), set()),
            (reply("NOPERM this user has no permissions to run the 'get' command"), set()),
            (reply(OOM), {"writes"}),
            (reply("MISCONF Errors writing to disk"), {"writes"}),
            (reply("NOREPLICAS Not enough good replicas to write."), {"writes"}),
            (reply("WRONGPASS invalid username-password pair"), {"access"}),
            (reply("NOAUTH Authentication required."), {"access"}),
            (reply("ERR DB index is out of range"), {"access"}),
            (reply("MOVED 866 10.0.0.1:6379"), {"access"}),
            (redis_errors.InvalidResponse("Protocol error, got 'H' as reply type byte"), {"access"}),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_memory_answers_and_the_circuit_it_is_about_opens(self, site, ask, error, opens):
        assert ask(Redis(error)) == "from memory"
        assert site.open_circuits == opens
        assert site.failover.counters.failures == 1
        assert site.failover.counters.fallback_ops == 1

    @pytest.mark.parametrize(
        "error",
        [
            reply("WRONGTYPE Operation against a key holding the wrong kind of value"),
            reply("ERR value is not an integer or out of range"),
            redis_errors.DataError("Invalid input of type: 'dict'."),
            CounterOverflow("INCR", "k", "a counter holds 64 bits"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_a_bug_of_the_caller_is_raised_and_is_no_outage(self, site, ask, error):
        with pytest.raises(type(error), match=str(error)[:10]):
            ask(Redis(error), change())
        assert site.failover.clear
        assert site.journal.empty
        assert site.failover.counters.failures == 0

    def test_what_the_fallback_raises_reaches_the_caller(self, ask):
        def refuse(*_args):
            raise ValueError("no such key")

        with pytest.raises(ValueError, match="no such key"):
            ask(Redis(REFUSED), fallback=refuse)

    def test_the_second_timeout_in_a_row_opens(self, site, ask):
        ask(Redis(silent()))
        ask(Redis(silent()))
        assert site.open_circuits == {"reach"}

    def test_an_answer_in_between_begins_the_row_anew(self, site, ask, read):
        ask(Redis(silent()))
        ask(Redis())
        ask(Redis(silent()))
        read(Redis())
        ask(Redis(silent()))
        assert site.open_circuits == set()

    def test_once_open_redis_is_not_asked(self, site, ask):
        redis = Redis(REFUSED)
        ask(redis)
        assert [ask(redis) for _ in range(3)] == ["from memory"] * 3
        assert len(redis.calls) == 1

    @pytest.mark.parametrize("circuit", ["reach", "access"])
    def test_whichever_circuit_it_was(self, site, ask, circuit):
        getattr(site, circuit).trip("down")
        assert ask(redis := Redis()) == "from memory"
        assert redis.calls == []

    def test_a_server_that_takes_no_writes_is_still_read(self, site, ask, read):
        ask(Redis(reply(OOM)), change(stores=True))
        assert ask(Redis("stored")) == "stored"
        assert read(Redis("stored"), "site:1:other") == "stored"

    def test_and_not_written_to_but_deleted_from(self, site, ask):
        """Deleting frees memory: a full server takes it."""
        site.writes.trip("OOM")
        storing, deleting = Redis(), Redis()
        ask(storing, change("site:1:a", stores=True))
        ask(deleting, change("site:1:b"))
        assert (storing.calls, deleting.calls) == ([], [()])

    def test_the_second_write_in_a_row_that_hangs_stops_writes_though_reads_go_on(self, site, ask):
        """CLIENT PAUSE WRITE; deletes would hang as well, so they are not asked for either."""
        for _ in range(2):
            ask(Redis(silent()), change("site:1:a", stores=True))
            ask(Redis("stored"))
        assert site.open_circuits == {"writes"}
        storing, deleting = Redis(), Redis()
        ask(storing, change("site:1:a", stores=True))
        ask(deleting, change("site:1:b"))
        assert storing.calls == deleting.calls == []
        assert ask(Redis("stored")) == "stored"
        assert site.journal.covers("site:1:b")

    def test_a_write_that_succeeds_begins_the_row_of_writes_anew(self, site, ask):
        ask(Redis(silent()), change("site:1:a", stores=True))
        ask(Redis("stored"), change("site:1:b", stores=True))
        ask(Redis(silent()), change("site:1:a", stores=True))
        ask(Redis("stored"))
        assert site.open_circuits == set()

    def test_a_silent_server_is_one_outage_and_not_one_of_writes_too(self, site, ask):
        ask(Redis(silent()), change("site:1:a", stores=True))
        ask(Redis(silent()), change("site:1:b", stores=True))
        assert site.open_circuits == {"reach"}
        site.recover(site.reach)
        ask(Redis(silent()), change("site:1:a", stores=True))
        ask(Redis("stored"))
        assert site.open_circuits == set()

    def test_a_counter_that_it_has_not_got_may_have_been_filled_in_here(self, site, ask):
        site.writes.trip("OOM")
        assert ask(Redis(7), count()) == 7
        assert ask(Redis(None), count()) == "from memory"

    def test_a_command_of_a_raw_client_that_is_denied_changes_nothing_else(self, site, ask):
        """Who may not FLUSHDB may still store: what lies in memory is of another time."""
        denied = "NOPERM this user has no permissions to run the 'flushdb' command"
        ask(Redis(reply(denied)), Effect(Kind.READ, repeatable=False))
        assert not site.failover.fills_locally
        assert site.failover.clear
        ask(Redis(reply(denied.replace("flushdb", "set"))), fill())
        assert site.failover.fills_locally

    def test_a_store_that_keeps_nothing_has_nothing_to_add_to_what_redis_said(self, site, ask):
        """ON_OUTAGE = "raise", and Redis is full: deletes and counters work."""

        def refuse(*_args):
            raise StoreUnavailable("DELETE")

        site.writes.trip("OOM")
        assert ask(Redis(True), change(), fallback=refuse) is True
        assert ask(Redis(None), count(), fallback=refuse) is None

    def test_a_command_that_is_denied_is_said_once(self, site, ask, caplog):
        denied = reply("NOPERM this user has no permissions to run the 'get' command")
        for _ in range(3):
            ask(Redis(denied))
        assert [record.levelno for record in caplog.records] == [logging.ERROR]

    def test_a_straggler_of_the_last_outage_does_not_begin_the_next(self, site, ask):
        """It was sent before the server went, and fails when the server is back already."""

        def meanwhile(*_args):
            site.reach.trip("refused")
            site.recover(site.reach)
            raise broken()

        redis = Redis()
        redis.__class__ = type("Slow", (Redis,), {"__call__": lambda self, *args: meanwhile()})
        assert ask(redis) == "from memory"
        assert site.open_circuits == set()


class TestSecondTry:
    def test_a_connection_that_had_gone_stale_costs_nothing(self, site, ask):
        redis = Redis(broken(stale=True), "stored")
        assert ask(redis) == "stored"
        assert (len(redis.calls), site.renewals, site.open_circuits) == (2, 1, set())
        assert site.failover.counters.retries == 1

    def test_nor_does_it_cost_a_read(self, site, read):
        redis = Redis(broken(stale=True), "stored")
        assert read(redis) == "stored"
        assert (len(redis.calls), site.open_circuits) == (2, set())

    def test_there_is_no_third_try(self, site, ask):
        redis = Redis(broken(stale=True), broken(stale=True), "stored")
        assert ask(redis) == "from memory"
        assert len(redis.calls) == 2
        assert site.open_circuits == {"reach"}

    @pytest.mark.parametrize("error", [broken(), silent(), silent(executed=False), REFUSED], ids=repr)
    def test_nothing_else_is_tried_twice(self, ask, error):
        redis = Redis(error, "stored")
        assert ask(redis) == "from memory"
        assert len(redis.calls) == 1

    def test_a_counter_that_may_have_counted_is_not_sent_again(self, site, ask):
        redis = Redis(broken(stale=True, executed=None), 2)
        assert ask(redis, count()) == "from memory"
        assert len(redis.calls) == 1

    def test_a_counter_that_certainly_has_not_is(self, ask):
        redis = Redis(broken(stale=True, executed=False), 2)
        assert ask(redis, count()) == 2

    def test_a_replica_in_the_primarys_place_gets_new_connections_once(self, site, ask):
        """After a failover the old address may still be connected to the old server."""
        redis = Redis(reply("READONLY You can't write against a read only replica."), "OK")
        assert ask(redis, change()) == "OK"
        assert (site.renewals, site.journal.empty) == (1, True)

    def test_and_then_counts_as_unreachable(self, site, ask):
        readonly = reply("READONLY You can't write against a read only replica.")
        assert ask(Redis(readonly, readonly), change()) == "from memory"
        assert site.open_circuits == {"reach"}


class TestWhatRedisMissed:
    @pytest.mark.parametrize(
        "error",
        [
            REFUSED,
            silent(),
            silent(executed=False),
            broken(),
            PoolExhausted(50),
            reply(OOM),
            reply("NOPERM this user has no permissions to run the 'unlink' command"),
        ],
        ids=repr,
    )
    def test_a_change_without_a_positive_reply_is_written_down_whatever_the_reason(self, site, ask, error):
        ask(Redis(error), change("site:1:k"))
        assert site.journal.covers("site:1:k")

    def test_it_is_written_down_before_the_fallback_answers(self, site, ask):
        ask(
            Redis(REFUSED),
            change("site:1:k"),
            fallback=lambda: site.looks.append(site.journal.covers("site:1:k")),
        )
        assert site.looks[-1] is True

    def test_so_is_one_that_was_not_even_tried(self, site, ask):
        site.reach.trip("down")
        ask(Redis(), change("site:1:a", "site:1:b"))
        assert site.journal.take().names == ("site:1:a", "site:1:b")

    def test_what_came_while_an_outage_ended_is_kept_here_until_the_next_drain(self, site, ask):
        """It was written down after the batch that is drained was taken."""
        site.reach.trip("down")
        site.store.set("site:1:old", b"1", 10.0)
        ask(Redis(), change("site:1:new"), fallback=lambda: site.store.set("site:1:new", b"2", 10.0))
        site.failover.forget_local()
        assert site.store.get_many(["site:1:old", "site:1:new"]) == [None, b"2"]

    def test_so_is_a_pattern(self, site, ask):
        ask(Redis(REFUSED), Effect(Kind.CHANGE, (), Home(), pattern="site:1:chat:*"))
        assert site.journal.covers("site:1:chat:7")
        assert not site.journal.covers("site:1:user:7")

    def test_for_such_a_key_the_fallback_answers_though_redis_is_well(self, site, ask, read):
        ask(Redis(silent()), change("site:1:k"))
        assert read(redis := Redis(), "site:1:k") == "from memory"
        assert redis.calls == []

    def test_for_every_other_key_redis_does(self, site, ask, read):
        ask(Redis(silent()), change("site:1:k"))
        assert read(Redis("stored"), "site:1:other") == "stored"
        assert ask(Redis("stored"), Effect(Kind.READ, ("site:1:other",))) == "stored"

    def test_a_new_change_of_it_goes_to_both_and_the_fallback_answers(self, site, ask):
        """Redis may be trusted with it the next moment, and must have the newest then."""
        ask(Redis(silent()), change("site:1:k"))
        assert ask(redis := Redis(), change("site:1:k")) == "from memory"
        assert len(redis.calls) == 1

    def test_a_pattern_is_answered_by_redis_while_a_key_is_in_the_journal(self, site, ask):
        """Who deletes by pattern counts what memory held himself."""
        ask(Redis(silent()), change("site:1:k"))
        assert ask(Redis(5), Effect(Kind.CHANGE, (), Home(), pattern="site:1:*")) == 5

    def test_a_pattern_alone_goes_to_redis(self, site, ask):
        site.failover.clear = False
        assert ask(Redis(5), Effect(Kind.CHANGE, (), Home(), pattern="site:1:*")) == 5

    @pytest.mark.parametrize(
        "effect", [READ, Effect(Kind.READ, ("site:1:k",)), fill()], ids=["READ", "read", "fill"]
    )
    def test_what_was_no_change_leaves_nothing_behind(self, site, ask, effect):
        ask(Redis(REFUSED), effect)
        ask(Redis(), effect)
        assert site.journal.empty

    def test_a_counter_that_was_certainly_not_reached_keeps_its_delta(self, site, ask):
        ask(Redis(silent(executed=False)), count(5))
        site.reach.trip("down")
        ask(Redis(), count(2))
        assert dict(site.journal.take().deltas) == {"site:1:n": 7}

    def test_one_that_may_have_counted_does_not(self, site, ask):
        ask(Redis(silent(executed=None)), count(5))
        assert site.journal.empty

    def test_somebody_comes_to_drain_it_though_no_circuit_is_open(self, site, ask):
        ask(Redis(PoolExhausted(50)), change())
        assert site.healed.wait(5)

    def test_after_the_drain_redis_is_trusted_again(self, site, ask, read):
        ask(Redis(silent()), change("site:1:k"))
        assert site.failover.clear is False
        site.journal.done(site.journal.take())
        assert site.failover.settle() is True
        assert read(Redis("stored"), "site:1:k") == "stored"

    def test_which_names_are_not_trusted_can_be_asked(self, site, ask):
        assert site.failover.untrusted(("site:1:a", "site:1:b")) == ()
        ask(Redis(silent()), change("site:1:b"))
        assert site.failover.untrusted(("site:1:a", "site:1:b")) == ("site:1:b",)

    def test_what_another_process_left_is_not_served_from_redis(self, site, read):
        site.journal.add(["site:1:k"], NAMESPACE)
        site.failover.distrust()
        assert read(Redis(), "site:1:k") == "from memory"
        assert site.healed.wait(5)

    def test_a_change_under_way_when_it_was_found_is_not_the_last_word(self, site, ask):
        """The route is chosen before the call, and the journal grows during it."""
        redis = Redis()
        site.journal.add(["site:1:k"], NAMESPACE)
        site.failover.settle()
        assert ask(redis, change("site:1:k")) == "from memory"
        assert len(redis.calls) == 1


class SoftTimeLimitExceeded(Exception):
    """What celery's signal handler throws into whatever a task is doing."""


class TestInterruptions:
    def test_what_a_signal_handler_throws_into_a_change_is_raised_and_the_change_written_down(
        self, site, ask
    ):
        """It was on its way: Redis may have it or not."""
        with pytest.raises(SoftTimeLimitExceeded):
            ask(Redis(SoftTimeLimitExceeded()), change())
        assert site.journal.covers("site:1:k")
        assert site.open_circuits == set()

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
    def test_an_interrupted_caller_is_interrupted_and_its_change_is_written_down(self, site, error):
        """Nobody knows what became of the command."""
        with pytest.raises(type(error)):
            site.failover.run(Redis(error), from_memory, change("site:1:k"))
        assert site.journal.covers("site:1:k")
        assert site.open_circuits == set()

    def test_a_cancelled_task_is_cancelled_and_its_change_is_written_down(self, site):
        async def never(*_args):
            await asyncio.get_running_loop().create_future()

        async def main():
            task = asyncio.ensure_future(site.failover.arun(never, from_memory, change("site:1:k")))
            await asyncio.sleep(0)
            task.cancel()
            await task

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        assert site.journal.covers("site:1:k")
        assert site.open_circuits == set()

    def test_a_read_that_was_interrupted_leaves_nothing(self, site, read):
        with pytest.raises(SystemExit):
            read(Redis(SystemExit(1)))
        assert site.journal.empty


class TestReading:
    def test_memory_answers_when_redis_fails(self, site, read):
        assert read(Redis(REFUSED)) == "from memory"
        assert site.failover.counters.fallback_ops == 1

    def test_memory_is_asked_for_the_name(self, read):
        assert read(Redis(REFUSED), "site:1:k", lambda name: f"local {name}") == "local site:1:k"
        assert read(Redis(), "site:1:j", lambda name: f"local {name}") == "local site:1:j"

    def test_redis_gets_the_packed_command(self, read):
        redis = Redis()
        read(redis)
        assert redis.calls == [b"GET"]

    def test_a_wrong_type_is_raised(self, read):
        with pytest.raises(redis_errors.ResponseError, match="wrong kind"):
            read(Redis(reply("WRONGTYPE Operation against a key holding the wrong kind of value")))

    def test_it_looks_at_the_hosts_journals_too(self, site, read):
        read(Redis())
        read(Redis())
        assert len(site.looks) == 1
        site.clock.advance(1)
        read(Redis())
        assert len(site.looks) == 2

    def test_a_look_that_finds_something_counts_for_this_very_read(self, site, read):
        def found(now):
            site.journal.add(["site:1:k"], NAMESPACE)
            site.failover.distrust()

        site.failover._watch = found
        site.clock.advance(1)
        assert read(Redis("stale")) == "from memory"


class TestOutage:
    def test_what_memory_held_from_before_is_dropped_when_it_begins(self, site, ask):
        """Others may have written newer to Redis since."""
        site.store.set("site:1:k", b"of last week", None)
        ask(Redis(REFUSED))
        assert len(site.store) == 0

    def test_what_a_single_failure_left_in_memory_is_not_the_next_ones_answer(self, site, ask):
        def store(*_args):
            site.store.set("site:1:k", b"filled", None, nx=True)

        ask(Redis(silent()), fill(), fallback=store)
        ask(Redis())
        ask(Redis(silent()), Effect(Kind.READ, ("site:1:k",)), fallback=lambda: site.looks.append("asked"))
        assert site.store.get("site:1:k") is None

    @pytest.mark.parametrize("effect", [count(), fill("site:1:n")], ids=["counter", "add"])
    def test_a_number_or_a_yes_that_was_given_out_at_the_first_timeout_stays(self, site, ask, effect):
        """The second timeout opens the circuit; who met it must not get the same answer once more."""
        add = partial(site.store.set, "site:1:n", b"1", 10.0, nx=True)
        assert ask(Redis(silent()), effect, fallback=add) is True
        assert ask(Redis(silent()), effect, fallback=add) is False
        assert site.open_circuits == {"reach"}

    def test_but_not_when_redis_has_answered_meanwhile(self, site, ask):
        add = partial(site.store.set, "site:1:n", b"1", 10.0, nx=True)
        ask(Redis(silent()), count(), fallback=add)
        ask(Redis("stored"))
        ask(Redis(silent()))
        ask(Redis(silent()))
        assert site.store.get("site:1:n") is None

    def test_a_counter_whose_delta_is_on_its_way_is_not_begun_anew(self, site, ask):
        """Between the journal that has let go of it and the server that has not got it yet."""
        site.store.set("site:1:n", b"7", 10.0)
        incr = partial(site.store.incr, "site:1:n", 1, create_ttl=10.0)
        with site.failover.keeping("site:1:n"):
            assert ask(Redis(PoolExhausted(50)), count(), fallback=incr) == 8
        site.journal.done(site.journal.take())
        assert ask(Redis(PoolExhausted(50)), count(), fallback=incr) == 1

    def test_a_counter_at_the_door_that_is_closed_counts_on(self, site):
        """Whoever fails after the one that opened the circuit finds what that one has counted."""
        not_redis = redis_errors.InvalidResponse("Protocol error, got 'H' as reply type byte")
        incr = partial(site.store.incr, "site:1:n", 1, create_ttl=10.0)
        counted: list[int] = []

        def fails_second() -> None:
            counted.append(site.failover.run(Redis(not_redis), incr, count()))
            raise not_redis

        counted.append(site.failover.run(fails_second, incr, count()))
        assert site.open_circuits == {"access"}
        assert counted == [1, 2]

    def test_what_was_written_in_place_of_redis_stays(self, site, ask):
        def store(*_args):
            site.store.set("site:1:k", b"new", None)

        ask(Redis(silent()), change("site:1:k"), fallback=store)
        ask(Redis())
        ask(Redis(silent()), change("site:1:k"))
        assert site.store.get("site:1:k") == b"new"

    def test_while_only_writes_are_stopped_memory_keeps_what_it_holds(self, site, ask):
        ask(Redis(silent()), change("site:1:k"), fallback=lambda: site.store.set("site:1:k", b"new", None))
        ask(Redis(reply(OOM)), change("site:1:other", stores=True))
        assert site.store.get("site:1:k") == b"new"

    def test_deletes_of_the_last_seconds_are_remembered_from_when_it_began(self, site, ask):
        site.journal.note_deleted("site:1:long ago", site.clock.monotonic())
        site.clock.advance(60)
        site.journal.note_deleted("site:1:just now", site.clock.monotonic())
        ask(Redis(REFUSED))
        site.clock.advance(60)
        assert site.failover.recent_deletes == ("site:1:just now",)

    def test_a_failed_probe_does_not_begin_it_anew(self, site, ask):
        ask(Redis(REFUSED))
        site.store.set("site:1:k", b"written in the outage", None)
        site.clock.advance(5)
        site.reach.begin_probe()
        site.reach.probe_failed("still down")
        assert site.store.get("site:1:k") == b"written in the outage"

    def test_it_knows_how_many_operations_it_served(self, site, ask):
        ask(Redis(silent()))
        ask(Redis(silent()))
        before = site.failover.served_locally
        for _ in range(5):
            ask(Redis())
        assert site.failover.served_locally - before == 5

    def test_somebody_is_sent_to_look_when_it_begins(self, site, ask):
        ask(Redis(REFUSED))
        assert site.healed.wait(5)

    def test_while_it_lasts_operations_look_after_the_prober(self, site, ask):
        """A thread that died in a fork, or never got to run, must not keep the process degraded for ever."""
        ask(Redis(REFUSED))
        assert site.healed.wait(5)
        site.wait_for_the_thread_to_end()
        site.healed.clear()
        site.clock.advance(60)
        ask(Redis())
        assert site.healed.wait(5)

    def test_redis_answers_when_it_is_over(self, site, ask):
        ask(Redis(REFUSED), change())
        site.recover(site.reach)
        assert site.failover.clear
        assert ask(Redis("stored")) == "stored"

    def test_the_shortcut_stays_closed_while_any_circuit_is_open(self, site):
        site.reach.trip("down")
        site.writes.trip("OOM")
        site.recover(site.reach)
        assert site.failover.clear is False
        site.recover(site.writes)
        assert site.failover.clear is True

    def test_a_failover_made_during_an_outage_knows_of_it(self, site):
        site.reach.trip("down")
        site.journal.add(["site:1:k"], NAMESPACE)
        again = Failover(
            reach=site.reach,
            access=site.access,
            writes=site.writes,
            journal=site.journal,
            local=site.store,
            prober=site.prober,
            classify=classify,
            renew=lambda: None,
            watch=lambda now: None,
            counters=Counters(),
        )
        assert again.clear is False


def test_a_forked_child_looks_at_the_hosts_journals_before_anything_else(site):
    site.failover.run(Redis(), from_memory)

    def look():
        site.journal.after_fork()
        site.failover.after_fork()
        site.failover.run(Redis(), from_memory, change())
        return len(site.looks)

    with site.journal.gate:  # as another thread of the parent may have it
        assert in_child(look) == 2


def test_an_effect_of_nobody_in_particular_has_no_namespace():
    assert Effect(Kind.CHANGE, ("k",)).namespace == ""
    assert change().namespace == NAMESPACE
