"""Fixtures of the query cache's harness: processes that share a server, a log and a database of numbers."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import log, make_outage  # noqa: F401  # fixtures
from tests.faults.site import Nursery, SiteProcess, uncounted_environ
from tests.querycache.functions import Database


class QueryNursery(Nursery):
    """Starts processes in some milliseconds each: see ``tests.querycache.worker``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        environ = uncounted_environ()
        environ.pop("DJANGO_SETTINGS_MODULE", None)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.querycache.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**environ, "REDIS_ENABLED": "true"},
            )


@pytest.fixture(scope="session")
def query_nursery() -> Iterator[QueryNursery]:
    nursery = QueryNursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(query_nursery: QueryNursery, tmp_path: Path) -> Iterator[Callable[..., SiteProcess]]:
    """Start a process: ``start(url, seconds=0.2)``; upper-case names go to OPTIONS."""
    started: list[SiteProcess] = []
    (tmp_path / "log").touch()

    def one(url: str, **changes: Any) -> SiteProcess:
        own = {name: changes.pop(name) for name in list(changes) if name.islower()}
        options = {"STATE_DIR": str(tmp_path / "state"), **changes}
        cache = {"KEY_PREFIX": "site", "OPTIONS": options}
        config = {"url": url, "cache": cache, "log": str(tmp_path / "log"), "seconds": 0.2, **own}
        started.append(query_nursery.start(config))
        return started[-1]

    yield one
    for process in started:
        process.close()


@pytest.fixture
def computations(tmp_path: Path) -> Callable[[], list[tuple[int, float]]]:
    """Return who has computed so far, and when he began."""

    def read() -> list[tuple[int, float]]:
        lines = (tmp_path / "log").read_text().splitlines()
        return [(int(pid), float(began)) for pid, began in map(str.split, lines)]

    return read


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.create(tmp_path / "database")
    yield made
    made.close()
