"""``Prober``: a thread that is there only while something is wrong, and requests that stand in for it."""

from __future__ import annotations

import logging
import threading

import pytest

from redis_infra.resilience.prober import INLINE_BUDGET, OVERDUE, Prober
from redis_infra.testing import FakeClock
from tests.forking import in_child

PATIENCE = 10
"""Seconds after which something that should happen at once is taken for never."""


class Heal:
    """What is healed: gives its answers in turn, then None; knows who called, and with which budget."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.budgets = []
        self.threads = []
        self.called = threading.Semaphore(0)

    def __call__(self, budget):
        self.budgets.append(budget)
        self.threads.append(threading.current_thread())
        answer = self.answers.pop(0) if self.answers else None
        self.called.release()
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def wait(self, times=1):
        for _ in range(times):
            assert self.called.acquire(timeout=PATIENCE), f"called {len(self.budgets)} times"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make(clock):
    """Make a prober of a `Heal` with these answers."""
    made = []

    def make(*answers):
        heal = Heal(*answers)
        made.append(Prober(heal, "redis://a:6379", clock=clock))
        return made[-1], heal

    yield make
    for prober in made:
        thread = prober._thread
        prober.retire()
        if thread is not None:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def sleeping(prober, heal):
    """A prober whose thread has done a round, and waits for the next."""
    prober.wake()
    heal.wait()
    with prober._round:
        return prober, heal


def ended(prober):
    """Whether its thread ends, after waiting for that."""
    thread = prober._thread
    if thread is not None:
        thread.join(PATIENCE)
    return not prober.alive


@pytest.fixture
def no_threads(monkeypatch):
    """A container's limit: every new thread is refused."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


class TestThread:
    def test_there_is_none_before_something_is_wrong(self, make):
        prober, heal = make()
        assert not prober.alive
        assert heal.budgets == []

    def test_it_heals_and_ends_when_all_is_well(self, make):
        prober, heal = make(None)
        prober.wake()
        heal.wait()
        assert ended(prober)
        assert heal.budgets == [None]

    def test_it_comes_again_until_all_is_well(self, make):
        prober, heal = make(0.0, 0.001, 0.0, None)
        prober.wake()
        heal.wait(4)
        assert ended(prober)
        assert len(heal.budgets) == 4

    def test_it_does_not_keep_the_process_from_ending_and_says_whose_it_is(self, make):
        prober, heal = make(None)
        prober.wake()
        heal.wait()
        thread = heal.threads[0]
        assert (thread.daemon, thread.name) == (True, "redis_infra-prober-redis://a:6379")

    def test_there_is_one_however_often_it_is_woken(self, make):
        prober, heal = make(60.0, 60.0)
        prober.wake()
        heal.wait()
        prober.wake()
        heal.wait()
        assert heal.threads[0] is heal.threads[1]

    def test_waking_cuts_its_wait_short(self, make):
        prober, heal = make(3600.0, None)
        prober.wake()
        heal.wait()
        prober.wake()
        heal.wait()
        assert ended(prober)

    def test_waking_during_the_last_round_is_not_lost(self, make):
        """What went wrong meanwhile would otherwise have nobody."""
        prober, heal = make()
        heal.answers.append(prober.wake)
        prober.wake()
        heal.wait(2)
        assert ended(prober)

    def test_a_bug_does_not_end_the_only_one_who_brings_redis_back(self, make, caplog):
        prober, heal = make(LookupError("a bug"), None)
        prober.wake()
        heal.wait()
        prober.wake()
        heal.wait()
        assert ended(prober)
        assert [record.getMessage() for record in caplog.records] == ["redis_infra.prober_failed"]

    def test_after_it_has_ended_another_one_can_be_woken(self, make):
        prober, heal = make()
        for _ in range(3):
            prober.wake()
            heal.wait()
            assert ended(prober)
        assert len(set(heal.threads)) == 3

    def test_where_none_can_be_had_nothing_is_raised(self, make, no_threads, caplog):
        caplog.set_level(logging.DEBUG)
        prober, heal = make()
        prober.wake()
        assert not prober.alive
        assert heal.budgets == []
        assert [record.getMessage() for record in caplog.records] == ["redis_infra.prober_not_started"]


class TestRounds:
    def test_one_can_be_done_here_and_now(self, make):
        prober, heal = make(2.5)
        assert prober.run_once(0.5) == 2.5
        assert heal.budgets == [0.5]
        assert heal.threads == [threading.current_thread()]

    def test_they_never_overlap(self, make, clock):
        """Who comes during one learns when the next is due, and does nothing."""
        prober, heal = make(4.0)
        prober.run_once()
        answers = []
        heal.answers.append(lambda: answers.append(prober.run_once()))
        clock.advance(1)
        prober.run_once()
        assert (len(heal.budgets), answers) == (2, [3.0])

    def test_one_that_failed_does_not_bar_the_next(self, make):
        prober, _ = make(LookupError("a bug"), 1.0)
        with pytest.raises(LookupError):
            prober.run_once()
        assert prober.run_once() == 1.0


class TestLookingAfterIt:
    def test_nothing_is_done_before_a_round_is_due(self, make, clock):
        prober, heal = make(5.0)
        prober.run_once()
        prober.look_after(clock.monotonic() + 5.0)
        assert len(heal.budgets) == 1
        assert not prober.alive

    def test_a_thread_that_is_gone_is_replaced(self, make, clock):
        prober, heal = make(5.0, None)
        prober.run_once()
        clock.advance(5.01)
        prober.look_after(clock.monotonic())
        heal.wait(2)
        assert heal.threads[1] is not threading.current_thread()

    def test_one_that_does_not_get_to_run_is_stood_in_for(self, make, clock):
        """A uWSGI worker without enable-threads: it is alive, and sleeps."""
        prober, heal = sleeping(*make(3600.0, None))
        clock.advance(3600 + OVERDUE + 0.01)
        prober.look_after(clock.monotonic())
        assert heal.budgets == [None, INLINE_BUDGET]
        assert heal.threads[1] is threading.current_thread()

    def test_one_that_is_only_a_little_late_is_not(self, make, clock):
        prober, heal = sleeping(*make(3600.0))
        clock.advance(3600 + OVERDUE / 2)
        prober.look_after(clock.monotonic())
        assert heal.budgets == [None]

    def test_an_event_loop_never_waits_where_a_thread_is_at_work(self, make, clock):
        prober, heal = sleeping(*make(3600.0))
        clock.advance(7200)
        prober.look_after(clock.monotonic(), may_wait=False)
        assert heal.budgets == [None]

    @pytest.mark.parametrize("may_wait", [True, False], ids=["sync", "async"])
    def test_where_no_thread_can_be_had_whoever_comes_heals(self, make, clock, no_threads, may_wait):
        """Or the process would be degraded for ever."""
        prober, heal = make(5.0, None)
        prober.look_after(clock.monotonic(), may_wait=may_wait)
        clock.advance(5.01)
        prober.look_after(clock.monotonic(), may_wait=may_wait)
        assert heal.budgets == [INLINE_BUDGET] * 2

    def test_and_not_more_often_than_it_is_due(self, make, clock, no_threads):
        prober, heal = make(5.0, 5.0)
        for _ in range(10):
            prober.look_after(clock.monotonic())
            clock.advance(1)
        assert len(heal.budgets) == 2


class TestFork:
    def test_the_parents_thread_is_not_the_childs(self, make):
        prober, _ = sleeping(*make(3600.0))
        assert in_child(lambda: prober.alive) is False
        assert prober.alive

    @pytest.mark.parametrize("told", [True, False], ids=["told of the fork", "not told"])
    def test_the_child_starts_its_own(self, make, clock, told):
        prober, heal = sleeping(*make(3600.0, None))
        clock.advance(7200)

        def look():
            if told:
                prober.after_fork()
            prober.look_after(clock.monotonic())
            heal.wait()
            return ended(prober)

        assert in_child(look)

    def test_a_round_that_the_parent_was_doing_does_not_bar_the_childs(self, make):
        prober, heal = make()

        def fork():
            def heal_there():
                prober.after_fork()
                heal.answers = [7.0]
                return prober.run_once()

            return in_child(heal_there)

        heal.answers.append(fork)
        assert prober.run_once() == 7.0


class TestRetiring:
    def test_the_thread_ends_however_long_it_meant_to_wait(self, make):
        prober, _ = sleeping(*make(3600.0))
        thread = prober._thread
        prober.retire()
        thread.join(PATIENCE)
        assert not prober.alive

    def test_nothing_is_healed_any_more(self, make):
        prober, heal = make()
        prober.retire()
        prober.wake()
        assert ended(prober)
        assert prober.run_once() is None
        assert heal.budgets == []
