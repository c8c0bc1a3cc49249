"""Fixtures of the contract tests: aliases on any server, and how to wait until a cache has noticed."""

from __future__ import annotations

import inspect
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from django.core.cache import CacheHandler

if TYPE_CHECKING:
    from pathlib import Path

    from redis_infra.cache import RedisCache

pytest.register_assert_rewrite("redis_infra.testing.contract", "redis_infra.testing.kv_contract")


def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """Do not even collect long classes where they are not to run: for some that alone takes half a minute."""
    is_long = inspect.isclass(obj) and any(mark.name == "long" for mark in getattr(obj, "pytestmark", ()))
    return [] if is_long and not collector.config.getoption("--long") else None


ASYNC_EVERY_DAY = ("TestUpstash", "TestContractInShort", "TestStoppedAndStartedInTurn")
"""Suites whose synchronous half runs with --long only: the slowest, whose code it shares with the other half,
and which have suites of their own beside (test_kv_upstash.py; the faults of tests/faults)."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parent = item.getparent(pytest.Class)
        if parent is not None and parent.name in ASYNC_EVERY_DAY:
            case = item.name.partition("[")[2].rstrip("]").split("-")
            if "sync" in case:
                item.add_marker(pytest.mark.long)


UNCOUNTED = frozenset(
    {
        *(
            "TestRefusedFromTheStart",
            "TestStoppedAndStartedInTurn",
            "TestContractInShort",
            "TestFirstRequest",
        ),
        *("TestFile", "TestUpstash"),
    }
)
"""Suites in which coverage is not measured: by a third quicker, and no line is theirs alone."""


@pytest.fixture(scope="class", autouse=True)
def _uncounted(request: pytest.FixtureRequest) -> Iterator[None]:
    coverage = sys.modules.get("coverage")
    measuring = coverage.Coverage.current() if coverage else None
    if measuring is None or request.cls is None or request.cls.__name__ not in UNCOUNTED:
        yield
        return
    measuring.stop()
    yield
    measuring.start()


# A server that returns is to be noticed at once: how long a breaker waits is tested elsewhere.
OPTIONS = {"BREAKER": {"probe_base": "5ms", "probe_cap": "20ms"}}


@pytest.fixture
def alias_on(tmp_path: Path) -> Callable[..., RedisCache]:
    """Make a cache as CACHES would: alias_on(url, KEY_PREFIX="p"). A test has one STATE_DIR."""

    def make(location: str, **changes: Any) -> RedisCache:
        options = {**OPTIONS, "STATE_DIR": str(tmp_path / "state")} | changes.pop("OPTIONS", {})
        params = {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": location,
            "OPTIONS": options,
        }
        return CacheHandler({"default": params | changes})["default"]

    return make


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """Return an address that is taken, so that nobody starts a server there, and that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{bound.getsockname()[1]}/0"
