"""RateLimiter on a live server: exact under concurrency, one command a decision, and nobody's name in it."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.conf import Settings
from redis_infra.exceptions import SettingsError
from redis_infra.throttling import Decision, Policy, Rate, RateLimiter
from redis_infra.throttling import limiter as limiter_module
from redis_infra.throttling.limiter import default_limiter, forget_limiters
from redis_infra.throttling.signals import throttled
from tests.throttling.crowd import Crowd, wait_until, worst

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer


def made(url: str | None, tmp_path: Path, **throttle: Any) -> RateLimiter:
    said = {"URL": url, "STATE_DIR": str(tmp_path / "state"), "THROTTLE": throttle}
    return RateLimiter(settings=Settings.load(said, environ={}))


@pytest.fixture
def limiter(redis_server: RedisServer, tmp_path: Path) -> RateLimiter:
    return made(redis_server.url, tmp_path)


@pytest.fixture(params=["redis", "memory"])
def any_limiter(request: pytest.FixtureRequest, tmp_path: Path) -> RateLimiter:
    """On Redis, and where there is none."""
    if request.param == "memory":
        return made("memory://", tmp_path)
    server: RedisServer = request.getfixturevalue("redis_server")
    server.flush()  # which the test does not name itself
    return made(server.url, tmp_path)


Call = Callable[..., Any]


# --- what people ask ------------------------------------------------------------------------------------


def test_so_many_pass_and_no_more(any_limiter: RateLimiter, call: Call) -> None:
    decisions = [call(any_limiter.hit, "5/15min", "bob") for _ in range(7)]
    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 2
    assert [decision.remaining for decision in decisions] == [4, 3, 2, 1, 0, 0, 0]
    assert call(any_limiter.hit, "5/15min", "eve")


def test_a_decision_is_true_if_it_lets_pass(any_limiter: RateLimiter) -> None:
    assert any_limiter.hit("1/min", "bob")
    assert not any_limiter.hit("1/min", "bob")


@pytest.mark.parametrize(
    "policy",
    ["5/15min", Rate(5, 900), Rate.parse("5/15min"), ["5/15min"], (Rate(5, 900),)],
    ids=repr,
)
def test_a_rate_may_be_said_in_any_way(any_limiter: RateLimiter, policy: Any) -> None:
    assert sum(bool(any_limiter.hit(policy, "bob")) for _ in range(7)) == 5


@pytest.mark.parametrize(("name", "limit"), [("chat", 20), ("upload", 5), ("search", 30), ("auth", 5)])
def test_the_policies_of_the_house_need_no_settings(any_limiter: RateLimiter, name: str, limit: int) -> None:
    who = {"ip": "203.0.113.9", "username": "bob"} if name == "auth" else "user:7"
    assert sum(bool(any_limiter.hit(name, who)) for _ in range(limit + 3)) == limit


def test_several_limits_charge_all_or_none(any_limiter: RateLimiter) -> None:
    decisions = [any_limiter.hit("3/min;4/h", "bob") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert [state.remaining for state in decisions[-1].limits] == [0, 1], "the hour was not charged"


def test_cost_counts(any_limiter: RateLimiter, call: Call) -> None:
    assert call(any_limiter.hit, "10/min", "bob", 7).remaining == 3
    assert not call(any_limiter.hit, "10/min", "bob", 4)
    assert call(any_limiter.hit, "10/min", "bob", 3)


def test_a_cost_of_nothing_only_looks(any_limiter: RateLimiter, call: Call) -> None:
    assert call(any_limiter.hit, "1/min", "bob", 0)
    assert call(any_limiter.hit, "1/min", "bob").remaining == 0


def test_what_can_never_fit_says_so(any_limiter: RateLimiter) -> None:
    decision = any_limiter.hit("10/min", "bob", 11)
    assert (decision.allowed, decision.retry_after) == (False, None)
    assert decision.limits[0].retry_after is None
    assert any_limiter.hit("10/min", "bob").remaining == 9


def test_a_limit_of_none_lets_nobody_pass(any_limiter: RateLimiter) -> None:
    assert not any_limiter.hit("0/min", "bob")


@pytest.mark.parametrize("cost", [-1, 1.0, "1", None, True])
def test_a_cost_is_a_whole_number(any_limiter: RateLimiter, cost: Any) -> None:
    with pytest.raises(ValueError, match="cost"):
        any_limiter.hit("10/min", "bob", cost)


def test_a_look_says_when_one_more_fits(any_limiter: RateLimiter, call: Call) -> None:
    assert call(any_limiter.peek, "1/min", "bob")
    any_limiter.hit("1/min", "bob")
    look = call(any_limiter.peek, "1/min", "bob")
    assert not look
    assert look.retry_after == pytest.approx(60, abs=2)
    assert call(any_limiter.peek, "0/min", "bob").retry_after is None


def test_a_reset_begins_anew_at_once(any_limiter: RateLimiter, call: Call) -> None:
    """Also where a denial was remembered."""
    any_limiter.hit("1/min", "bob")
    assert not any_limiter.hit("1/min", "bob")
    assert call(any_limiter.reset, "1/min", "bob") is True
    assert any_limiter.hit("1/min", "bob")
    assert call(any_limiter.reset, "1/min", "eve") is False


def test_a_refund_gives_back_what_was_charged(any_limiter: RateLimiter, call: Call) -> None:
    first = any_limiter.hit("3/min;9/h", "bob", 2)
    any_limiter.hit("3/min;9/h", "bob")
    call(any_limiter.refund, first)
    assert [state.remaining for state in any_limiter.peek("3/min;9/h", "bob").limits] == [2, 8]


def test_a_decision_is_given_back_once(any_limiter: RateLimiter, call: Call) -> None:
    """Else whoever asks twice gets back what others of his limit were charged."""
    decisions = [call(any_limiter.hit, "5/15min", "bob", cost) for cost in (1, 3)]
    for _ in range(3):
        call(any_limiter.refund, decisions[0])
    assert call(any_limiter.peek, "5/15min", "bob").remaining == 2
    for amount, remaining in ((1, 3), (1, 4), (9, 5), (1, 5)):
        call(any_limiter.refund, decisions[1], None, amount)
        assert call(any_limiter.peek, "5/15min", "bob").remaining == remaining


def test_a_look_is_not_counted(any_limiter: RateLimiter, call: Call) -> None:
    call(any_limiter.hit, "5/15min", "bob")
    before = any_limiter.counters.snapshot()
    call(any_limiter.peek, "5/15min", "bob")
    call(any_limiter.hit, "5/15min", "bob", 0)
    assert any_limiter.counters.snapshot() == before


@pytest.mark.parametrize("policy", [7, None, b"5/min", {"rate": "5/min"}, [], (), [["5/min", "ip"]]])
def test_what_is_no_policy_is_named_with_what_would_be_one(any_limiter: RateLimiter, policy: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(repr(policy))} is not a policy; give the name"):
        any_limiter.hit(policy, "bob")


@pytest.mark.parametrize("identity", [7, None, b"bob", [7]])
def test_an_identity_is_text(any_limiter: RateLimiter, identity: Any) -> None:
    """What is none is not shown: it may be a token."""
    with pytest.raises(SettingsError, match=r"identity is text, such as 'user:7', and not (int|None|bytes)"):
        any_limiter.hit("5/min", identity)


def test_a_refund_may_name_whom(any_limiter: RateLimiter, call: Call) -> None:
    any_limiter.hit("3/min", "bob", 3)
    call(any_limiter.refund, "3/min", "bob", 2)
    assert any_limiter.peek("3/min", "bob").remaining == 2
    with pytest.raises(ValueError, match="identity"):
        any_limiter.refund("3/min")


def test_who_was_denied_gets_nothing_back(any_limiter: RateLimiter) -> None:
    any_limiter.hit("1/min", "bob")
    any_limiter.refund(any_limiter.hit("1/min", "bob"))
    assert any_limiter.peek("1/min", "bob").remaining == 0


def test_a_policy_is_forgotten_as_a_whole(any_limiter: RateLimiter) -> None:
    for who in ("ann", "bob", "eve"):
        any_limiter.hit("upload", who, 5)
    any_limiter.hit("auth", {"ip": "203.0.113.9", "username": "bob"})
    assert any_limiter.forget_policy("upload") == 3
    assert any_limiter.hit("upload", "bob").remaining == 4
    assert any_limiter.hit("auth", {"ip": "203.0.113.9", "username": "bob"}).remaining == 3
    assert any_limiter.forget_policy("auth") == 3


def test_an_unknown_policy_is_named_with_its_neighbours(any_limiter: RateLimiter) -> None:
    with pytest.raises(SettingsError, match=r"'serch'.*'search'"):
        any_limiter.hit("serch", "bob")


def test_identities_must_fit_the_limits(any_limiter: RateLimiter) -> None:
    with pytest.raises(SettingsError, match=r"3 limits, but 2"):
        any_limiter.hit("auth", ["a", "b"])
    with pytest.raises(SettingsError, match=r"'ip\+username'; 'ip' was given"):
        any_limiter.hit("auth", {"ip": "203.0.113.9"})


def test_a_policy_of_none_limits_nobody(redis_server: RedisServer, tmp_path: Path) -> None:
    limiter = made(redis_server.url, tmp_path, RATES={"chat": None})
    assert all(limiter.hit("chat", "bob") for _ in range(50))
    assert redis_server.command("DBSIZE") == 0


def test_policies_of_ones_own(redis_server: RedisServer, tmp_path: Path) -> None:
    limiter = made(
        redis_server.url,
        tmp_path,
        RATES={"chat": "2/min"},
        POLICIES={"export": {"limits": [("1/h", "user"), ("3/h", "ip")]}, "search": ["2/min", "3/h"]},
    )
    assert sum(bool(limiter.hit("chat", "bob")) for _ in range(5)) == 2
    assert sum(bool(limiter.hit("search", "bob")) for _ in range(5)) == 2
    users = [{"user": str(number), "ip": "203.0.113.9"} for number in range(5)]
    assert sum(bool(limiter.hit("export", who)) for who in users) == 3


# --- exactly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [5, 20, 30, 100, 1000])
def test_eight_processes_get_exactly_the_limit(redis_server: RedisServer, tmp_path: Path, limit: int) -> None:
    """Five runs, each of another identity."""
    said = {"URL": redis_server.url, "STATE_DIR": str(tmp_path / "state")}
    sent = -(-limit * 3 // 2 // 8)
    crowd = Crowd(said, [f"{limit}/15min"], [f"run{run}" for run in range(5)], most=sent)
    with crowd:
        crowd.go()
        answers = crowd.answers()
    for run in range(5):
        mine = [answer.allowed for answer in answers if answer.identity == f"run{run}"]
        assert (len(mine), sum(mine)) == (8 * sent, min(8 * sent, limit))


@pytest.mark.parametrize("attack", ["burst then drip", "one then burst", "aligned"])
def test_no_attack_gets_one_more_into_any_window(
    redis_server: RedisServer, tmp_path: Path, attack: str
) -> None:
    said = {"URL": redis_server.url, "STATE_DIR": str(tmp_path / "state")}
    crowd = Crowd(said, ["20/1s"], ["bob"], size=4, pause=0.02 if attack == "burst then drip" else 0.0005)
    with crowd:
        if attack == "aligned":
            wait_until(time.monotonic() + 1 - time.time() % 1)
        elif attack == "one then burst":
            made(redis_server.url, tmp_path).hit("20/1s", "bob")
            wait_until(time.monotonic() + 0.95)
        crowd.go()
        wait_until(time.monotonic() + 2.5)
        answers = crowd.answers()
    assert sum(answer.allowed for answer in answers) >= 40
    assert worst(answers, 1.0) <= 20


def test_a_denial_is_over_to_the_millisecond(limiter: RateLimiter, redis_server: RedisServer) -> None:
    """Denied a millisecond before ``retry_after`` has passed on the server's clock, let through at it."""
    for _ in range(20):
        who = str(random.random())
        limiter.hit("1/100ms", who)
        decision = limiter.hit("1/100ms", who)
        assert decision.retry_after is not None
        assert decision.charged is not None
        due = decision.charged[0] + round(decision.retry_after * 1000)
        limiter.forget_denials()
        while _now(redis_server) < due - 1:
            pass
        early = limiter.hit("1/100ms", who)
        if early:
            assert early.charged is not None
            assert early.charged[0] >= due, "it was late itself"
        else:
            limiter.forget_denials()
            while _now(redis_server) < due:
                pass
            assert limiter.hit("1/100ms", who)


def _now(server: RedisServer) -> int:
    seconds, micros = map(int, server.command("TIME"))
    return seconds * 1000 + micros // 1000


def test_threads_and_tasks_get_exactly_the_limit(limiter: RateLimiter) -> None:
    allowed: list[Decision] = []

    def thread() -> None:
        allowed.extend(decision for _ in range(20) if (decision := limiter.hit("50/15min", "bob")))

    async def tasks() -> None:
        decisions = await asyncio.gather(*(limiter.ahit("50/15min", "bob") for _ in range(50)))
        allowed.extend(filter(None, decisions))

    crowd = [threading.Thread(target=thread) for _ in range(8)]
    crowd.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    assert len(allowed) == 50


# --- cheaply --------------------------------------------------------------------------------------------


def commands(server: RedisServer) -> dict[str, int]:
    """Calls of each command so far, those from within scripts apart."""
    found = {}
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_"):
            name, _, facts = line.removeprefix("cmdstat_").partition(":calls=")
            found[name] = int(facts.partition(",")[0])
    return found


def test_a_decision_is_one_command(limiter: RateLimiter, redis_server: RedisServer, call: Call) -> None:
    call(limiter.hit, "auth", {"ip": "203.0.113.9", "username": "bob"})
    redis_server.command("CONFIG", "RESETSTAT")
    for number in range(10):
        call(limiter.hit, "auth", {"ip": f"203.0.113.{number}", "username": "bob"})
    sent = commands(redis_server)
    assert sent["evalsha"] == 10
    assert set(sent) <= {
        "evalsha",
        "time",
        "get",
        "set",
        "config|resetstat",
        "info",
        "hello",
        "client|setinfo",
    }


def test_a_denial_is_remembered_and_costs_nothing(limiter: RateLimiter, redis_server: RedisServer) -> None:
    limiter.hit("1/15min", "bob")
    assert limiter.hit("1/15min", "bob").source == "redis"
    redis_server.command("CONFIG", "RESETSTAT")
    again = [limiter.hit("1/15min", "bob") for _ in range(10)]
    assert {decision.source for decision in again} == {"cache"}
    assert "evalsha" not in commands(redis_server)
    assert again[-1].retry_after is not None
    assert again[-1].retry_after <= 900.001


def test_a_cheaper_request_is_asked_about(limiter: RateLimiter) -> None:
    limiter.hit("10/15min", "bob", 8)
    assert not limiter.hit("10/15min", "bob", 5)
    assert limiter.hit("10/15min", "bob", 2)


def test_another_process_may_forget_a_denial(redis_server: RedisServer, tmp_path: Path) -> None:
    one, other = made(redis_server.url, tmp_path), made(redis_server.url, tmp_path)
    one.hit("1/15min", "bob")
    assert not one.hit("1/15min", "bob")
    other.reset("1/15min", "bob")
    assert one.hit("1/15min", "bob")


def test_a_million_identities_leave_memory_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process; what is in Redis ends with its window."""
    limiter = made("memory://", tmp_path)
    for number in range(60_000):  # the bound is reached at ten thousand
        limiter.hit("1/15min", f"ip:{number}")
        limiter.hit("1/15min", f"ip:{number}")
    assert len(limiter.memory) <= 10_000 + 1024
    assert len(limiter._denials) <= 10_000


def test_rates_made_up_at_run_time_leave_memory_as_it_is(limiter: RateLimiter) -> None:
    for limit in range(3000):
        limiter.plan(f"{limit}/h")
    assert len(limiter._plans) <= limiter_module.MOST_PLANS


# --- discreetly -----------------------------------------------------------------------------------------


@pytest.fixture
def monitored(redis_server: RedisServer) -> Iterator[Callable[[], str]]:
    import socket

    seen: list[bytes] = []
    sock = socket.socket(socket.AF_UNIX) if redis_server.url.startswith("unix") else None
    if sock is None:
        from urllib.parse import urlsplit

        parts = urlsplit(redis_server.url)
        sock = socket.create_connection((parts.hostname or "", parts.port or 6379))
    else:
        sock.connect(redis_server.url.removeprefix("unix://").partition("?")[0])
    sock.sendall(b"MONITOR\r\n")
    assert sock.recv(64).startswith(b"+OK")

    def text() -> str:
        redis_server.command("ECHO", "the end")
        while b"the end" not in b"".join(seen):
            seen.append(sock.recv(65536))
        return b"".join(seen).decode("utf-8", "replace")

    yield text
    sock.close()


def test_nobody_who_reads_along_learns_who_was_limited(
    limiter: RateLimiter,
    monitored: Callable[[], str],
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    for _ in range(7):
        limiter.hit("auth", {"ip": "203.0.113.77", "username": "bob@example.com"})
    limiter.hit("5/min", "api_key:s3cr3t-token")
    limiter.reset("5/min", "api_key:s3cr3t-token")
    keys = b" ".join(redis_server.command("KEYS", "*")).decode()
    for text in (monitored(), keys, caplog.text, repr(limiter.hit("5/min", "api_key:s3cr3t-token"))):
        assert not any(secret in text for secret in ("203.0.113", "bob", "example", "s3cr3t"))


def test_keys_begin_with_the_sites_prefix_and_share_a_slot(redis_server: RedisServer, tmp_path: Path) -> None:
    said = {"URL": redis_server.url, "STATE_DIR": str(tmp_path / "state"), "KEY_PREFIX": "shop%s"}
    limiter = RateLimiter(settings=Settings.load(said, environ={}))
    limiter.hit("5/min;9/h", "bob")
    limiter.hit("auth", {"ip": "203.0.113.9", "username": "bob"})
    keys = [key.decode() for key in redis_server.command("KEYS", "*")]
    assert all(key.startswith("shop%s:rl:{") for key in keys)
    tags = sorted({key.partition("{")[2].partition("}")[0] for key in keys})
    assert len(tags) == 2
    assert "auth" in tags
    assert all(redis_server.command("TTL", key) > 0 for key in keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bob", "bob"),
        ("bob ", "bob"),
        ("\uff42\uff4f\uff42", "bob"),
        ("stra\u00dfe", "STRASSE"),
        ("\u017c", "z\u0307"),
    ],
)
def test_another_spelling_is_no_other_budget(any_limiter: RateLimiter, one: str, other: str) -> None:
    any_limiter.hit("1/min", one)
    assert not any_limiter.hit("1/min", other)


def test_prefixes_and_policies_are_budgets_of_their_own(redis_server: RedisServer, tmp_path: Path) -> None:
    limiter = made(redis_server.url, tmp_path)
    assert limiter.hit("upload", "bob", 5)
    assert limiter.hit("search", "bob")
    other = RateLimiter(
        settings=Settings.load(
            {"URL": redis_server.url, "STATE_DIR": str(tmp_path / "state"), "KEY_PREFIX": "other"}, environ={}
        )
    )
    assert other.hit("upload", "bob", 5)


# --- for the rest of the site ---------------------------------------------------------------------------


def test_a_denial_is_announced(limiter: RateLimiter) -> None:
    told: list[dict[str, Any]] = []

    def listen(**facts: Any) -> None:
        told.append(facts)
        raise RuntimeError("a listener's own mistake")

    throttled.connect(listen)
    try:
        limiter.hit("1/min", "bob@example.com")
        assert not limiter.hit("1/min", "bob@example.com")
    finally:
        throttled.disconnect(listen)
    (facts,) = told
    assert (facts["policy"], facts["decision"].allowed) == ("1/min", False)
    assert all(len(identity) == 32 and "bob" not in identity for identity in facts["identities"])


def test_decisions_are_counted(any_limiter: RateLimiter) -> None:
    for _ in range(3):
        any_limiter.hit("2/min", "bob")
    counters = any_limiter.counters.snapshot()
    assert (counters["allowed"], counters["denied"]) == (2, 1)
    assert counters["local"] == (3 if any_limiter.remote is None else 0)


def test_the_sites_limiter_follows_its_settings(settings: Any, redis_server: RedisServer) -> None:
    forget_limiters()
    settings.REDIS_INFRA = {"URL": redis_server.url, "THROTTLE": {"RATES": {"chat": "1/min"}}}
    assert default_limiter() is default_limiter()
    assert [bool(default_limiter().hit("chat", "bob")) for _ in range(2)] == [True, False]
    settings.REDIS_INFRA = {"URL": redis_server.url, "THROTTLE": {"RATES": {"chat": "9/min"}}}
    assert default_limiter().hit("chat", "bob").remaining == 7


def test_making_one_opens_nothing(tmp_path: Path) -> None:
    limiter = made("redis://127.0.0.1:1/0", tmp_path)
    assert limiter.policies["chat"].limits[0].rate == Rate(20, 60)
    assert not (tmp_path / "state").exists()
    assert limiter.hit("chat", "bob").source == "host"


def test_policies_are_each_their_own() -> None:
    assert Policy("a", ()) != Policy("a", ())
