"""``throttle_status`` and ``throttle_reset``: what they say of whom, and what is forgotten."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import RequestFactory
from rest_framework.request import Request
from rest_framework.views import APIView

from redis_infra.observability.limit_names import find_limits
from redis_infra.observability.limits import Tallies
from redis_infra.throttling.drf import ChatRateThrottle, UserRateThrottle
from redis_infra.throttling.limiter import RateLimiter, default_limiter
from redis_infra.throttling.local import Name
from redis_infra.throttling.plans import tag_of
from redis_infra.throttling.signals import throttled
from tests.faults.site import wait_until

ADDRESS, NAME = "203.0.113.77", "bob.the.builder"
POLICIES = {
    "both": {"limits": [("5/15min", "ip+username"), ("20/15min", "ip"), ("30/h", "username")]},
    "tenant": {"limits": "9/h", "key": "tenant"},
    "agent": {"limits": "9/h", "key": "header:X-Agent"},
    "mail": {"limits": "9/h", "key": "field:email"},
    "two": {"limits": "2/h", "key": "user"},
    "strict": {"limits": "2/h", "key": "ip", "on_outage": "deny"},
}


@dataclass
class Outcome:
    code: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    def limits(self, policy, group=""):
        [found] = [each for each in self.json["policies"] if (each["name"], each["group"]) == (policy, group)]
        return found["limits"]

    def limit(self, policy, group=""):
        [found] = self.limits(policy, group)
        return found

    def used(self):
        """What is used, by the names of policies and limits."""
        return {
            (policy["name"], limit["name"]): standing["used"]
            for policy in self.json["policies"]
            for limit in policy["limits"]
            for standing in limit["top"]
        }


class User:
    is_authenticated = True

    def __init__(self, pk):
        self.pk = pk


@pytest.fixture
def run():
    """Run a command: ``run("throttle_status", "chat")``."""

    def call(*args):
        out = StringIO()
        try:
            call_command(*args, "--no-color", stdout=out, stderr=out)
        except SystemExit as end:
            return Outcome(int(end.code or 0), out.getvalue())
        return Outcome(0, out.getvalue())

    return call


@pytest.fixture
def status(run):
    return lambda *args: run("throttle_status", *args)


@pytest.fixture
def status_json(status):
    return lambda *args: status(*args, "--format", "json")


@pytest.fixture
def reset(run):
    return lambda *args: run("throttle_reset", *args)


@pytest.fixture
def said(settings, tmp_path):
    """Set up REDIS_INFRA: ``said(url, HOSTS=2)``."""

    def make(url, **throttle):
        settings.REDIS_INFRA = {
            "URL": url,
            "STATE_DIR": str(tmp_path / "state"),
            "COMMAND_TIMEOUT": "10s",
            "BREAKER": {"probe_base": "5ms", "probe_cap": "20ms"},
            "THROTTLE": {"POLICIES": POLICIES, **throttle},
        }
        return default_limiter()

    return make


@pytest.fixture
def limiter(said, redis_server):
    return said(redis_server.url)


@pytest.fixture
def own(own_redis):
    """A server that may be taken away."""
    return own_redis()


def request(address=ADDRESS, user=None, headers=None, tenant=None, **fields):
    made = RequestFactory().post("/", fields, REMOTE_ADDR=address, headers=headers or {})
    made.tenant = tenant
    if user is not None:
        made.user = User(user)
    return made


def charge(limiter, name, asked, times=1):
    """Charge a request as middleware and decorators do."""
    policy = limiter.policies[name]
    return [bool(limiter.hit(policy, policy.identities(asked))) for _ in range(times)]


def put(server, key, *entries):
    """Write a log as ``hit.lua`` does: pairs of stamp and count."""
    total = sum(count for _, count in entries)
    server.command("SET", key, f"{total:010}" + "".join(f"{stamp:013}{count:07}" for stamp, count in entries))


# --- what is shown --------------------------------------------------------------------------------------


def test_every_policy_is_shown_with_its_limits_also_without_a_log(limiter, status):
    text = status().text
    for line in (
        "chat\n  20/min by user_or_ip: 0 identities, 0 blocked",
        "  both-ip+username-15min: 5/15min by",
    ):
        assert line in text


def test_who_is_blocked_is_counted_and_the_fullest_is_first(limiter, status, status_json):
    for user, times in ((1, 1), (2, 2), (3, 3)):
        charge(limiter, "two", request(user=user), times)
    limit = status_json("two").limit("two")
    assert (limit["rate"], limit["key"], limit["identities"], limit["blocked"]) == ("2/h", "user", 3, 2)
    assert [(each["used"], each["remaining"], each["blocked"]) for each in limit["top"]] == [
        (2, 0, True),
        (2, 0, True),
        (1, 1, False),
    ]
    assert re.search(
        r"2 used, 0 left; BLOCKED, one more fits in (1h|59min \d+s|59min|60min)\n", status("two").text
    )


def test_blocked_lists_only_those_and_counts_all(limiter, status_json):
    charge(limiter, "two", request(user=1), 1)
    charge(limiter, "two", request(user=2), 3)
    limit = status_json("two", "--blocked").limit("two")
    assert (limit["identities"], [each["used"] for each in limit["top"]]) == (2, [2])


def test_digest_is_the_one_that_the_signal_tells(limiter, status_json):
    told = []
    throttled.connect(listener := lambda **said: told.append(said["identities"]), weak=False)
    try:
        charge(limiter, "two", request(user=7), 3)
    finally:
        throttled.disconnect(listener)
    assert [[each["identity"] for each in status_json("two").limit("two")["top"]]] == told


def test_nobody_is_named(limiter, status):
    charge(limiter, "both", request(username=NAME), 6)
    for args in ((), ("--format", "json"), ("--ident", f"ip={ADDRESS},username={NAME}")):
        text = status("both", *args).text
        assert ADDRESS not in text
        assert NAME not in text


def test_looking_charges_nothing(limiter, status):
    charge(limiter, "two", request(user=7))
    for _ in range(3):
        status("--ident", "user:7")
        status()
    assert charge(limiter, "two", request(user=7), 2) == [True, False]


def test_counters_are_those_of_this_process(limiter, status):
    charge(limiter, "two", request(user=7), 3)
    assert "this process itself: 2 allowed, 1 denied, 0 of them" in status("two").text


def test_a_scope_that_there_is_not_is_usage(limiter, status):
    with pytest.raises(
        CommandError, match="'caht' is not a policy and has no logs; did you mean 'chat'"
    ) as error:
        status("caht")
    assert error.value.returncode == 2


@pytest.mark.parametrize(
    "args",
    [("--top", "-1"), ("--ident", "user:7", "--top", "3"), ("--ident", "user:7", "--blocked")],
    ids=" ".join,
)
def test_what_does_not_go_together_is_usage(limiter, status, args):
    with pytest.raises(CommandError) as error:
        status(*args)
    assert error.value.returncode == 2


# --- one client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "asked", "ident", "limits"),
    [
        ("two", request(user=7), "user:7", ["two"]),
        ("two", request(user=7), "user=7", ["two"]),
        ("two", request(user="aB-3"), "user:aB-3", ["two"]),
        ("two", request(), f"ip:{ADDRESS}", ["two"]),
        ("chat", request(user=7), "user:7", ["chat"]),
        ("chat", request(), f"ip:{ADDRESS}", ["chat"]),
        ("chat", request("2001:db8::1"), "ip:2001:db8::ffff", ["chat"]),
        ("chat", request("::ffff:203.0.113.77"), f"ip:{ADDRESS}", ["chat"]),
        ("tenant", request(tenant="Acme"), "tenant:Acme", ["tenant"]),
        ("agent", request(headers={"X-Agent": "a=b,c"}), "header:X-Agent=a=b,c", ["agent"]),
        ("mail", request(email="Bob@Example.org"), "field:email=bob@example.org", ["mail"]),
        ("both", request(username=NAME), f"username={NAME.upper()}", ["both-username-h"]),
        ("both", request(username=NAME), f"ip:{ADDRESS}", ["both-ip-15min"]),
        (
            "both",
            request(username="bob,ip"),
            f"ip={ADDRESS},username=bob,ip",
            ["both-ip+username-15min", "both-ip-15min", "both-username-h"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_is_typed_is_who_was_charged(limiter, status_json, policy, asked, ident, limits):
    charge(limiter, policy, asked, 2)
    charge(limiter, policy, request("198.51.100.1", user=8, username="eve", email="e@e", headers={}))
    assert status_json(policy, "--ident", ident).used() == {(policy, limit): 2 for limit in limits}


def test_without_a_scope_all_limits_that_fit_are_shown(limiter, status_json):
    charge(limiter, "chat", request(user=7), 3)
    used = status_json("--ident", "user:7").used()
    assert used["chat", "chat"] == 3
    assert used["search", "search"] == 0
    assert ("both", "both-ip-15min") not in used


def test_a_text_is_taken_as_code_hands_it_over(limiter, status_json):
    limiter.hit("chat", "worker 3")
    assert status_json("chat", "--ident", "text:worker 3").used() == {("chat", "chat"): 1}


def test_a_digest_is_taken_as_status_shows_it(limiter, status_json):
    charge(limiter, "both", request(username=NAME), 2)
    shown = status_json("both").limits("both")[2]["top"][0]["identity"]
    assert status_json("both", "--ident", f"digest:{shown}").used()["both", "both-username-h"] == 2


@pytest.mark.parametrize(
    "ident", ["uzer:7", "bob", "", "ip:", "user= ", "digest:12", "ip:not-an-address", "text:"]
)
def test_what_is_no_client_is_usage_and_not_repeated(limiter, status, ident):
    with pytest.raises(CommandError, match="--ident") as error:
        status("--ident", ident)
    assert error.value.returncode == 2
    value = ident.partition(":")[2]
    assert not value or value not in str(error.value).split("write such as")[0]


def test_who_says_too_little_is_told_what_limits_go_by(limiter, status):
    with pytest.raises(CommandError, match=r"says too little; these limits go by ip, ip\+username, username"):
        status("both", "--ident", "user:7")


# --- Django REST framework ------------------------------------------------------------------------------


def ask(throttle, user=7, times=1):
    allowed = []
    for _ in range(times):
        asked = Request(RequestFactory().get("/", REMOTE_ADDR=ADDRESS))
        asked.user = User(user)
        allowed.append(throttle().allow_request(asked, APIView()))
    return allowed


def test_scopes_of_drop_in_classes_are_shown_by_themselves(limiter, settings, status_json):
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"user": "3/min;9/h"}}
    assert ask(UserRateThrottle, times=4) == [True] * 3 + [False]
    minute, hour = status_json("user").limits("user", "drf")
    assert (minute["rate"], minute["blocked"], hour["rate"], hour["blocked"]) == ("3/min", 1, "9/h", 0)
    assert set(status_json("user", "--ident", "user:7").used().values()) == {3}


def test_a_scope_of_ours_is_beside_the_policy_of_that_name(limiter, status_json):
    ask(ChatRateThrottle, times=2)
    charge(limiter, "chat", request(user=7))
    found = status_json("chat", "--ident", "user:7")
    assert found.limit("chat")["top"][0]["used"] == 1
    assert found.limit("chat", "drf")["top"][0]["used"] == 2


def test_a_scope_that_was_never_asked_is_not_shown(limiter, status_json):
    assert {policy["group"] for policy in status_json().json["policies"]} == {""}


# --- logs -----------------------------------------------------------------------------------------------


def test_a_rate_that_stands_in_code_is_shown_by_what_its_logs_say(limiter, status, status_json):
    limiter.hit("7/2h", "x")
    limit = status_json().limit("7/2h", "code")
    assert (limit["rate"], limit["identities"], limit["top"][0]["used"]) == (None, 1, 1)
    assert 7190 < limit["top"][0]["reset_after"] <= 7200.001
    assert "7/2h (not in settings)\n  2h: rate not known here: 1 identity" in status("7/2h").text


def test_what_a_log_has_forgotten_does_not_count(limiter, redis_server, status_json):
    charge(limiter, "two", request(user=7))
    [key] = redis_server.command("KEYS", "*two*")
    now = int(time.time() * 1000)
    put(redis_server, key, (now - 3_700_000, 2), (now - 1_800_000, 1))
    [standing] = status_json("two").limit("two")["top"]
    assert (standing["used"], standing["blocked"]) == (1, False)
    assert 1795 < standing["reset_after"] <= 1801
    put(redis_server, key, (now - 3_700_000, 2))
    assert status_json("two").limit("two")["identities"] == 0


def test_a_lowered_limit_shows_who_is_above_it(limiter, said, redis_server, status_json):
    charge(limiter, "chat", request(user=7), 12)
    said(redis_server.url, RATES={"chat": "10/min"})
    [standing] = status_json("chat").limit("chat")["top"]
    assert (standing["used"], standing["remaining"], standing["blocked"]) == (12, 0, True)


def test_many_logs_are_counted_and_the_top_is_the_top(limiter, redis_server, status_json):
    """More than SCAN returns at once, and than are read at once."""
    now = int(time.time() * 1000)
    for number in range(2500):
        put(redis_server, f"ri:rl:{{{number:032x}}}:chat:min", (now, number % 21))
    limit = status_json("chat", "--top", "3").limit("chat")
    assert limit["identities"] == 2500 - len(range(0, 2500, 21))
    assert limit["blocked"] == len(range(20, 2500, 21))
    assert [each["used"] for each in limit["top"]] == [20, 20, 20]


def test_a_million_logs_are_not_kept():
    found = Tallies({}, top=5)
    for number in range(10_000):
        found.take(Name("chat:min", f"{number:032x}"), [[0, number]], 0, found.terms("chat:min"))
        found.take(Name(f"made.up.{number}:min", "0" * 32), [[0, 1]], 0, found.terms("chat:min"))
    [tally] = [each for label, each in found._found.items() if label == "chat:min"]
    assert (len(tally._top), len(tally._in_top)) == (5, 5)
    assert len(found._found) == 200
    assert found.omitted == 9_801


def test_a_key_that_scan_shows_twice_is_in_the_top_once():
    found = Tallies({}, top=5)
    for _ in range(2):
        found.take(Name("chat:min", "0" * 32), [[0, 3]], 0, found.terms("chat:min"))
    assert len(found.policies()[0].limits[0].top) == 1


def test_what_is_no_log_is_left_alone(limiter, redis_server, status_json):
    charge(limiter, "two", request(user=7))
    [key] = redis_server.command("KEYS", "*two*")
    identity = "0" * 32
    redis_server.command("SET", key.decode() + ":+" + "ab" * 8, "1")
    redis_server.command("SET", "ri:rl:{x}:two:h", "0" * 30)
    redis_server.command("SET", f"ri:rl:{{{identity}}}:two:h", "not a log")
    redis_server.command("LPUSH", f"ri:rl:{{{identity[:-1]}1}}:two:h", "1")
    redis_server.command("SET", b"ri:rl:{\xff}:\xfe", "1")
    assert [
        (policy["name"], limit["identities"])
        for policy in status_json().json["policies"]
        for limit in policy["limits"]
        if limit["identities"]
    ] == [("two", 1)]


def test_keys_is_never_asked(limiter, redis_server, status, reset):
    charge(limiter, "two", request(user=7))
    redis_server.command("CONFIG", "RESETSTAT")
    status()
    status("--ident", "user:7")
    reset("two", "--all", "--yes")
    asked = redis_server.command("INFO", "commandstats").decode()
    assert "cmdstat_scan:" in asked
    assert "cmdstat_keys:" not in asked


# --- outages --------------------------------------------------------------------------------------------


def back(limiter):
    """Wait until Redis decides again."""
    wait_until(lambda: not limiter.remote.limits.host.decides, 20)


def test_redis_that_went_unnoticed_is_said_with_the_remedy(said, own, status):
    said(own.url)
    own.kill()
    outcome = status("chat")
    assert outcome.code == 0
    assert "decided by the processes of this host (" in outcome.text
    assert re.search(r"why: \w+", outcome.text)
    assert "what to do: start the server" in outcome.text


def test_while_redis_is_away_the_logs_of_the_host_are_shown(said, own, status_json):
    limiter = said(own.url)
    own.kill()
    charge(limiter, "two", request(user=7), 3)
    outcome = status_json("two")
    assert (outcome.code, outcome.json["status"], outcome.json["keeper"]["who"]) == (0, "warn", "host")
    assert abs(time.time() - outcome.json["keeper"]["since"]) < 60
    assert [(each["used"], each["blocked"]) for each in outcome.limit("two")["top"]] == [(2, True)]


def test_one_client_is_shown_with_what_redis_last_knew(said, own, status_json):
    limiter = said(own.url)
    charge(limiter, "two", request(user=7), 2)
    own.kill()
    charge(limiter, "two", request(user=8))
    [standing] = status_json("two", "--ident", "user:7").limit("two")["top"]
    assert (standing["used"], standing["blocked"]) == (2, True)
    assert 3500 < standing["retry_after"] <= 3601


def test_a_host_of_several_shows_its_share(said, own, status_json):
    limiter = said(own.url, HOSTS=2)
    own.kill()
    charge(limiter, "chat", request(user=7), 4)
    [standing] = status_json("chat").limit("chat")["top"]
    assert (standing["used"], standing["remaining"]) == (4, 6)


def test_a_policy_that_counts_nobody_meanwhile_says_so(said, own, status):
    said(own.url)
    own.kill()
    assert (
        "nobody is counted while Redis is away: everybody is turned away (on_outage)" in status("strict").text
    )
    assert "nobody is counted" not in status("two").text


def test_after_the_outage_redis_shows_both(said, own, status_json):
    limiter = said(own.url)
    charge(limiter, "chat", request(user=7), 2)
    own.kill()
    charge(limiter, "chat", request(user=7), 3)
    own.start()
    back(limiter)
    outcome = status_json("chat")
    assert outcome.json["keeper"]["who"] == "redis"
    # The server came back without what it had: appendonly is off.
    assert [each["used"] for each in outcome.limit("chat")["top"]] == [5]


def test_a_wrong_password_fails_and_is_not_said(said, own_redis, status):
    server = own_redis(config={"requirepass": "r1ght"})
    said(server.url.replace("unix://", "unix://:wr0ng@"))
    outcome = status("chat")
    assert outcome.code == 1
    assert "correct the URL, user, password" in outcome.text
    assert "wr0ng" not in outcome.text


def test_wrong_settings_are_said_with_the_check_that_explains_them(settings, status):
    settings.REDIS_INFRA = {"THROTTLE": {"RATES": {"chat": "10/month"}}}
    with pytest.raises(CommandError, match=r"10/month.*manage.py check"):
        status()


def test_without_redis_each_process_counts_for_itself_and_says_so(settings, status, reset):
    settings.REDIS_INFRA = {"THROTTLE": {"POLICIES": POLICIES}}
    limiter = default_limiter()
    charge(limiter, "two", request(user=7), 3)
    text = status("two").text
    assert text.startswith("decided by each process for itself (memory)\n")
    assert "each process counts for itself" in text
    assert "1 identity, 1 blocked" in text
    assert "each of the site's has its own" in reset("two", "--ident", "user:7").text
    assert charge(limiter, "two", request(user=7)) == [True]


# --- forgetting -----------------------------------------------------------------------------------------


def test_who_is_forgotten_begins_anew_and_nobody_else(limiter, reset):
    for user in (7, 8):
        charge(limiter, "two", request(user=user), 3)
    assert reset("two", "--ident", "user:7").text == "two: forgot 1 log\n"
    assert charge(limiter, "two", request(user=7), 3) == [True, True, False]
    assert charge(limiter, "two", request(user=8)) == [False]


def test_another_process_that_remembers_the_denial_lets_go_of_it(limiter, reset):
    other, policy = RateLimiter(), limiter.policies["two"]
    charge(limiter, "two", request(user=7), 2)
    assert [other.hit(policy, "user:7").source for _ in range(3)][-1] == "cache"
    reset("two", "--ident", "user:7")
    assert other.hit(policy, "user:7")


def test_one_limit_of_several_is_forgotten_where_no_more_was_said(limiter, reset, status_json):
    charge(limiter, "both", request(username=NAME), 5)
    assert reset("both", "--ident", f"username:{NAME}").text == "both: forgot 1 log\n"
    assert [limit["identities"] for limit in status_json("both").limits("both")] == [1, 1, 0]
    assert reset("both", "--ident", f"ip={ADDRESS},username={NAME}").text == "both: forgot 2 logs\n"
    assert charge(limiter, "both", request(username=NAME)) == [True]


def test_a_digest_forgets_too(limiter, status_json, reset):
    charge(limiter, "two", request(user=7), 2)
    shown = status_json("two").limit("two")["top"][0]["identity"]
    assert reset("two", "--ident", f"digest:{shown}").text == "two: forgot 1 log\n"


def test_a_digest_forgets_as_it_is_shown(limiter, status, reset):
    charge(limiter, "two", request(user=7), 2)
    shown = re.search(r"^    (\S+)  2 used", status("two").text, re.MULTILINE)[1]
    assert reset("two", "--ident", shown).text == "two: forgot 1 log\n"


@pytest.mark.parametrize(("policy", "ident"), [("both", "username?unread"), ("mail", "field:email?unread")])
def test_names_that_nobody_could_read_are_forgotten_as_the_documentation_writes_them(
    limiter, reset, policy, ident
):
    asked = RequestFactory().post("/", "<x/>", "text/xml", REMOTE_ADDR=ADDRESS)
    charge(limiter, policy, asked)
    assert reset(policy, "--ident", ident).text == f"{policy}: forgot 1 log\n"


def test_what_stands_for_unread_names_is_usage_where_no_limit_goes_by_names(limiter, reset):
    with pytest.raises(CommandError, match="--ident") as error:
        reset("two", "--ident", "username?unread")
    assert error.value.returncode == 2


def test_nothing_to_forget_is_no_error(limiter, reset):
    assert reset("two", "--ident", "user:7") == Outcome(0, "two: forgot 0 logs\n")


@pytest.mark.parametrize("whom", [("--ident", "user:7"), ("--all",)], ids=["one", "all"])
def test_dry_run_says_how_many_and_forgets_nothing(limiter, reset, whom):
    charge(limiter, "two", request(user=7), 2)
    assert reset("two", *whom, "--dry-run").text == "two: would forget 1 log\n"
    assert charge(limiter, "two", request(user=7)) == [False]


def test_all_forgets_a_policy_and_the_scope_of_that_name_and_no_other(limiter, reset):
    charge(limiter, "chat", request(user=7), 20)
    ask(ChatRateThrottle, times=20)
    charge(limiter, "two", request(user=7), 2)
    assert reset("chat", "--all", "--yes").text == "chat: forgot 2 logs\n"
    assert charge(limiter, "chat", request(user=7)) == [True]
    assert ask(ChatRateThrottle) == [True]
    assert charge(limiter, "two", request(user=7)) == [False]


@pytest.mark.parametrize(
    ("answer", "told", "left"),
    [("y", "two: forgot 1 log", 0), ("YES ", "two: forgot 1 log", 0), ("", "Nothing was forgotten.", 1)],
)
def test_all_asks_first(limiter, reset, status_json, monkeypatch, answer, told, left):
    charge(limiter, "two", request(user=7))
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    assert told in reset("two", "--all").text
    assert asked == ["Forget 1 log of 'two'? [y/N] "]
    assert status_json("two").limit("two")["identities"] == left


def test_all_does_not_ask_where_nobody_is(limiter, reset, monkeypatch):
    charge(limiter, "two", request(user=7), 2)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(CommandError, match="--yes") as error:
        reset("two", "--all")
    assert error.value.returncode == 2
    assert charge(limiter, "two", request(user=7)) == [False]


@pytest.mark.parametrize("args", [(), ("--all", "--ident", "user:7")], ids=["neither", "both"])
def test_whom_has_to_be_said_once(limiter, reset, args):
    with pytest.raises(CommandError):
        reset("two", *args)


def test_a_policy_that_there_is_not_is_not_forgotten(limiter, reset):
    with pytest.raises(CommandError, match="'tow' is not a policy") as error:
        reset("tow", "--all", "--yes")
    assert error.value.returncode == 2


def test_json_says_what_became_of_it(limiter, reset):
    charge(limiter, "two", request(user=7))
    assert reset("two", "--ident", "user:7", "--format", "json").json == {
        "schema": "redis_infra.throttle_reset/1",
        "scope": "two",
        "dry_run": False,
        "forgotten": 1,
        "kept_by": "redis",
    }


@pytest.mark.parametrize("whom", [("--ident", "user:7"), ("--all", "--yes")], ids=["one", "all"])
def test_in_an_outage_the_host_forgets_now_and_redis_on_return(said, redis_proxy, reset, whom):
    limiter = said(redis_proxy.url)
    charge(limiter, "two", request(user=7), 1)
    redis_proxy.refuse()
    assert charge(limiter, "two", request(user=7), 2) == [True, False]
    assert "Redis is away, and forgets what it has when it answers" in reset("two", *whom).text
    assert charge(limiter, "two", request(user=7), 1) == [True]
    redis_proxy.heal()
    back(limiter)
    assert charge(limiter, "two", request(user=7), 2) == [True, False]


# --- as a process ---------------------------------------------------------------------------------------

STATUS = [sys.executable, "-m", "django", "throttle_status", "--settings", "tests.settings"]


def test_who_has_read_enough_may_close_the_pipe(redis_server):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(  # noqa: PLW1510
            STATUS,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "REDIS_URL": redis_server.url},
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_it_without_a_traceback(tmp_path):
    settings = (
        "from tests.settings import *\nREDIS_INFRA = {'COMMAND_TIMEOUT': '60s', 'CONNECT_TIMEOUT': '60s'}\n"
    )
    (tmp_path / "patient.py").write_text(settings)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(30)
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        path = f"{tmp_path}{os.pathsep}{os.getcwd()}"
        process = subprocess.Popen(
            [*STATUS[:-1], "patient"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "REDIS_URL": url, "PYTHONPATH": path},
        )
        with process, nobody.accept()[0]:  # it has connected, and waits for a reply
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err


def test_every_limit_that_settings_name_has_the_label_of_its_logs(limiter):
    """Or else nothing would be found of it."""
    labels = {label for policy in limiter.policies.values() for label in limiter.plan(policy).labels}
    assert labels <= set(find_limits(limiter))


@pytest.mark.parametrize("form", ["{}", "digest:{}"])
def test_status_takes_a_digest_as_it_is(limiter, status, form):
    limiter.hit("chat", "user:7")
    shown = form.format(tag_of("user:7").text.decode())
    assert status("chat", "--ident", shown).text == status("chat", "--ident", "user:7").text
    assert "1 identity" in status("chat", "--ident", shown).text
