"""The code of README, tutorial, how-to and reference pages runs, and does what the page says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

from redis_infra.connection.lifecycle import databases
from redis_infra.testing import RedisServer
from tests.docs.conftest import RunPage, Said
from tests.docs.pages import PAGES, Page, page

README = PAGES[0]
TUTORIAL = page("tutorial/first-cache.md")
PLAIN = [each for each in PAGES if each.blocks("python", "pycon") and each not in (README, TUTORIAL)]
PATIENCE = 20.0
DURABLE = {"appendonly": "yes", "appendfsync": "no"}

urlpatterns = [path("", lambda request: HttpResponse("home"))]
"""The site that a page's tests visit."""


@pytest.mark.django_db
@pytest.mark.usefixtures("no_rules_left")
@pytest.mark.parametrize("each", PLAIN, ids=str)
def test_the_code_of_a_page_runs(each: Page, run_page: RunPage, settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    assert list(run_page(each, {"start_worker": _connect}))


def _connect(url: str) -> None:
    """Be the worker of a page: it connects."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.ping()


class Breakable:
    """The README's ``server``: it dies and comes back, and does not return before the process knows."""

    def __init__(self, server: RedisServer, said: Said) -> None:
        self._server = server
        self._said = said

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        assert not self._said.closed.is_set()
        (database,) = databases()
        # Between two rounds of the prober, which would find it first and put it right, as it should.
        with database.endpoint.prober._round:
            self._server.start()
            assert self._server.command("GET", ":1:greeting"), "the server has forgotten what was to be stale"
        assert self._said.closed.wait(PATIENCE)


@pytest.mark.usefixtures("no_rules_left")
def test_the_story_of_the_readme_is_true(
    run_page: RunPage, own_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    server = own_redis(unix_socket=False, config=DURABLE)
    story = run_page(README, {"server": Breakable(server, said)})
    monkeypatch.setenv("REDIS_URL", server.url)
    assert [block.language for block in story] == ["python", "pycon", *["python"] * 3]


class Site:
    """The tutorial's site: its views, and how often the report was computed."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.computed = 0
        self._made = made
        self._compute = made["compute_report"]
        made["compute_report"] = self._count
        # Half a second for each report is for people.
        clock = {"strftime": time.strftime, "perf_counter": time.perf_counter}
        made["time"] = SimpleNamespace(sleep=lambda _: None, **clock)

    def _count(self) -> Any:
        self.computed += 1
        return self._compute()

    def visit(self, view: str = "report") -> str:
        text: str = self._made[view](RequestFactory().get("/")).content.decode()
        return text


def wait_for(state: bool) -> None:
    from django.core.cache import caches

    cache: Any = caches["default"]
    deadline = time.monotonic() + PATIENCE
    while cache.is_degraded is not state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_tutorial_goes_as_it_is_told(run_page: RunPage) -> None:
    made: dict[str, Any] = {}
    steps = run_page(TUTORIAL, made)
    until(steps, "urlpatterns")
    site = Site(made)
    assert [site.visit().endswith("with Redis\n") for _ in range(2)] == [True, True]
    assert site.computed == 1

    until(steps, "server.kill()")
    assert [site.visit().endswith("without Redis\n") for _ in range(2)] == [True, True]
    assert site.computed == 2
    assert site.visit("publish") == "the next visitor gets a new report\n"

    until(steps, "server.start()")
    wait_for(False)
    assert site.visit().endswith("with Redis\n")
    assert site.computed == 3, "the report of before was served"

    until(steps, "server.freeze()")
    assert [site.visit().endswith("without Redis\n") for _ in range(2)] == [True, True]
    assert site.computed == 4

    until(steps, "server.thaw()")
    wait_for(False)
    assert site.visit().endswith("with Redis\n")
    assert next(steps, None) is None


def until(steps: Iterator[Any], text: str) -> None:
    """Let the reader go on up to the block that holds ``text``."""
    next(block for block in steps if text in block.source)
