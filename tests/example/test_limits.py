"""Relay's four limits and the page that hammers them, over HTTP on a running demo."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from example_project.relay.demo.visitor import Visitor
from tests.example.conftest import Demo, Manage, run_python

CHAT, SEARCH, UPLOADS = "/api/rooms/random/messages/", "/api/documents/?q=runbook", "/api/uploads/"


@pytest.fixture(autouse=True)
def _anew(demo: Demo, member: Visitor) -> None:
    """Begin each test with whole budgets."""
    stranger = demo.visitor()
    for policy in ("search", "chat", "upload", "auth"):
        for visitor in (member, stranger):
            assert visitor.post("/limits/reset/", policy=policy).status == 302


@pytest.fixture
def without_redis(demo: Demo) -> Iterator[None]:
    visitor = demo.visitor()
    visitor.post("/playground/redis/", action="stop")
    yield
    visitor.post("/playground/redis/", action="start")


def state(visitor: Visitor) -> dict[str, Any]:
    answer: dict[str, Any] = visitor.get("/limits/state.json").json()
    return answer


def left(visitor: Visitor) -> dict[str, int]:
    return {name: told["remaining"] for name, told in state(visitor)["standings"].items()}


# --- the endpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "limit"),
    [
        (lambda visitor: visitor.get(SEARCH), 30),
        (lambda visitor: visitor.post(CHAT, body="Hello"), 20),
        (lambda visitor: visitor.upload(UPLOADS, "a.txt", "Text"), 5),
    ],
    ids=["search", "chat", "upload"],
)
def test_answers_say_how_the_limit_stands(member: Visitor, ask: Any, limit: int) -> None:
    answer = ask(member)
    assert answer.status in (200, 201)
    assert re.fullmatch(rf'"\w+";r={limit - 1};t=6[01]', answer.headers["RateLimit"])
    assert re.fullmatch(rf'"\w+";q={limit};w=60', answer.headers["RateLimit-Policy"])
    assert answer.decision["remaining"] == limit - 1


def test_an_answer_of_the_login_says_nothing_but_to_the_demo(demo: Demo) -> None:
    answer = demo.visitor().post("/login/", username="mallory", password="guess")
    assert not [name for name in answer.headers if name.startswith("RateLimit")]
    assert answer.decision["remaining"] == 4


def test_page_and_api_share_a_budget(member: Visitor) -> None:
    member.post("/rooms/random/", body="From the page")
    member.post(CHAT, body="From the API")
    member.get("/documents/?q=runbook")
    member.get(SEARCH)
    assert left(member) == {"search": 28, "chat": 18, "upload": 5, "auth": 5}


def test_looking_around_is_free(member: Visitor) -> None:
    for path in ("/documents/", "/documents/?page=2", "/api/documents/", "/rooms/random/", CHAT):
        assert member.get(path).status == 200
    assert left(member) == {"search": 30, "chat": 20, "upload": 5, "auth": 5}


def test_who_has_not_signed_in_is_counted_apart_from_who_has(demo: Demo, member: Visitor) -> None:
    stranger = demo.visitor()
    stranger.get(SEARCH)
    assert (left(stranger)["search"], left(member)["search"]) == (29, 30)


def test_upload_is_a_document(member: Visitor) -> None:
    assert member.upload(UPLOADS, "Guide to lighthouses.txt", "Built on rocks.").status == 201
    assert "Guide to lighthouses.txt" in member.get("/documents/").text


@pytest.mark.parametrize("text", ["", "x" * 70_000], ids=["empty", "too large"])
def test_upload_of_what_is_no_document_is_refused(member: Visitor, text: str) -> None:
    assert member.upload(UPLOADS, "a.txt", text).status == 400


def test_upload_needs_signing_in(demo: Demo) -> None:
    assert demo.visitor().upload(UPLOADS, "a.txt", "Text").status == 403


def test_browsers_get_a_page_of_the_site(demo: Demo) -> None:
    browser = Visitor(demo.url, accept="text/html")
    answers = [browser.get("/documents/?q=runbook") for _ in range(31)]
    assert [answer.status for answer in answers] == [200] * 30 + [429]
    assert "<h1>Too many at once</h1>" in answers[-1].text
    assert "relay/relay.css" in answers[-1].text
    assert not re.search(r"<script|<style|\sstyle=", answers[-1].text)


# --- signing in -----------------------------------------------------------------------------------------


def test_the_right_password_gives_the_attempt_back(demo: Demo) -> None:
    for _ in range(6):
        demo.member()


def test_the_admin_is_no_way_around_the_login(demo: Demo) -> None:
    visitor = demo.visitor()
    login = {"username": "mallory", "password": "guess"}
    answers = [visitor.post(path, **login).status for path in ("/login/", "/admin/login/") * 3]
    assert answers == [200, 200, 200, 200, 200, 429]


def test_who_is_signed_in_is_led_on(member: Visitor) -> None:
    assert member.get("/login/").status == 302


STEP_UP = """
import json
import django
django.setup()
from django.conf import settings
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
User.objects.create_user("bob", password="right")
def ask(number, password, **more):
    answer = Client(REMOTE_ADDR=f"198.51.100.{number}").post(
        "/login/", {"username": "bob", "password": password, **more})
    return [answer.status_code, "seven and five" in answer.content.decode()]
said = {"guesses": [ask(number // 3, "guess") for number in range(30)]}
said["after"] = ask(50, "guess")
said["password alone"] = ask(51, "right")
said["wrong answer"] = ask(52, "right", answer="11")
said["wrong password"] = ask(53, "guess", answer="12")
said["both"] = ask(54, "right", answer="Twelve")
said["from one address"] = [ask(60, "guess", answer="12")[0] for _ in range(6)]
print(json.dumps(said))
"""


def test_an_account_that_is_guessed_at_from_everywhere_asks_a_question_and_is_not_locked(
    tmp_path: Any,
) -> None:
    done = run_python(
        "-c",
        STEP_UP,
        RELAY_DATABASE=str(tmp_path / "relay.sqlite3"),
        REDIS_ENABLED="false",
        DJANGO_SETTINGS_MODULE="example_project.settings",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "guesses": [[200, False]] * 30,
        "after": [200, True],
        "password alone": [200, True],
        "wrong answer": [200, True],
        "wrong password": [200, True],
        "both": [302, False],
        "from one address": [200] * 5 + [429],
    }


# --- the page -------------------------------------------------------------------------------------------


def test_page_shows_what_can_be_hammered(member: Visitor) -> None:
    text = member.get("/limits/").text
    assert re.findall(r'data-endpoint="(\w+)" data-method="(\w+)" data-path="([^"]+)"', text) == [
        ("search", "GET", SEARCH),
        ("chat", "POST", CHAT),
        ("upload", "POST", UPLOADS),
        ("auth", "POST", "/login/"),
    ]
    assert "<code>30/min</code> by user_or_ip" in text
    assert "<code>5/15min</code> by ip+username" in text


def test_page_offers_to_sign_in_where_that_is_needed(demo: Demo) -> None:
    text = demo.visitor().get("/limits/").text
    assert len(re.findall(r'value="(?:chat|upload)" disabled', text)) == 2
    assert not re.search(r'value="(?:search|auth)"(?: checked)? disabled', text)


def test_command_on_the_page_shows_the_same_in_a_terminal(member: Visitor, manage: Manage) -> None:
    member.get(SEARCH)
    said = re.search(r"In a terminal: <code>REDIS_URL=(\S+) REDIS_PREFIX=(\S+) ", member.get("/limits/").text)
    assert said
    done = manage("throttle_status", "search", REDIS_URL=said[1], REDIS_PREFIX=said[2])
    assert done.returncode == 0, done.stderr
    assert "30/min by user_or_ip: 1 identity, 0 blocked" in done.stdout


def test_without_redis_the_host_decides_and_nobody_has_a_fresh_budget(
    member: Visitor, without_redis: None
) -> None:
    answers = [member.upload(UPLOADS, "a.txt", "Text") for _ in range(6)]
    assert [answer.status for answer in answers] == [201] * 5 + [429]
    assert {answer.decision["source"] for answer in answers[:5]} == {"host"}
    now = state(member)
    assert (now["who"], now["power"]) == ("host", "stopped")
    assert now["headline"] == "Redis is away, the limits hold"


def test_beginning_anew_takes_a_policy_of_the_page(member: Visitor) -> None:
    assert member.post("/limits/reset/", policy="everything").status == 400
    assert member.get("/limits/reset/").status == 405
