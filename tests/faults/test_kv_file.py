"""The store that is a file, among real processes that are killed, kept waiting, and let go at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from redis_infra.exceptions import StoreUnavailable
from redis_infra.kv.file_store import FileStore
from tests.faults.site import wait_until

PATIENCE = 60.0
"""Seconds that nothing here takes."""
LOCKED = 0.1
"""Seconds of a patience that is to end."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv.sqlite3"


@pytest.fixture
def start() -> Iterator[Callable[..., ForkServerProcess]]:
    """Start a process of its own: ``start(function, *arguments)``."""
    processes: list[ForkServerProcess] = []

    def start(function: Callable[..., None], *args: Any) -> ForkServerProcess:
        processes.append(_context.Process(target=function, args=args, daemon=True))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


# --- what processes do ----------------------------------------------------------------------------------


def count(path: Path, barrier: Any, times: int) -> None:
    with FileStore("h:", path, patience=PATIENCE) as store:
        barrier.wait(PATIENCE)
        for number in range(times):
            if number % 2:
                store.incr("n")
            else:
                store.batch([("incr", "n"), ("set", f"{os.getpid()}", number), ("incr", "by 3", 3)])


def write(path: Path, log: Path, name: str) -> None:
    """Write for ever, and say in a log of one's own what was answered."""
    store = FileStore("h:", path, patience=PATIENCE)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = int(store.get(name) or 0)
    while True:
        number += 1
        store.set(name, number)
        with store.transaction() as both:
            both.incr("left", number)
            both.incr("right", number)
            total = both.incr(f"total of {name}")
        store.set(f"big of {name}", "x" * 50_000, ex=PATIENCE)
        os.write(descriptor, f"{number} {total.value}\n".encode())


def hold(path: Path, held: Any, release: Any) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    held.set()
    release.wait(PATIENCE)
    database.execute("COMMIT")
    database.close()


# --- claims ---------------------------------------------------------------------------------------------


def test_eight_processes_count_exactly(path: Path, start: Callable[..., ForkServerProcess]) -> None:
    """From the first moment on, in which each wants to make the file."""
    barrier = _context.Barrier(8)
    processes = [start(count, path, barrier, 100) for _ in range(8)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    with FileStore("h:", path) as store:
        assert store.mget("n", "by 3") == ["800", "1200"]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_was_answered_is_lost_to_a_kill(
    path: Path, tmp_path: Path, start: Callable[..., ForkServerProcess], seed: int
) -> None:
    rng, kills = random.Random(seed), 6
    logs = [tmp_path / f"log-{name}" for name in range(3)]
    for log in logs:
        log.touch()
    for _ in range(kills):
        before = [log.stat().st_size for log in logs]
        processes = [start(write, path, log, log.name) for log in logs]
        for log, size in zip(logs, before, strict=True):
            enough = size + rng.randrange(10, 150)
            wait_until(lambda log=log, enough=enough: log.stat().st_size >= enough, PATIENCE, every=0.001)
        for process in rng.sample(processes, len(processes)):
            process.kill()
        for process in processes:
            process.join()
        with FileStore("h:", path) as store:
            for log in logs:
                number, total = map(int, log.read_text().splitlines()[-1].split())
                assert int(store.get(log.name) or 0) in (number, number + 1)
                assert total <= int(store.get(f"total of {log.name}") or 0) <= total + kills
            assert store.get("left") == store.get("right")
            assert store.incr("still counts") > 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_process_that_keeps_the_file_keeps_writers_waiting_and_no_readers(
    path: Path, start: Callable[..., ForkServerProcess]
) -> None:
    held, release = _context.Event(), _context.Event()
    with FileStore("h:", path, patience=LOCKED) as store:
        store.set("k", "v")
        process = start(hold, path, held, release)
        assert held.wait(PATIENCE)
        with pytest.raises(StoreUnavailable, match="other processes keep the file"):
            store.incr("n")
        assert store.get("k") == "v"
        assert store.health().status == "ok"
        release.set()
        process.join(PATIENCE)
        assert store.incr("n") == 1


def test_a_turn_is_free_when_its_process_is_killed(
    path: Path, start: Callable[..., ForkServerProcess]
) -> None:
    held, release = _context.Event(), _context.Event()
    with FileStore("h:", path, patience=PATIENCE) as store:
        store.set("k", "v")
        process = start(hold, path, held, release)
        assert held.wait(PATIENCE)
        waiting = threading.Thread(target=store.incr, args=("n",))
        waiting.start()
        process.kill()
        waiting.join(PATIENCE)
        assert store.get("n") == "1"
