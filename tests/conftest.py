"""What every test may use beside the app's own pytest plugin: caches, sync and async calls, leak checks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from redis_infra.cache import RedisCache
    from redis_infra.testing import ExternalServer, RedisServer

ALIAS_SETTINGS = frozenset({"TIMEOUT", "KEY_PREFIX", "VERSION", "KEY_FUNCTION"})
"""What Django reads beside OPTIONS, not in it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="also run tests marked 'long': tens of thousands of steps, soaks"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; runs with --long only")
    # The entry point loads it where the project is installed, and not where it is only checked out.
    if not config.pluginmanager.has_plugin("redis_infra"):
        config.pluginmanager.import_plugin("redis_infra.testing.plugin")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests wait for servers and time-outs half of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long tests out as if they were not there: skips that are always there hide those that matter."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was collected alone: with 18,000 tests in memory a ``gc.collect()`` takes a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test an empty server, if it uses the shared one, and a process that knows of none.

    The first fixture to be set up, so the last to be torn down: what others clean up is cleaned up by then.
    """
    if "redis_server" in request.fixturenames:
        request.getfixturevalue("redis_server").flush()
    yield
    _forget_caches()


def _forget_caches() -> None:
    """Forget every endpoint, engine and cache object; import nothing that the test did not."""
    if "redis_infra.cache.engine" in sys.modules:
        from django.core.cache import caches

        from redis_infra.cache.engine import forget_engines

        for alias in caches:
            with contextlib.suppress(AttributeError):  # was not used
                del caches[alias]
        forget_engines()
    if "redis_infra.querycache.space" in sys.modules:
        from redis_infra.querycache.space import forget_spaces

        forget_spaces()
    if "redis_infra.observability.flushing" in sys.modules:
        from redis_infra.observability.flushing import end

        end()
    if "redis_infra.throttling.limiter" in sys.modules:
        from redis_infra.throttling.limiter import forget_limiters

        forget_limiters()
    if "redis_infra.kv.factory" in sys.modules:
        from redis_infra.kv.factory import forget_stores

        forget_stores()
    if "redis_infra.connection.lifecycle" in sys.modules:
        from redis_infra.connection.lifecycle import reset_for_tests

        reset_for_tests()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Call a method, or its ``a``-prefixed twin on an event loop: ``call(cache.get, "k")``."""
    if request.param == "sync":
        yield lambda bound, *args, **kwargs: bound(*args, **kwargs)
        return
    with asyncio.Runner() as runner:
        yield lambda bound, *args, **kwargs: runner.run(
            getattr(bound.__self__, f"a{bound.__name__}")(*args, **kwargs)
        )


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., RedisCache]:
    """Make a cache without an alias: ``make_cache(url, KEY_PREFIX="a", SERIALIZER="json")``.

    Upper-case names are what ``CACHES[alias]`` or its OPTIONS would say. The test's caches share a STATE_DIR.
    """

    def make(url: str, **options: Any) -> RedisCache:
        from redis_infra.cache import RedisCache

        params = {name: options.pop(name) for name in ALIAS_SETTINGS & options.keys()}
        return RedisCache(url, {**params, "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), **options}})

    return make


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for sockets: with a test's name in it, as in tmp_path, their paths would be too long."""
    with tempfile.TemporaryDirectory(prefix="ri-") as directory:
        yield Path(directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the process holds: background threads, open files, connections on servers."""

    threads: list[str]
    files: int
    connections: list[int]

    @classmethod
    def now(cls, servers: tuple[RedisServer | ExternalServer, ...]) -> Held:
        return cls(
            # Statistics have a thread for as long as the process lives.
            threads=sorted(
                t.name
                for t in threading.enumerate()
                if t.name.startswith("redis_infra") and t.name != "redis_infra-statistics"
            ),
            files=len(os.listdir("/dev/fd")),
            connections=[server.command("CLIENT", "LIST").count(b"\n") for server in servers],
        )

    def no_more_than(self, before: Held) -> bool:
        return (
            set(self.threads) <= set(before.threads)
            and len(self.threads) <= len(before.threads)
            and self.files <= before.files
            and all(now <= then for now, then in zip(self.connections, before.connections, strict=True))
        )


@pytest.fixture
def leak_check() -> Callable[..., AbstractContextManager[None]]:
    """Assert that a block leaves no thread, file or connection: ``with leak_check(server): ...``.

    What is about to end gets ``within`` seconds to do so.
    """

    @contextlib.contextmanager
    def check(*servers: RedisServer | ExternalServer, within: float = 5.0) -> Iterator[None]:
        before = Held.now(servers)
        yield
        deadline = time.monotonic() + within
        while not (after := Held.now(servers)).no_more_than(before) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert after.no_more_than(before), f"left behind: {after} after {before}"

    return check
