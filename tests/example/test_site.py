"""Relay's pages and API: they render, they read through the cache, and a write is seen at once."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from example_project.relay.demo.visitor import Visitor
from tests.example.conftest import Demo

PAGES = [
    "/",
    "/rooms/engineering/",
    "/documents/",
    "/documents/?q=runbook",
    "/documents/?page=2",
    "/documents/2/",
    "/people/demo/",
    "/login/",
    "/playground/",
    "/queries/",
    "/limits/",
]
API = [
    "/api/rooms/",
    "/api/rooms/engineering/messages/",
    "/api/documents/?q=ledger",
    "/api/documents/2/",
    "/api/people/demo/",
    "/api/stats/",
]


@pytest.mark.parametrize("path", PAGES)
def test_page_renders(demo: Demo, path: str) -> None:
    page = demo.visitor().get(path)
    assert page.status == 200
    assert "<h1" in page.text


@pytest.mark.parametrize("path", PAGES)
def test_page_has_nothing_inline(demo: Demo, path: str) -> None:
    """The Content-Security-Policy forbids it, so it would silently not work."""
    text = demo.visitor().get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize("path", API)
def test_api_answers_json(demo: Demo, path: str) -> None:
    answer = demo.visitor().get(path)
    assert answer.status == 200
    assert answer.json()


@pytest.mark.parametrize("path", ["/", "/rooms/engineering/", "/documents/", "/documents/2/", "/api/rooms/"])
def test_second_read_asks_only_redis(demo: Demo, path: str) -> None:
    visitor = demo.visitor()
    visitor.get(path)
    assert visitor.get(path).sources.keys() == {"redis"}


@pytest.mark.parametrize(
    "path",
    [
        "/rooms/nowhere/",
        "/documents/99999/",
        "/people/nobody/",
        "/api/rooms/nowhere/messages/",
        "/api/documents/99999/",
        "/api/people/nobody/",
    ],
)
def test_what_is_not_there_is_404(demo: Demo, path: str) -> None:
    assert demo.visitor().get(path).status == 404


@pytest.mark.parametrize("before", ["0", "-1", "x", "9" * 40, "\u0662"])
def test_page_of_older_messages_takes_any_nonsense(demo: Demo, before: str) -> None:
    assert demo.visitor().get(f"/rooms/engineering/?before={quote(before)}").status == 200


def test_saying_something_needs_signing_in(demo: Demo) -> None:
    visitor = demo.visitor()
    assert visitor.post("/rooms/books/", body="Hello").status == 302
    assert "Hello" not in visitor.get("/rooms/books/").text


def test_form_without_token_is_refused(demo: Demo) -> None:
    assert Visitor(demo.url).post("/playground/redis/", action="stop").status == 403


def test_message_is_everywhere_at_once(member: Visitor) -> None:
    places = ["/rooms/books/", "/", "/people/demo/", "/api/rooms/books/messages/", "/api/rooms/"]
    for path in places:
        member.get(path)
    assert member.post("/rooms/books/", body="A book about lighthouses.").status == 302
    assert [path for path in places if "A book about lighthouses." not in member.get(path).text] == []


def test_message_through_the_api_is_on_the_page_at_once(member: Visitor) -> None:
    member.get("/rooms/running/")
    assert member.post("/api/rooms/running/messages/", body="Ten kilometres.").status == 201
    assert "Ten kilometres." in member.get("/rooms/running/").text


@pytest.mark.parametrize("body", ["", "x" * 2001])
def test_message_that_is_empty_or_too_long_is_refused(member: Visitor, body: str) -> None:
    assert member.post("/api/rooms/running/messages/", body=body).status == 400
    assert member.post("/rooms/running/", body=body).status == 200


def test_new_document_is_first_in_the_list_and_found(member: Visitor) -> None:
    member.get("/documents/")
    made = member.post(
        "/documents/new/", title="Guide: tying knots", kind="guide", body="Over, under, through."
    )
    assert made.status == 302
    assert "Guide: tying knots" in member.get("/documents/").text
    assert "Guide: tying knots" in member.get("/documents/?q=KNOTS+through").text


def test_search_wants_every_word(demo: Demo) -> None:
    assert demo.visitor().get("/api/documents/?q=runbook+xylophone").json()["total"] == 0


def test_change_in_the_admin_is_on_the_page_at_once(member: Visitor) -> None:
    member.get("/")
    form = member.get("/admin/relay/room/1/change/").text
    fields = dict(re.findall(r'<input type="text" name="(\w+)" value="([^"]*)"', form))
    assert member.post("/admin/relay/room/1/change/", **{**fields, "topic": "Tea and biscuits"}).status == 302
    assert "Tea and biscuits" in member.get("/").text


def test_views_are_counted(demo: Demo) -> None:
    visitor = demo.visitor()
    seen = [int(re.findall(r"seen (\d+) time", visitor.get("/documents/7/").text)[0]) for _ in range(3)]
    assert seen == [1, 2, 3]


def test_text_of_others_is_escaped(member: Visitor) -> None:
    member.post("/rooms/random/", body="<script src=x></script>")
    assert "<script src=x>" not in member.get("/rooms/random/").text
