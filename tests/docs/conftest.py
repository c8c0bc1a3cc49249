"""Runs the code of a page, in its order, as a reader would type it."""

from __future__ import annotations

import doctest
import inspect
import logging
import re
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.checks import check_settings
from redis_infra.conf import Settings
from redis_infra.connection.embedded import free_port
from tests.docs.pages import Block, Page

if TYPE_CHECKING:
    from redis_infra.testing import ExternalServer, RedisServer

RunPage = Callable[[Page, dict[str, Any]], Iterator[Block]]

LOCALHOST = "redis://localhost:6379/0"
"""What pages call the reader's server; the tests' is put in its place."""
TUTORIAL_PORT = "6399"
SETTINGS = ("CACHES", "SESSION_ENGINE", "SESSION_CACHE_ALIAS")
QUICK = {"probe_base": "20ms", "probe_cap": "50ms"}
VARYING = [
    (r"127\.0\.0\.1:\d+", "127.0.0.1:0"),
    (r"lasted=[\d.]+s", "lasted=0s"),
    (r"pid=\d+", "pid=0"),
    (r"Error \d+", "Error 0"),
]
"""What is of the day on which a page was written: ports, durations, process ids, a system's error numbers."""


class Said(logging.Handler):
    """Shows log lines where a doctest looks for output, as a terminal would."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.closed = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{record.levelname} {record.getMessage()}\n")
        if record.getMessage().startswith("redis_infra.circuit_closed"):
            self.closed.set()


@pytest.fixture
def said() -> Iterator[Said]:
    from redis_infra.instrumentation import reset_log

    handler, logger = Said(), logging.getLogger("redis_infra")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    reset_log()  # what another test's outage said is not to keep this one's from being said
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def no_rules_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Disconnect what a page connects with ``invalidate_on``."""
    from django.db.models import signals

    from redis_infra.querycache import models

    heard = (signals.pre_save, signals.post_save, signals.post_delete, signals.m2m_changed)
    before = [(signal, list(signal.receivers)) for signal in heard]
    monkeypatch.setattr(models, "_rules", [])
    monkeypatch.setattr(models, "_connected", set())
    yield
    for signal, receivers in before:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


LOGGED = re.compile(r"^(?:WARNING|INFO) redis_infra\..*\n", re.MULTILINE)


class Checker(doctest.OutputChecker):
    """Compares what came with what the page shows, but for what varies.

    Where the page shows no log line at a step, it belongs in another terminal; when it comes is chance.
    """

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if not LOGGED.search(want):
            got = LOGGED.sub("", got)
        return super().check_output(_still(want), _still(got), optionflags)


def _still(text: str) -> str:
    for varying, still in VARYING:
        text = re.sub(varying, still, text)
    return text


@pytest.fixture
def run_page(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    tmp_path: Any,
    said: Said,
    redis_server: RedisServer | ExternalServer,
) -> Iterator[RunPage]:
    """Run the Python of a page, block by block, in a namespace; yields each block when it has run.

    What a block assigns to CACHES and its like becomes the site's, and has to pass the app's own checks.
    Functions called ``test_...`` are called with the fixtures that they name.
    """
    namespaces: list[dict[str, Any]] = []

    def run(page: Page, namespace: dict[str, Any]) -> Iterator[Block]:
        replaced = {LOCALHOST: redis_server.url, TUTORIAL_PORT: str(free_port())}
        namespace.update(__name__="documentation", INSTALLED_APPS=[])
        namespaces.append(namespace)
        for block in page.blocks("python", "pycon"):
            before = set(namespace)
            _run_block(page, block, replaced, namespace)
            _apply_settings(settings, namespace, str(tmp_path / "state"))
            _run_tests([made for name, made in namespace.items() if name not in before], request)
            yield block

    for name in ("REDIS_ENABLED", "REDIS_PROVIDER", "REDIS_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    yield run
    for namespace in namespaces:
        for made in namespace.values():
            if type(made).__name__ == "RedisServer":
                made.stop()


def _run_block(page: Page, block: Block, replaced: dict[str, str], namespace: dict[str, Any]) -> None:
    source = block.source
    for theirs, ours in replaced.items():
        source = source.replace(theirs, ours)
    if block.language == "python":
        # Blank lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * (block.line - 1) + source, page.name, "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(source, {}, page.name, page.name, block.line - 1)
    test.globs = namespace
    complaints: list[str] = []
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS)
    runner.run(test, out=complaints.append, clear_globs=False)
    assert not runner.failures, "".join(complaints)


def _apply_settings(settings: Any, namespace: dict[str, Any], state_dir: str) -> None:
    """Make what the page has said so far the site's settings, with a directory and a patience for tests."""
    said = namespace.get("REDIS_INFRA", {})
    Settings.load(said)
    for name in SETTINGS:
        if name in namespace:
            setattr(settings, name, namespace[name])
    settings.REDIS_INFRA = {**said, "STATE_DIR": state_dir, "BREAKER": QUICK}
    assert check_settings() == []


def _run_tests(made: list[Any], request: pytest.FixtureRequest) -> None:
    """Run the tests that a block shows, be they functions or classes."""
    for each in made:
        if getattr(each, "__module__", "") != "documentation":
            continue
        if inspect.isfunction(each) and each.__name__.startswith("test_"):
            named = inspect.signature(each).parameters
            each(**{fixture: request.getfixturevalue(fixture) for fixture in named})
        elif inspect.isclass(each) and issubclass(each, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(each).run(result)
            assert result.wasSuccessful(), result.errors + result.failures
