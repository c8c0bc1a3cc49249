"""Relay's query cache and the page that shows it, over HTTP on a running demo."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from example_project.relay.demo.visitor import Answer, Visitor
from tests.example.conftest import Demo

WITHIN = 20.0
"""Seconds in which a state must show, far above the longest pause between two probes."""
OF_THE_ROOM = ["chat:engineering:card", "chat:engineering:messages"]
TYPES = {"user", "chat", "messages", "documents", "stats"}


@pytest.fixture
def visitor(demo: Demo) -> Visitor:
    """A visitor who finds everything kept, and fresh: after a loader failed nobody tries for a second."""
    visitor = demo.visitor()
    deadline = time.monotonic() + WITHIN
    act(visitor, "read:all")
    while {each["source"] for each in state(visitor)["rows"]} != {"redis"}:
        assert time.monotonic() < deadline, state(visitor)["rows"]
        act(visitor, "read:all")
    return visitor


@pytest.fixture
def without_redis(visitor: Visitor) -> Iterator[Visitor]:
    """A visitor of a site whose Redis was killed; it runs again afterwards, and is trusted."""
    power(visitor, "stop", "open", "half_open")
    act(visitor, "read:all")
    yield visitor
    power(visitor, "start", "closed")


def power(visitor: Visitor, action: str, *states: str) -> None:
    visitor.post("/playground/redis/", action=action)
    deadline = time.monotonic() + WITHIN
    while (now := state(visitor))["state"] not in states:
        act(visitor, "read:stats")
        assert time.monotonic() < deadline, f"still {now['state']}: {now['detail']}"


def act(visitor: Visitor, action: str, **fields: str) -> Answer:
    answer = visitor.post("/queries/act/", action=action, **fields)
    assert answer.status == 302, answer.text
    return answer


def state(visitor: Visitor) -> dict[str, Any]:
    answer: dict[str, Any] = visitor.get("/queries/state.json").json()
    return answer


def row(visitor: Visitor, name: str) -> dict[str, Any]:
    return next(each for each in state(visitor)["rows"] if each["name"] == name)


def read(visitor: Visitor, name: str, **fields: str) -> dict[str, Any]:
    act(visitor, f"read:{name}", **fields)
    return row(visitor, name)


def last(visitor: Visitor) -> dict[str, Any]:
    happened: dict[str, Any] = state(visitor)["happened"][0]
    return happened


# --- reading --------------------------------------------------------------------------------------------


def test_queries_are_of_all_five_types(visitor: Visitor) -> None:
    assert {each["kind"] for each in state(visitor)["rows"]} == TYPES


def test_what_was_read_is_kept_and_comes_from_redis(visitor: Visitor) -> None:
    act(visitor, "read:all")
    rows = state(visitor)["rows"]
    assert {each["source"] for each in rows} == {"redis"}
    assert [each["name"] for each in rows if each["kept"] != each["keys"]] == []


def test_a_query_that_was_forgotten_is_computed_once(visitor: Visitor) -> None:
    act(visitor, "forget:pattern", pattern="stats")
    before = row(visitor, "stats")["computations"]
    sources = [read(visitor, "stats")["source"] for _ in range(3)]
    assert sources == ["database", "redis", "redis"]
    assert row(visitor, "stats")["computations"] == before + 1


def test_many_computes_only_what_is_missing(visitor: Visitor) -> None:
    act(visitor, "forget:pattern", pattern="user:3")
    missing = row(visitor, "people")
    assert (missing["kept"], missing["keys"]) == (11, 12)
    now = read(visitor, "people")
    assert (now["source"], now["kept"], now["said"]) == ("database", 12, "12 people")


def test_looking_reads_no_query(visitor: Visitor) -> None:
    act(visitor, "forget:pattern", pattern="chat:engineering:*")
    visitor.get("/queries/")
    assert row(visitor, "messages")["kept"] == 0


def test_a_crowd_computes_once(visitor: Visitor) -> None:
    act(visitor, "crowd")
    crowd = state(visitor)["crowd"]
    assert (crowd["threads"], crowd["computations"]) == (16, 1)


# --- writing and forgetting -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "forgotten"),
    [
        ("message", [*OF_THE_ROOM, "stats", "user:1:profile"]),
        ("document", ["document:2", "documents:1:runbook", "stats"]),
        ("room", [*OF_THE_ROOM, "stats", "user:1:profile"]),
        ("person", ["stats", "user:1", "user:1:profile"]),
    ],
)
def test_a_write_forgets_what_shows_it_and_nothing_else(
    visitor: Visitor, what: str, forgotten: list[str]
) -> None:
    act(visitor, f"write:{what}")
    assert last(visitor)["forgotten"] == forgotten


@pytest.mark.parametrize("what", ["message", "document", "room", "person"])
def test_a_write_that_is_rolled_back_forgets_nothing(visitor: Visitor, what: str) -> None:
    act(visitor, f"write:{what}", roll_back="on")
    assert last(visitor)["forgotten"] == []
    act(visitor, "read:all")
    assert {each["source"] for each in state(visitor)["rows"]} == {"redis"}


@pytest.mark.parametrize("how", [{"pattern": "chat:engineering:*"}, {"tag": "room:engineering"}])
def test_invalidating_says_how_many_there_were(visitor: Visitor, how: dict[str, str]) -> None:
    (kind,) = how
    act(visitor, "forget:tag", tag="room:engineering")
    act(visitor, "read:all")
    act(visitor, f"forget:{kind}", **how)
    assert (last(visitor)["count"], last(visitor)["forgotten"]) == (2, OF_THE_ROOM)
    act(visitor, f"forget:{kind}", **how)
    assert (last(visitor)["count"], last(visitor)["forgotten"]) == (0, [])


# --- stale ----------------------------------------------------------------------------------------------


def test_what_has_expired_is_computed_anew(visitor: Visitor) -> None:
    act(visitor, "expire:messages")
    assert row(visitor, "messages")["kept"] == 1  # stale="10min"
    assert read(visitor, "messages")["source"] == "database"


def test_what_may_not_be_stale_goes_when_it_has_expired(visitor: Visitor) -> None:
    act(visitor, "expire:document")
    deadline = time.monotonic() + WITHIN
    while row(visitor, "document")["kept"]:
        assert time.monotonic() < deadline


def test_stale_is_served_while_the_database_is_away(visitor: Visitor) -> None:
    before = read(visitor, "messages")
    act(visitor, "expire:messages")
    now = read(visitor, "messages", database_away="on")
    assert (now["source"], now["said"]) == ("stale", before["said"])


def test_what_was_forgotten_is_not_served_stale(visitor: Visitor) -> None:
    act(visitor, "forget:tag", tag="room:engineering")
    now = read(visitor, "messages", database_away="on")
    assert (now["source"], now["said"]) == ("error", "the database does not answer")


# --- without Redis --------------------------------------------------------------------------------------


def test_without_redis_the_process_keeps_and_forgets(without_redis: Visitor) -> None:
    assert read(without_redis, "messages")["source"] == "fallback"
    act(without_redis, "write:message")
    assert last(without_redis)["forgotten"] == [*OF_THE_ROOM, "stats", "user:1:profile"]
    assert [read(without_redis, "messages")["source"] for _ in range(2)] == ["database", "fallback"]


@pytest.mark.parametrize(
    ("what", "query"),
    [("message", "messages"), ("document", "document"), ("room", "room"), ("message", "stats")],
)
def test_what_was_written_without_redis_is_read_when_it_is_back(
    visitor: Visitor, what: str, query: str
) -> None:
    """Redis has kept what was there before the write; nobody reads it."""
    before = read(visitor, query)
    power(visitor, "stop", "open", "half_open")
    act(visitor, f"write:{what}")
    power(visitor, "start", "closed")
    now = read(visitor, query)
    assert now["said"] != before["said"]
    act(visitor, "forget:pattern", pattern="[a-z]*")
    assert read(visitor, query)["said"] == now["said"]


# --- the page -------------------------------------------------------------------------------------------


def test_page_shows_how_each_query_is_declared(visitor: Visitor) -> None:
    text = visitor.get("/queries/").text
    shown = re.findall(r"<pre>@(cached|cached_many)\(&quot;([^&]+)&quot;", text)
    assert ("cached", "chat:{slug}:messages") in shown
    assert ("cached_many", "user:{user_id}") in shown
    assert len(shown) == len(state(visitor)["rows"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"action": "explode"}, "try read:all"),
        ({"action": "read:everything"}, "is none of people, profile"),
        ({"action": "write:book"}, "is none of message, document"),
        ({"action": "forget:pattern", "pattern": "*"}, "would forget everything"),
        ({"action": "forget:pattern", "pattern": " "}, "empty"),
        ({"action": "forget:tag"}, "empty"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    visitor: Visitor, fields: dict[str, str], said: str
) -> None:
    answer = visitor.post("/queries/act/", **fields)
    assert answer.status == 400
    assert said in answer.text


def test_looking_does_not_act(visitor: Visitor) -> None:
    assert visitor.get("/queries/act/").status == 405
