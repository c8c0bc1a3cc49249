"""The system's clock, as the protocol promises it."""

from __future__ import annotations

import time

from redis_infra.clock import SYSTEM_CLOCK, Clock


def test_monotonic_is_the_systems_and_never_goes_back():
    before = time.monotonic()
    readings = [SYSTEM_CLOCK.monotonic() for _ in range(1000)]
    assert before <= readings[0]
    assert readings == sorted(readings)
    assert readings[-1] <= time.monotonic()


def test_time_is_seconds_since_1970():
    assert abs(SYSTEM_CLOCK.time() - time.time()) < 60


def test_freezing_the_time_module_does_not_freeze_deadlines(monkeypatch):
    """A site's own tests may replace time.time and time.monotonic; ours must go on."""
    monkeypatch.setattr(time, "monotonic", lambda: -1.0)
    monkeypatch.setattr(time, "time", lambda: -1.0)
    assert SYSTEM_CLOCK.monotonic() >= 0
    assert SYSTEM_CLOCK.time() > 0


def test_anything_with_the_two_readings_is_a_clock():
    class Standing:
        def monotonic(self) -> float:
            return 7.0

        def time(self) -> float:
            return 8.0

    def read(clock: Clock) -> tuple[float, float]:
        return clock.monotonic(), clock.time()

    assert read(Standing()) == (7.0, 8.0)


def test_its_repr_can_stand_in_a_signature():
    assert repr(SYSTEM_CLOCK) == "SYSTEM_CLOCK"
