"""A site under attack: eight processes on a server of their own ask one limiter, and write down every answer.

``python -m benchmarks.attack_child LIMITER TASK`` is a child of :mod:`benchmarks.attack`; the task is JSON,
and so is what it prints. What a limiter raises is a no, as it is for whoever asked, and is counted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.server import private_server
from benchmarks.throttle_peers import LIMITERS, Ask, site
from redis_infra.testing import RedisServer

PROCESSES = 8
PATIENCE = 60.0
"""Seconds after which an attacker is taken to be dead."""
LEAD = 0.04
"""Seconds before the end of a window at which a burst begins: enough for all processes to join in."""
PAUSE = 0.008
"""Seconds between two questions of a process. All together that is a burst and a drip at once."""
CRASH, RETURN = 0.5, 0.8
"""Seconds into an attack at which Redis dies, and at which it is back."""

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Stage:
    """What attackers and director share: where they meet, and when the next act begins (monotonic clock)."""

    barrier: Any
    begin: Any

    def meet(self) -> float:
        """Wait until all are here; return when to begin."""
        self.barrier.wait(PATIENCE)
        return float(self.begin.value)


@dataclass(slots=True)
class Attacker:
    """One process: asks, and remembers when it asked and when it was told."""

    number: int
    stage: Stage
    door: Callable[[int, int], Ask]
    admitted: list[tuple[float, float]] = field(default_factory=list)
    raised: Counter[str] = field(default_factory=Counter)

    def knock(self, ask: Ask, identity: str) -> bool:
        """Ask once; return whether one may pass."""
        asked = time.monotonic()
        try:
            allowed = ask(identity)
        except Exception as error:  # whatever a limiter raises: an error page, and no admission
            self.raised[type(error).__name__] += 1
            return False
        if allowed:
            self.admitted.append((asked, time.monotonic()))
        return allowed

    def warmed(self, limit: int, window: int) -> Ask:
        """Return a door that has been used: to connect takes longer than a burst may."""
        ask = self.door(limit, window)
        self.knock(ask, f"warm:{self.number}")
        self.admitted.clear()
        return ask

    def pound(self, ask: Ask, identity: str, begin: float, end: float) -> None:
        """Knock from ``begin`` to ``end``."""
        time.sleep(max(0.0, begin - time.monotonic()))
        while time.monotonic() < end:
            self.knock(ask, identity)
            time.sleep(PAUSE)


# Eight at once


def race(attacker: Attacker, task: Mapping[str, Any]) -> dict[str, list[int]]:
    """Ask so many times at once, for every limit and run; return how many were let through each time."""
    return {str(limit): run_races(attacker, limit, task) for limit in task["limits"]}


def run_races(attacker: Attacker, limit: int, task: Mapping[str, Any]) -> list[int]:
    ask, counts = attacker.warmed(limit, task["window"]), []
    for run in range(task["runs"]):
        attacker.stage.meet()
        counts.append(sum(attacker.knock(ask, f"race:{limit}:{run}") for _ in range(questions(limit))))
    return counts


def questions(limit: int) -> int:
    """Return how often each process asks: together more than twice the limit."""
    return max(20, 2 * limit // PROCESSES + 1)


# Any window


def attacks(attacker: Attacker, task: Mapping[str, Any]) -> dict[str, Any]:
    """Try every attack; return what was let through in each, and what was raised."""
    found = {}
    for attack in task["attacks"]:
        ask = attacker.warmed(task["limit"], task["windows"][attack])
        ATTACKS[attack](attacker, ask, task["windows"][attack])
        found[attack] = (list(attacker.admitted), dict(attacker.raised))
        attacker.raised.clear()
    return found


def aligned(attacker: Attacker, ask: Ask, window: float) -> None:
    """Burst just before a window of the clock ends, then drip all through the next one."""
    if attacker.number == 0:
        left = window - time.time() % window - LEAD
        attacker.stage.begin.value = time.monotonic() + (left if left > LEAD else left + window)
    begin = attacker.stage.meet()
    attacker.pound(ask, "aligned", begin, begin + window + 3 * LEAD)


def learnt(attacker: Attacker, ask: Ask, window: float) -> None:
    """Find out when this visitor's windows change, then burst just before the next change, and drip on."""
    if attacker.number == 0:
        attacker.stage.begin.value = change_of_windows(attacker, ask, window) + window - LEAD
    begin = attacker.stage.meet()
    attacker.pound(ask, "learnt", begin, begin + window + 3 * LEAD)


def change_of_windows(attacker: Attacker, ask: Ask, window: float) -> float:
    """Return when quota came back after it had been used up; now, if it never does."""
    end, was_denied = time.monotonic() + 3 * window, False
    while time.monotonic() < end:
        allowed = attacker.knock(ask, "learnt")
        if allowed and was_denied:
            break
        was_denied = was_denied or not allowed
    return time.monotonic()


def restart(attacker: Attacker, ask: Ask, window: float) -> None:
    """Drip through a crash of Redis and its return, without what it knew, all within one window and a bit."""
    begin = attacker.stage.meet()
    attacker.pound(ask, "restart", begin, begin + window + 1)


ATTACKS = {"aligned": aligned, "learnt": learnt, "restart": restart}
TASKS = {"race": race, "attacks": attacks}


# The processes


def main(name: str, task: Mapping[str, Any]) -> list[Any]:
    """Have eight processes do a task; return what each of them found."""
    use_cores(task["cores"])
    preload(LIMITERS[name].needs)
    with private_server() as server, TemporaryDirectory() as state_dir, site(server.url, state_dir):
        stage = Stage(FORK.Barrier(PROCESSES + (task["kind"] == "attacks")), FORK.Value("d", 0.0))
        workers = [start(name, server.url, task, number, stage) for number in range(PROCESSES)]
        if task["kind"] == "attacks":
            direct(server, stage, task["attacks"])
        found = [pipe.recv() for _, pipe in workers]
        for process, _ in workers:
            process.join(PATIENCE)
    return found


def use_cores(cores: list[int]) -> None:
    """Leave the one core that the measuring parent is pinned to: a race needs somebody to race with."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def preload(needs: str) -> None:
    """Import once what each of eight would have to."""
    for module in filter(None, ("redis", "django_redis.cache", "redis_infra.connection.lifecycle", needs)):
        import_module(module)


def start(
    name: str, url: str, task: Mapping[str, Any], number: int, stage: Stage
) -> tuple[ForkProcess, Connection]:
    """Start one attacker; return it, and the pipe on which it reports."""
    ours, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=attack, args=(name, url, task, number, stage, its), daemon=True)
    process.start()
    its.close()  # so that a dead attacker is an end of file, and not silence
    return process, ours


def attack(name: str, url: str, task: Mapping[str, Any], number: int, stage: Stage, pipe: Connection) -> None:
    """Be one attacker."""
    attacker = Attacker(number, stage, lambda limit, window: LIMITERS[name].door(url, limit, window))
    try:
        pipe.send(TASKS[task["kind"]](attacker, task))
    except BaseException:
        stage.barrier.abort()  # the others need not wait
        raise


def direct(server: RedisServer, stage: Stage, acts: list[str]) -> None:
    """Be there at every act; in the one that is about a crash, see to it."""
    for act in acts:
        if act == "restart":
            crash(server, stage)
        else:
            stage.meet()


def crash(server: RedisServer, stage: Stage) -> None:
    """Kill the server in the middle of an attack, and start it again, empty."""
    begin = stage.begin.value = time.monotonic() + 1  # they have to get warm first
    stage.meet()
    for moment, step in ((CRASH, server.kill), (RETURN, server.start)):
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        step()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
