"""``CircuitBreaker``: when it opens, who may probe, how long that backs off, and who is told."""

from __future__ import annotations

import random
import threading

import pytest

from redis_infra.instrumentation import reset_log, subscribe, unsubscribe
from redis_infra.resilience.breaker import FLAP_WINDOW, CircuitBreaker, State
from redis_infra.testing import FakeClock
from tests.forking import in_child

SERVER = "redis://a:6379"


@pytest.fixture(autouse=True)
def _quiet_log():
    reset_log()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(SERVER, timeouts=2, probe_base=0.25, probe_cap=5.0, clock=clock)


@pytest.fixture
def transitions():
    """Before and after of every transition of the process."""
    told: list[tuple[str, str]] = []

    def observe(change):
        told.append((change.before, change.after))

    subscribe(observe)
    yield told
    unsubscribe(observe)


def opened(breaker):
    breaker.trip("refused")
    return breaker


def half_opened(breaker, clock):
    opened(breaker)
    clock.advance(breaker.probe_cap)
    assert breaker.begin_probe()
    return breaker


def recovering(breaker, clock):
    assert half_opened(breaker, clock).begin_recovery()
    return breaker


def at_once(count, action):
    """Do it in so many threads at the same moment; return what each gave."""
    barrier, results = threading.Barrier(count, timeout=10), []

    def run():
        barrier.wait()
        results.append(action())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


class TestOpening:
    def test_it_begins_closed(self, breaker):
        assert breaker.state is State.CLOSED
        assert breaker.closed

    def test_one_timeout_does_not_open_it(self, breaker):
        assert breaker.record_timeout("slow", breaker.epoch) is False
        assert breaker.closed

    def test_the_second_timeout_in_a_row_does(self, breaker):
        breaker.record_timeout("slow", breaker.epoch)
        assert breaker.record_timeout("slow", breaker.epoch) is True
        assert (breaker.state, breaker.closed, breaker.cause) == (State.OPEN, False, "slow")

    def test_a_success_in_between_begins_the_row_anew(self, breaker):
        breaker.record_timeout("slow", breaker.epoch)
        breaker.record_success()
        breaker.record_timeout("slow", breaker.epoch)
        assert breaker.closed

    def test_anything_harder_opens_it_at_once(self, breaker):
        assert breaker.trip("refused") is True
        assert not breaker.closed

    def test_it_opens_once(self, breaker):
        assert at_once(16, lambda: breaker.trip("refused")).count(True) == 1

    def test_timeouts_of_many_threads_open_it_once(self, breaker):
        epoch = breaker.epoch
        assert at_once(16, lambda: breaker.record_timeout("slow", epoch)).count(True) == 1

    def test_it_says_since_when_by_both_clocks(self, breaker, clock):
        opened(breaker)
        assert (breaker.opened_at, breaker.opened_at_wall) == (clock.monotonic(), clock.time())

    def test_a_straggler_from_before_an_outage_does_not_count(self, breaker, clock):
        """It began before the server went and came back, and says nothing about the server of now."""
        epoch = breaker.epoch
        recovering(breaker, clock).close()
        assert breaker.record_timeout("slow", epoch) is False
        assert breaker.trip("reset", epoch) is False
        assert (breaker.closed, breaker.strikes) == (True, 0)

    def test_a_straggler_while_open_changes_nothing(self, breaker):
        epoch = breaker.epoch
        opened(breaker)
        assert breaker.record_timeout("slow", epoch) is False
        assert breaker.cause == "refused"

    def test_strikes_are_forgotten_when_it_opens(self, breaker, clock):
        breaker.record_timeout("slow", breaker.epoch)
        recovering(breaker, clock).close()
        assert breaker.record_timeout("slow", breaker.epoch) is False


class TestProbing:
    def test_no_probe_is_due_while_closed(self, breaker, clock):
        clock.advance(3600)
        assert not breaker.probe_due()

    def test_the_first_is_due_within_the_base(self, breaker, clock):
        opened(breaker)
        assert not breaker.probe_due()
        clock.advance(breaker.probe_base)
        assert breaker.probe_due()

    def test_exactly_one_prober_gets_through(self, breaker, clock):
        opened(breaker)
        clock.advance(breaker.probe_base)
        assert at_once(16, breaker.begin_probe).count(True) == 1
        assert breaker.state is State.HALF_OPEN

    def test_everybody_else_is_still_refused_meanwhile(self, breaker, clock):
        assert not half_opened(breaker, clock).closed
        assert breaker.begin_recovery()
        assert not breaker.closed

    def test_only_a_prober_recovers(self, breaker):
        assert opened(breaker).begin_recovery() is False

    @pytest.mark.parametrize("on_the_way", [half_opened, recovering])
    def test_a_failed_probe_opens_it_again(self, breaker, clock, on_the_way):
        on_the_way(breaker, clock).probe_failed("still loading")
        assert (breaker.state, breaker.cause) == (State.OPEN, "still loading")
        assert breaker.next_probe_at > clock.monotonic()

    @pytest.mark.parametrize("state", [State.CLOSED, State.OPEN])
    def test_a_probe_that_nobody_made_cannot_fail(self, breaker, state, transitions):
        if state is State.OPEN:
            opened(breaker)
        del transitions[:]
        breaker.probe_failed("a straggler")
        assert (breaker.state, transitions) == (state, [])

    def test_probes_back_off_to_the_cap_with_jitter(self, breaker, clock):
        random.seed(7)
        opened(breaker)
        waits = [breaker.next_probe_at - clock.monotonic()]
        for _ in range(40):
            clock.advance(breaker.probe_cap)
            breaker.begin_probe()
            breaker.probe_failed("down")
            waits.append(breaker.next_probe_at - clock.monotonic())
        full = [min(5.0, 0.25 * 2.0**number) for number in range(41)]
        assert all(most / 2 <= wait <= most for wait, most in zip(waits, full, strict=True))
        assert len(set(waits[-20:])) == 20

    def test_an_outage_of_a_week_does_not_overflow(self, breaker, clock):
        opened(breaker)
        breaker._failed_probes = 120_000
        clock.advance(breaker.probe_cap)
        breaker.begin_probe()
        breaker.probe_failed("down")
        assert breaker.next_probe_at - clock.monotonic() <= breaker.probe_cap

    def test_a_server_that_flaps_does_not_get_a_fresh_backoff(self, breaker, clock):
        for _ in range(6):
            recovering(breaker, clock).close()
        opened(breaker)
        assert breaker.next_probe_at - clock.monotonic() >= breaker.probe_cap / 2

    def test_an_outage_much_later_does(self, breaker, clock):
        for _ in range(6):
            recovering(breaker, clock).close()
        clock.advance(FLAP_WINDOW)
        opened(breaker)
        assert breaker.next_probe_at - clock.monotonic() <= breaker.probe_base


class TestClosing:
    def test_recovery_closes_it(self, breaker, clock):
        assert recovering(breaker, clock).close() is True
        assert (breaker.state, breaker.closed) == (State.CLOSED, True)
        assert (breaker.opened_at, breaker.opened_at_wall) == (None, None)

    def test_closing_what_is_closed_is_nothing(self, breaker, transitions):
        assert breaker.close() is False
        assert transitions == []


class TestHolding:
    def test_held_open_it_stays_open_whatever_time_passes(self, breaker, clock):
        breaker.hold_open("a test")
        clock.advance(3600)
        assert not breaker.probe_due()
        assert not breaker.begin_probe()
        assert breaker.close() is False

    def test_a_circuit_that_was_open_can_be_held_too(self, breaker, clock):
        opened(breaker).hold_open("a test")
        clock.advance(3600)
        assert not breaker.begin_probe()
        assert breaker.cause == "refused"

    def test_once_released_a_probe_is_due_at_once(self, breaker):
        breaker.hold_open("a test")
        breaker.release()
        assert breaker.probe_due()
        assert breaker.begin_probe()


class TestTelling:
    def test_observers_see_the_whole_way(self, breaker, clock, transitions):
        half_opened(breaker, clock).probe_failed("loading")
        clock.advance(5)
        breaker.begin_probe()
        breaker.begin_recovery()
        breaker.close()
        assert transitions == [
            ("closed", "open"),
            ("open", "half_open"),
            ("half_open", "open"),
            ("open", "half_open"),
            ("half_open", "recovering"),
            ("recovering", "closed"),
        ]

    def test_they_learn_what_the_outage_was(self, breaker, clock):
        told = []
        subscribe(told.append)
        observer = told.append
        try:
            opened(breaker)
            clock.advance(12)
            breaker.begin_probe()
            breaker.close(served_locally=7, drained=3)
        finally:
            unsubscribe(observer)
        first, last = told[0], told[-1]
        assert (first.server, first.circuit, first.cause, first.lasted) == (SERVER, "reach", "refused", 0.0)
        assert (last.lasted, last.served_locally, last.drained) == (12.0, 7, 3)

    def test_listeners_tell_an_opening_from_a_failed_probe(self, clock):
        told = []
        breaker = CircuitBreaker(
            SERVER, clock=clock, on_change=lambda each: told.append((each.state, each.opened_just_now))
        )
        half_opened(breaker, clock).probe_failed("down")
        assert told == [(State.OPEN, True), (State.HALF_OPEN, False), (State.OPEN, False)]

    def test_no_lock_is_held_meanwhile(self, clock):
        """A listener may ask, and change, the circuit that it is told of."""
        breaker = CircuitBreaker(SERVER, clock=clock)
        breaker.listeners.append(lambda each: each.probe_failed("asked from inside"))
        thread = threading.Thread(target=lambda: half_opened(breaker, clock), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
        assert breaker.state is State.OPEN


@pytest.mark.parametrize("on_the_way", [half_opened, recovering])
def test_in_a_forked_child_the_parents_probe_is_nobodys(breaker, clock, on_the_way):
    on_the_way(breaker, clock)

    def probe():
        breaker.after_fork()
        return breaker.state, breaker.begin_probe()

    assert in_child(probe) == (State.OPEN, True)


def test_a_forked_child_gets_a_lock_of_its_own(breaker):
    def trip():
        breaker.after_fork()
        return breaker.trip("refused")

    with breaker._lock:  # as another thread of the parent may have it
        assert in_child(trip) is True
    assert breaker.closed


def test_knows_whether_it_was_opened_by_silence():
    """Who was told no may still be asked other things; who waited in vain may not."""
    breaker = CircuitBreaker("redis://a", timeouts=1)
    breaker.record_timeout("silence", breaker.epoch)
    assert breaker.hangs
    breaker.close()
    breaker.trip("OOM")
    assert not breaker.hangs
