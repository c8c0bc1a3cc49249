"""What a process remembers of denials: as long as they hold, two seconds at most, in bounded memory."""

from __future__ import annotations

import pytest

from redis_infra.throttling.deny_cache import LONGEST, DenyCache


class Clock:
    now = 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def denials(clock: Clock) -> DenyCache:
    return DenyCache(clock, most=10)


def test_a_denial_is_remembered_until_it_may_not_hold(clock: Clock, denials: DenyCache) -> None:
    denials.put("bob", [0, 0, 0, 500, 500])
    clock.now += 499
    assert denials.get("bob") == [0, 0, 0, 1, 1]
    clock.now += 1
    assert denials.get("bob") is None


def test_the_last_limit_to_give_way_decides(clock: Clock, denials: DenyCache) -> None:
    denials.put("bob", [0, 0, 3, 200, 0, 0, 500, 500])
    clock.now += 300
    assert denials.get("bob") == [0, 0, 3, 0, 0, 0, 200, 200]


@pytest.mark.parametrize("wait", [10**6, -1])
def test_no_denial_is_remembered_for_long(clock: Clock, denials: DenyCache, wait: int) -> None:
    denials.put("bob", [0, 0, 0, 10**6, wait])
    clock.now += LONGEST - 1
    assert denials.get("bob") is not None
    clock.now += 1
    assert denials.get("bob") is None


def test_never_stays_never(clock: Clock, denials: DenyCache) -> None:
    denials.put("bob", [0, 0, 5, 0, -1])
    clock.now += 10
    assert denials.get("bob") == [0, 0, 5, 0, -1]


def test_a_flood_of_denials_takes_bounded_room(clock: Clock, denials: DenyCache) -> None:
    for number in range(100):
        denials.put(number, [0, 0, 0, 500, 500])
    assert len(denials) == 10
    assert denials.get(99) is not None


def test_what_is_over_makes_room_first(clock: Clock, denials: DenyCache) -> None:
    denials.put("long", [0, 0, 0, 1900, 1900])
    for number in range(9):
        denials.put(number, [0, 0, 0, 100, 100])
    clock.now += 200
    denials.put("new", [0, 0, 0, 500, 500])
    assert denials.get("long") is not None
    assert len(denials) == 2
