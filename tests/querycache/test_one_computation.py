"""However many ask at once, in threads, tasks and processes: one computes, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.site import SiteProcess, wait_until

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

Computations = Callable[[], list[tuple[int, float]]]
Start = Callable[..., SiteProcess]

PATIENT = {"COMMAND_TIMEOUT": "10s", "POOL_WAIT": "10s"}
"""Where Redis does not answer in time memory does, in each process: that is not what is tested here."""

LEASE = 2.0
"""Seconds after which at the latest somebody takes over from a holder that is not heard of."""


def go(processes: Sequence[SiteProcess]) -> None:
    """Let all crowds go at once."""
    for process in processes:
        process.begin("go")
    for process in processes:
        process.finish()


def answers_of(processes: Sequence[SiteProcess]) -> list[tuple[float, Any]]:
    return [(took, answer) for process in processes for took, answer in process.answers()]


def gathered(start: Start, url: str, count: int, *args: Any, seconds: float, **kwargs: Any) -> Any:
    processes = [start(url, seconds=seconds, **PATIENT) for _ in range(count)]
    for process in processes:
        process.gather(*args, **kwargs)
    return processes


def test_threads_of_processes_compute_once(
    start: Start, redis_infra_url: str, computations: Computations
) -> None:
    processes = gathered(start, redis_infra_url, 4, "slow", "hot", 64, seconds=0.2)
    go(processes)
    answers = answers_of(processes)
    [(computed_by, _)] = computations()
    assert len(answers) == 4 * 64
    assert {answer for _, answer in answers} == {computed_by}


def test_an_expired_key_is_computed_once(
    start: Start, redis_infra_url: str, computations: Computations
) -> None:
    processes = gathered(start, redis_infra_url, 4, "brief", "hot", 64, seconds=0.2)
    processes[0].call("brief", "hot")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.15, 10)  # it lives for 100 ms
    go(processes)
    answers = answers_of(processes)
    assert len(answers) == 4 * 64
    assert len(computations()) == 2


def test_tasks_of_loops_compute_once(start: Start, redis_infra_url: str, computations: Computations) -> None:
    processes = gathered(start, redis_infra_url, 2, "aslow", "hot", 0, seconds=0.2, loops=2, tasks=500)
    go(processes)
    answers = answers_of(processes)
    [(computed_by, _)] = computations()
    assert len(answers) == 2 * 2 * 500
    assert {answer for _, answer in answers} == {computed_by}


def test_threads_and_tasks_compute_once_together(
    start: Start, redis_infra_url: str, computations: Computations
) -> None:
    threads = gathered(start, redis_infra_url, 2, "slow", "hot", 64, seconds=0.2)
    tasks = gathered(start, redis_infra_url, 2, "aslow", "hot", 0, seconds=0.2, loops=2, tasks=100)
    go([*threads, *tasks])
    answers = answers_of([*threads, *tasks])
    assert len(answers) == 2 * 64 + 2 * 2 * 100
    assert len(computations()) == 1


@pytest.mark.parametrize(("function", "crowd"), [("slow", {"threads": 64}), ("aslow", {"threads": 0})])
def test_a_killed_holder_is_followed_by_one(
    function: str, crowd: dict[str, Any], start: Start, redis_infra_url: str, computations: Computations
) -> None:
    if function == "aslow":
        crowd = {**crowd, "loops": 2, "tasks": 100}
    processes = gathered(start, redis_infra_url, 4, function, "hot", seconds=0.4, **crowd)
    go(processes)
    [(holder, _)] = wait_until(computations, 10)
    killed = time.monotonic()
    next(process for process in processes if process.pid == holder).kill()
    answers = answers_of([process for process in processes if process.pid != holder])
    (_, second) = computations()
    assert {answer for _, answer in answers} == {second[0]}
    assert second[1] - killed < LEASE + 0.5


def test_a_frozen_holder_is_followed_by_one_and_stores_nothing(
    start: Start, redis_infra_url: str, computations: Computations, redis_server: RedisServer
) -> None:
    processes = gathered(start, redis_infra_url, 4, "slow", "hot", 16, seconds=0.4)
    go(processes)
    [(holder, _)] = wait_until(computations, 10)
    frozen = next(process for process in processes if process.pid == holder)
    others = [process for process in processes if process.pid != holder]
    stopped = time.monotonic()
    os.kill(holder, signal.SIGSTOP)
    try:
        answers = answers_of(others)
        stored = redis_server.command("GET", "site:1:qc:slow:hot")
    finally:
        os.kill(holder, signal.SIGCONT)
    late = [answer for _, answer in frozen.answers()]
    (_, (second, began)) = computations()
    assert {answer for _, answer in answers} == {second}
    assert began - stopped < LEASE + 0.5
    assert late.count(holder) == 1  # who computed gets what he computed, and nobody else does
    assert set(late) == {holder, second}
    assert redis_server.command("GET", "site:1:qc:slow:hot") == stored


def test_a_result_that_is_not_kept_holds_nobody_up(
    start: Start, redis_infra_url: str, computations: Computations
) -> None:
    """Without the cache all of them would be done in 200 ms; one after the other they would take 3 s."""
    processes = gathered(start, redis_infra_url, 1, "refused", "hot", 16, seconds=0.2)
    go(processes)
    assert max(took for took, _ in answers_of(processes)) < 3 * 0.4
