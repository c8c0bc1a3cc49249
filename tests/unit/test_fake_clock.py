"""``FakeClock``: time that moves when the test says so."""

from __future__ import annotations

import threading

import pytest

from redis_infra.clock import Clock
from redis_infra.testing import FakeClock


def readings(clock: Clock) -> tuple[float, float]:
    return clock.monotonic(), clock.time()


def test_it_stands_still():
    clock = FakeClock(monotonic=5.0, time=100.0)
    assert readings(clock) == readings(clock) == (5.0, 100.0)


def test_advance_moves_both_readings():
    clock = FakeClock(monotonic=5.0, time=100.0)
    clock.advance(2.5)
    assert readings(clock) == (7.5, 102.5)


def test_time_does_not_go_back():
    clock = FakeClock()
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-0.1)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_jump_moves_the_wall_clock_alone(seconds):
    """As NTP does: whatever measures durations by the wall clock is found out."""
    clock = FakeClock(monotonic=5.0, time=10_000.0)
    clock.jump(seconds)
    assert readings(clock) == (5.0, 10_000.0 + seconds)


def test_the_two_readings_differ():
    """Code that compares one with the other must not pass by chance."""
    clock = FakeClock()
    assert clock.time() - clock.monotonic() > 1_000_000


def test_no_advance_is_lost_between_threads():
    clock = FakeClock(monotonic=0.0, time=0.0)
    barrier = threading.Barrier(8)

    def advance():
        barrier.wait()
        for _ in range(2_000):
            clock.advance(1)

    threads = [threading.Thread(target=advance) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert readings(clock) == (16_000, 16_000)


def test_the_fixture_is_one(fake_clock):
    assert isinstance(fake_clock, FakeClock)
