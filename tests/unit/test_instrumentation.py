"""Counters, observers, and what an outage writes into the log."""

from __future__ import annotations

import logging

import pytest

from redis_infra import instrumentation
from redis_infra.instrumentation import (
    Counters,
    Transition,
    TransitionLog,
    notify,
    reset_log,
    subscribe,
    unsubscribe,
)
from redis_infra.testing import FakeClock


def transition(before="closed", after="open", *, server="redis://a:6379", circuit="reach", **facts):
    return Transition(server=server, circuit=circuit, before=before, after=after, **facts)


OPENED = transition(cause="ConnectionRefusedError")
CLOSED = transition("recovering", "closed", lasted=1.5, served_locally=20, drained=3)


@pytest.fixture
def seen():
    """What an observer is told, while it is subscribed."""
    told: list[Transition] = []
    subscribe(told.append)
    observer = instrumentation._observers[-1]
    yield told
    unsubscribe(observer)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def log(clock):
    return TransitionLog(clock=clock)


@pytest.fixture
def lines(caplog):
    """Level and message of what was logged so far."""
    caplog.set_level(logging.DEBUG, logger="redis_infra.instrumentation")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


class TestCounters:
    def test_they_begin_at_nothing(self):
        assert set(Counters().snapshot().values()) == {0}

    def test_a_snapshot_does_not_go_on_counting(self):
        counters = Counters()
        counters.hits += 2
        snapshot = counters.snapshot()
        counters.hits += 1
        assert snapshot["hits"] == 2


class TestObservers:
    def test_each_transition_is_told(self, seen):
        notify(OPENED)
        notify(CLOSED)
        assert seen == [OPENED, CLOSED]

    def test_subscribing_twice_is_as_once(self):
        told: list[Transition] = []
        observer = told.append
        try:
            subscribe(observer)
            subscribe(observer)
            notify(OPENED)
        finally:
            unsubscribe(observer)
        assert told == [OPENED]

    def test_nobody_is_told_after_unsubscribing(self):
        told: list[Transition] = []
        observer = told.append
        subscribe(observer)
        unsubscribe(observer)
        notify(OPENED)
        assert told == []

    def test_unsubscribing_a_stranger_is_nothing(self):
        unsubscribe(lambda change: None)

    def test_one_that_raises_is_logged_and_the_others_are_told(self, seen, caplog):
        def broken(change):
            raise LookupError("a bug of the site")

        subscribe(broken)
        instrumentation._observers.reverse()  # the broken one first
        try:
            notify(OPENED)
        finally:
            unsubscribe(broken)
        assert seen == [OPENED]
        assert [record.getMessage() for record in caplog.records if record.exc_info] == [
            "redis_infra.observer_failed"
        ]

    def test_one_may_unsubscribe_itself_while_it_is_told(self, seen):
        def once(change):
            unsubscribe(once)

        subscribe(once)
        notify(OPENED)
        notify(CLOSED)
        assert seen == [OPENED, CLOSED]
        assert once not in instrumentation._observers


class TestLog:
    def test_an_outage_is_one_warning_and_one_info(self, log, lines):
        for change in (
            OPENED,
            transition("open", "half_open"),
            transition("half_open", "open"),
            transition("open", "half_open"),
            transition("half_open", "recovering"),
            CLOSED,
        ):
            log(change)
        assert lines() == [
            (
                "WARNING",
                "redis_infra.circuit_opened server=redis://a:6379 circuit=reach cause=ConnectionRefusedError",
            ),
            (
                "INFO",
                "redis_infra.circuit_closed server=redis://a:6379 circuit=reach "
                "lasted=1.50s served_locally=20 drained=3",
            ),
        ]

    def test_a_wrong_password_is_an_error_because_somebody_has_to_act(self, log, lines):
        log(transition(circuit="access", cause="WRONGPASS"))
        assert [level for level, _ in lines()] == ["ERROR"]

    def test_the_facts_are_on_the_record_for_machines(self, log, caplog):
        caplog.set_level(logging.INFO)
        log(OPENED)
        log(CLOSED)
        opened, closed = (vars(record) for record in caplog.records)
        assert opened["redis_infra.cause"] == "ConnectionRefusedError"
        assert closed["redis_infra.lasted"] == 1.5
        assert closed["redis_infra.drained"] == 3

    def test_a_server_that_flaps_gets_one_pair_an_interval(self, log, lines, clock):
        for _ in range(10):
            log(OPENED)
            clock.advance(1)
            log(CLOSED)
            clock.advance(1)
        assert [level for level, _ in lines()] == ["WARNING", "INFO"]

    def test_the_next_interval_has_a_pair_of_its_own_and_says_what_was_left_out(self, log, caplog, clock):
        caplog.set_level(logging.INFO)
        for _ in range(3):
            log(OPENED)
            log(CLOSED)
        clock.advance(30)
        log(OPENED)
        log(CLOSED)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2
        assert [vars(record)["redis_infra.suppressed"] for record in caplog.records] == [0, 0, 2, 0]

    def test_an_outage_longer_than_the_interval_still_says_that_it_is_over(self, log, lines, clock):
        log(OPENED)
        clock.advance(3600)
        log(CLOSED)
        assert [level for level, _ in lines()] == ["WARNING", "INFO"]

    @pytest.mark.parametrize("other", [{"server": "redis://b:6379"}, {"circuit": "writes"}], ids=str)
    def test_servers_and_circuits_do_not_silence_each_other(self, log, lines, other):
        log(OPENED)
        log(transition(**other))
        assert [level for level, _ in lines()] == ["WARNING", "WARNING"]

    def test_after_a_reset_the_same_outage_is_said_again(self, log, lines):
        log(OPENED)
        log.reset()
        log(OPENED)
        assert [level for level, _ in lines()] == ["WARNING", "WARNING"]

    def test_the_process_logs_without_being_asked_to(self, lines):
        reset_log()
        notify(transition(server="redis://logged:6379"))
        reset_log()
        notify(transition(server="redis://logged:6379"))
        assert [level for level, _ in lines()] == ["WARNING", "WARNING"]
