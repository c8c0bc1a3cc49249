"""The playground: what it shows, and its buttons, over HTTP on a running demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from example_project.relay.demo.visitor import Visitor
from tests.example.conftest import Demo, Manage, run_python

WITHIN = 20.0
"""Seconds in which a state must show, far above the longest pause between two probes."""


def live(visitor: Visitor, *, visit: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = visitor.get(f"/playground/state.json?visit={visit}").json()
    return answer


def until(visitor: Visitor, *states: str) -> dict[str, Any]:
    """Look, as the page does, until the state is one of these."""
    deadline = time.monotonic() + WITHIN
    while (now := live(visitor))["state"] not in states:
        assert time.monotonic() < deadline, f"still {now['state']}: {now['detail']}"
    return now


@pytest.fixture
def visitor(demo: Demo) -> Iterator[Visitor]:
    """A visitor who leaves Redis running."""
    visitor = demo.visitor()
    yield visitor
    visitor.post("/playground/redis/", action="start")
    until(visitor, "closed")


def test_healthy_state_says_so(visitor: Visitor) -> None:
    now = live(visitor)
    assert (now["state"], now["power"], now["headline"], now["pending"]) == (
        "closed",
        "running",
        "Redis is up",
        0,
    )
    assert "embedded" in now["title"]


def test_a_visit_is_shown_as_reads(visitor: Visitor) -> None:
    now = live(visitor, visit=1)
    assert now["reads"]
    assert {"at", "page", "op", "key", "source", "ms"} == set(now["reads"][0])
    assert len(now["sparks"]) >= len(now["reads"]) // 2


@pytest.mark.parametrize("action", ["stop", "freeze"])
def test_button_takes_redis_away_and_start_gives_it_back(visitor: Visitor, action: str) -> None:
    assert visitor.post("/playground/redis/", action=action).status == 302
    degraded = until(visitor, "open", "half_open")
    assert degraded["power"] == {"stop": "stopped", "freeze": "frozen"}[action]
    assert degraded["cause"]
    assert degraded["since"] if "since" in degraded else degraded["detail"].startswith("For ")
    assert visitor.get("/").status == 200
    visitor.post("/playground/redis/", action="start")
    assert until(visitor, "closed")["pending"] == 0


@pytest.mark.parametrize("action", ["stop", "freeze"])
def test_what_is_deleted_during_an_outage_does_not_come_back(visitor: Visitor, action: str) -> None:
    visitor.post("/playground/board/", action="write")
    visitor.post("/playground/redis/", action=action)
    visitor.post("/playground/board/", action="delete")
    away = until(visitor, "open", "half_open")
    assert away["pending"] > 0
    visitor.post("/playground/redis/", action="start")
    back = until(visitor, "closed")["board"]
    assert back["cached"] == back["database"] == away["board"]["database"]
    assert back["stale"] == 0


def test_outage_is_on_the_timeline_once(visitor: Visitor) -> None:
    began = time.time()
    visitor.post("/playground/redis/", action="stop")
    until(visitor, "open", "half_open")
    visitor.post("/playground/redis/", action="start")
    until(visitor, "closed")
    kinds = [event["kind"] for event in live(visitor)["events"] if event["at"] >= began]
    assert kinds == ["closed", "visitor", "opened", "visitor"]


def test_pressing_twice_is_as_once(visitor: Visitor) -> None:
    answers = [
        visitor.post("/playground/redis/", action=action).status
        for action in ("stop", "stop", "freeze", "start", "start", "freeze", "freeze", "stop", "start")
    ]
    assert set(answers) == {302}
    assert live(visitor)["power"] == "running"


@pytest.mark.parametrize("path", ["/playground/redis/", "/playground/board/"])
def test_unknown_action_is_refused(visitor: Visitor, path: str) -> None:
    assert visitor.post(path, action="explode").status == 400


NO_DEMO = """
import django
django.setup()
from django.conf import settings
from django.test import Client
settings.DEBUG = {debug}
for method, path, fields in [
    ("get", "/playground/", {{}}), ("get", "/playground/state.json?visit=1", {{}}),
    ("post", "/playground/redis/", {{"action": "stop"}}),
    ("post", "/playground/board/", {{"action": "write"}}),
    ("get", "/limits/", {{}}), ("get", "/limits/state.json", {{}}),
    ("post", "/limits/reset/", {{"policy": "chat"}}),
    ("get", "/queries/", {{}}), ("get", "/queries/state.json", {{}}),
    ("post", "/queries/act/", {{"action": "read:all"}}),
]:
    print(getattr(Client(), method)(path, fields).status_code)
"""


@pytest.mark.parametrize(
    ("debug", "codes"),
    [
        (True, ["200", "200", "403", "403", "200", "200", "403", "200", "200", "403"]),
        (False, ["404", "404", "403", "403", "404", "404", "403", "404", "404", "403"]),
    ],
)
def test_without_a_demo_there_is_nothing_to_press(
    manage: Manage, tmp_path: Any, debug: bool, codes: list[str]
) -> None:
    """A real deployment shows its state to staff only, and lets nobody stop anything."""
    database = str(tmp_path / "relay.sqlite3")
    assert manage("migrate", "--verbosity", "0").returncode == 0
    done = run_python(
        "-c",
        NO_DEMO.format(debug=debug),
        RELAY_DATABASE=database,
        REDIS_ENABLED="false",
        DJANGO_SETTINGS_MODULE="example_project.settings",
    )
    assert done.stdout.split() == codes, done.stderr
