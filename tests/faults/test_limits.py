"""Limits hold while Redis is killed, frozen, full, read-only or locked; among all processes of a host."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.conf import Settings
from redis_infra.exceptions import SettingsError
from redis_infra.testing import TcpProxy
from redis_infra.throttling import Decision, RateLimiter
from redis_infra.throttling.host import Host
from tests.forking import in_child
from tests.throttling.crowd import Crowd, slowest, sources, wait_until, worst

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

PATIENT = 1.0
"""Seconds within which a limiter's 100 ms have passed, on a machine with much else to do."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    from redis_infra.testing import RedisServer

    with RedisServer() as server:
        yield server


@pytest.fixture
def said(server: RedisServer, tmp_path: Path) -> dict[str, Any]:
    """What REDIS_INFRA says."""
    return {"URL": server.url, "STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def limiter(said: dict[str, Any]) -> RateLimiter:
    return made(said)


def made(said: dict[str, Any], **throttle: Any) -> RateLimiter:
    return RateLimiter(settings=Settings.load({**said, "THROTTLE": throttle}, environ={}))


def hits(limiter: RateLimiter, policy: str, identity: str, count: int) -> list[bool]:
    return [bool(limiter.hit(policy, identity)) for _ in range(count)]


def scripts_called(server: RedisServer) -> int:
    stats = server.command("INFO", "commandstats")
    return sum(int(found) for found in re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", str(stats)))


def host_of(limiter: RateLimiter) -> Host:
    assert limiter.remote is not None
    return limiter.remote.limits.host


def wait_for(what: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def back_with_redis(limiter: RateLimiter) -> None:
    """Wait until Redis decides again."""
    wait_for(lambda: not host_of(limiter).decides)


# --- nobody gets a budget twice -------------------------------------------------------------------------


def test_an_outage_begins_with_what_redis_last_knew(server: RedisServer, limiter: RateLimiter) -> None:
    assert hits(limiter, "5/15min", "bob", 3) == [True] * 3
    server.kill()
    assert hits(limiter, "5/15min", "bob", 4) == [True, True, False, False]


def test_nobody_begins_anew_when_redis_is_back(server: RedisServer, limiter: RateLimiter) -> None:
    """The server has lost everything with its restart: what it knew and what came since are told to it."""
    hits(limiter, "5/15min", "bob", 3)
    hits(limiter, "5/15min", "eve", 5)
    server.kill()
    assert hits(limiter, "5/15min", "bob", 1) == [True]
    server.start()
    back_with_redis(limiter)
    assert hits(limiter, "5/15min", "bob", 3) == [True, False, False]
    assert hits(limiter, "5/15min", "eve", 1) == [False], "nobody asked for her in the outage"


def test_a_restart_that_nobody_noticed_gives_no_fresh_budget(
    server: RedisServer, limiter: RateLimiter
) -> None:
    hits(limiter, "5/15min", "bob", 5)
    server.restart()
    time.sleep(1.1)  # an idle connection is looked at before it is used, so nobody meets the break
    decision = limiter.hit("5/15min", "bob")
    assert not decision
    assert limiter.peek("5/15min", "bob").remaining == 0


def test_a_server_that_lost_several_limits_of_a_policy_is_reminded_of_each_once(
    server: RedisServer, said: dict[str, Any]
) -> None:
    limiter = made(said, POLICIES={"api": {"limits": ["5/15min", "30/h", "200/day"]}})
    hits(limiter, "api", "bob", 3)
    server.restart()
    time.sleep(1.1)
    assert [state.remaining for state in limiter.hit("api", "bob").limits] == [1, 26, 196]
    scripts = scripts_called(server)
    assert [state.remaining for state in limiter.hit("api", "bob").limits] == [0, 25, 195]
    assert scripts_called(server) - scripts == 1, "it is known to know"


@pytest.mark.parametrize("wish", ["deny", "allow"])
def test_a_restart_gives_no_fresh_budget_to_who_is_not_counted_in_outages(
    server: RedisServer, said: dict[str, Any], wish: str
) -> None:
    limiter = made(said, POLICIES={"export": {"rate": "2/15min", "on_outage": wish}})
    assert hits(limiter, "export", "bob", 2) == [True, True]
    server.restart()
    time.sleep(1.1)
    assert not limiter.hit("export", "bob")


def test_what_a_server_kept_over_a_restart_is_not_counted_twice(
    server: RedisServer, limiter: RateLimiter
) -> None:
    hits(limiter, "5/15min", "bob", 2)
    server.command("SAVE")
    server.restart()
    time.sleep(1.1)
    assert limiter.hit("5/15min", "bob").remaining == 2


def test_what_was_let_through_in_an_outage_is_told_once(server: RedisServer, limiter: RateLimiter) -> None:
    server.freeze()
    assert hits(limiter, "20/15min", "bob", 4) == [True] * 4
    server.thaw()
    back_with_redis(limiter)
    # The first question went out before the server was found frozen, and was executed when it thawed.
    assert limiter.peek("20/15min", "bob").remaining in (15, 16)


def test_a_second_outage_knows_of_the_first(server: RedisServer, limiter: RateLimiter) -> None:
    for _ in range(2):
        server.kill()
        assert hits(limiter, "5/15min", "bob", 2) == [True, True]
        server.start()
        back_with_redis(limiter)
    server.kill()
    assert hits(limiter, "5/15min", "bob", 2) == [True, False]


def test_a_process_that_comes_later_knows_what_the_others_knew(
    said: dict[str, Any], server: RedisServer
) -> None:
    """Also one that begins when Redis is away, of identities that only a dead process has asked for."""
    crowd = Crowd(said, ["5/15min"], ["bob"], size=1, most=3)
    with crowd:
        crowd.go()
        assert sum(answer.allowed for answer in crowd.answers()) == 3
    server.kill()
    assert hits(made(said), "5/15min", "bob", 4) == [True, True, False, False]


def test_limits_of_several_identities_hold_together_in_an_outage(
    server: RedisServer, limiter: RateLimiter
) -> None:
    server.kill()
    guesses = [bool(limiter.hit("auth", {"ip": "203.0.113.9", "username": name})) for name in ["bob"] * 6]
    assert guesses == [True] * 5 + [False]
    others = [bool(limiter.hit("auth", {"ip": "203.0.113.9", "username": f"u{n}"})) for n in range(16)]
    assert others == [True] * 15 + [False], "20 from one address"


TROUBLES = ("kill", "freeze", "restart", "flap")


@pytest.mark.parametrize("seed", range(2))
def test_eight_processes_never_exceed_a_limit_whatever_becomes_of_redis(
    server: RedisServer, said: dict[str, Any], seed: int
) -> None:
    dice = random.Random(seed)
    crowd = Crowd(said, ["20/2s", "5/1s"], ["bob", "eve"], size=8, pause=0.002)
    with crowd:
        crowd.go()
        for what in dice.sample(TROUBLES, len(TROUBLES)):
            _trouble(server, what, dice)
            wait_until(time.monotonic() + dice.uniform(0.2, 1.2))
        answers = crowd.answers()
    assert worst([a for a in answers if a.policy == "20/2s"], 2.0) <= 20
    assert worst([a for a in answers if a.policy == "5/1s"], 1.0) <= 5
    assert sources(answers)["redis"], "Redis decided between"
    assert {answer.source for answer in answers} >= {"redis", "host"}
    assert slowest(answers) < PATIENT


def _trouble(server: RedisServer, what: str, dice: random.Random) -> None:
    if what == "kill":
        server.kill()
        wait_until(time.monotonic() + dice.uniform(0.5, 1.0))
        server.start()
    elif what == "freeze":
        server.freeze()
        wait_until(time.monotonic() + dice.uniform(0.3, 1.0))
        server.thaw()
    elif what == "restart":
        server.restart()
    else:
        for _ in range(4):
            server.freeze()
            wait_until(time.monotonic() + 0.12)
            server.thaw()
            wait_until(time.monotonic() + 0.15)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_eight_processes_never_exceed_a_limit_for_long(
    server: RedisServer, said: dict[str, Any], seed: int
) -> None:
    dice = random.Random(seed)
    crowd = Crowd(said, ["20/2s", "5/1s", "3/300ms"], ["bob", "eve"], size=8, pause=0.002)
    with crowd:
        crowd.go()
        for _ in range(20):
            _trouble(server, dice.choice(TROUBLES), dice)
            wait_until(time.monotonic() + dice.uniform(0.05, 1.2))
        answers = crowd.answers()
    for policy, limit, window in (("20/2s", 20, 2.0), ("5/1s", 5, 1.0), ("3/300ms", 3, 0.3)):
        assert worst([a for a in answers if a.policy == policy], window) <= limit


def test_processes_that_are_killed_take_nothing_with_them(server: RedisServer, said: dict[str, Any]) -> None:
    """kill -9 at random moments of an outage, others in their place: the limit holds, and Redis learns it."""
    dice = random.Random(7)
    server.kill()
    crowd = Crowd(said, ["20/60s"], ["bob"], size=3, pause=0.01)
    with crowd:
        crowd.go()
        for _ in range(6):
            wait_until(time.monotonic() + dice.uniform(0.01, 0.15))
            victim = crowd.processes.pop(0)
            victim.kill()
            victim.wait(10)
            for pipe in (victim.stdin, victim.stdout):
                assert pipe is not None
                pipe.close()
            crowd.processes.append(crowd.start())
            newcomer = crowd.processes[-1]
            assert newcomer.stdout is not None
            assert newcomer.stdin is not None
            newcomer.stdout.readline()
            newcomer.stdin.write("go\n")
            newcomer.stdin.flush()
        wait_until(time.monotonic() + 0.3)
        crowd.answers()
    limiter = made(said)
    assert not limiter.hit("20/60s", "bob"), "others have used it up"
    server.start()
    back_with_redis(limiter)
    assert limiter.peek("20/60s", "bob").remaining == 0


# --- how long anybody waits -----------------------------------------------------------------------------


def test_one_question_waits_for_a_frozen_server_and_the_others_do_not(
    server: RedisServer, limiter: RateLimiter
) -> None:
    limiter.hit("1000/min", "bob")
    server.freeze()
    took = []
    for _ in range(20):
        begin = time.monotonic()
        assert limiter.hit("1000/min", "bob")
        took.append(time.monotonic() - begin)
    assert took[0] < PATIENT
    assert sorted(took)[15] < 0.05
    server.thaw()


def test_a_slow_answer_of_the_limiter_opens_no_circuit(server: RedisServer, limiter: RateLimiter) -> None:
    """It waits 100 ms where others wait 250: that it got none says too little."""
    limiter.hit("5/15min", "bob")
    assert limiter.remote is not None
    server.freeze()
    limiter.hit("5/15min", "bob")
    assert limiter.remote.database.endpoint.reach.strikes == 0
    server.thaw()
    back_with_redis(limiter)
    assert limiter.hit("5/15min", "bob").source == "redis"


@pytest.mark.parametrize("threads", [16])
def test_threads_do_not_wait_one_after_the_other(
    server: RedisServer, limiter: RateLimiter, threads: int
) -> None:
    limiter.hit("1000/min", "bob")
    server.freeze()
    took: list[float] = []

    def ask() -> None:
        begin = time.monotonic()
        limiter.hit("1000/min", "bob")
        took.append(time.monotonic() - begin)

    crowd = [threading.Thread(target=ask) for _ in range(threads)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    assert len(took) == threads
    assert max(took) < PATIENT
    server.thaw()


# --- what each policy wants -----------------------------------------------------------------------------


@pytest.mark.parametrize(("wish", "allowed"), [("deny", False), ("allow", True)])
def test_a_policy_may_deny_or_allow_in_an_outage(
    server: RedisServer, said: dict[str, Any], wish: str, allowed: bool
) -> None:
    limiter = made(said, POLICIES={"export": {"rate": "1/min", "on_outage": wish}})
    limiter.hit("export", "bob")
    assert not limiter.hit("export", "bob")
    server.kill()
    decision = limiter.hit("export", "eve")
    assert (decision.allowed, decision.source, decision.unavailable) == (allowed, "none", not allowed)
    assert decision.retry_after == (0.0 if allowed else 5.0)
    server.start()
    wait_for(lambda: limiter.hit("export", os.urandom(4).hex()).source == "redis")


def test_auth_stays_limited_whatever_all_others_want(server: RedisServer, said: dict[str, Any]) -> None:
    limiter = made(said, ON_OUTAGE="allow")
    server.kill()
    who = {"ip": "203.0.113.9", "username": "bob"}
    assert [bool(limiter.hit("auth", who)) for _ in range(6)] == [True] * 5 + [False]
    with pytest.raises(SettingsError, match="login"):
        made(said, POLICIES={"auth": {"rate": "5/min", "on_outage": "allow"}})


@pytest.mark.parametrize(("hosts", "each"), [(2, 10), (3, 7), (100, 1)])
def test_each_host_gives_out_its_share(
    server: RedisServer, said: dict[str, Any], hosts: int, each: int
) -> None:
    """Rounded up, so that it is never nothing; and no more than was last known to remain."""
    limiter = made(said, HOSTS=hosts)
    server.kill()
    assert sum(hits(limiter, "20/15min", "bob", 25)) == each


def test_a_share_is_no_more_than_what_remains(server: RedisServer, said: dict[str, Any]) -> None:
    limiter = made(said, HOSTS=2)
    hits(limiter, "20/15min", "bob", 17)
    server.kill()
    assert sum(hits(limiter, "20/15min", "bob", 25)) == 3


def test_a_calendar_quota_goes_on_in_an_outage(server: RedisServer, limiter: RateLimiter) -> None:
    assert hits(limiter, "3/day fixed", "bob", 2) == [True, True]
    server.kill()
    assert hits(limiter, "3/day fixed", "bob", 2) == [True, False]
    server.start()
    back_with_redis(limiter)
    assert hits(limiter, "3/day fixed", "bob", 1) == [False]


# --- without a directory --------------------------------------------------------------------------------


def test_without_a_directory_each_process_counts_for_itself_and_says_so(
    server: RedisServer, said: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    said["STATE_DIR"] = None
    limiter = made(said)
    hits(limiter, "5/15min", "bob", 2)
    server.kill()
    answers = [limiter.hit("5/15min", "bob") for _ in range(4)]
    assert [bool(answer) for answer in answers] == [True] * 3 + [False]
    assert {answer.source for answer in answers} == {"process"}
    assert [r.msg.split()[0] for r in caplog.records if "limits_not_shared" in r.msg] == [
        "redis_infra.limits_not_shared"
    ]
    assert "STATE_DIR is off" in host_of(limiter).problem
    server.start()
    back_with_redis(limiter)
    assert hits(limiter, "5/15min", "bob", 1) == [False]


def test_without_a_directory_processes_give_out_a_limit_each_and_no_more(
    server: RedisServer, said: dict[str, Any]
) -> None:
    said["STATE_DIR"] = None
    server.kill()
    crowd = Crowd(said, ["5/60s"], ["bob"], size=4, most=20)
    with crowd:
        crowd.go()
        answers = crowd.answers()
    assert sum(answer.allowed for answer in answers) == 20


def test_a_damaged_file_costs_exactness_and_no_request(
    server: RedisServer, said: dict[str, Any], limiter: RateLimiter
) -> None:
    server.kill()
    assert hits(limiter, "5/15min", "bob", 1) == [True]
    (path,) = Path(said["STATE_DIR"]).glob("limits-*/logs-2.0.sqlite3")
    for each in path.parent.glob("logs-2.0.sqlite3*"):
        each.write_bytes(b"not a database" * 1000)
    answers = [limiter.hit("5/15min", "eve") for _ in range(6)]
    assert sum(map(bool, answers)) == 5
    server.start()
    back_with_redis(limiter)


def test_who_has_to_wait_too_long_for_the_file_is_turned_away(
    server: RedisServer, said: dict[str, Any], limiter: RateLimiter
) -> None:
    """A yes that nobody could write down would be one too many."""
    server.kill()
    limiter.hit("5/15min", "bob")
    (path,) = Path(said["STATE_DIR"]).glob("limits-*/logs-2.0.sqlite3")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        decision = limiter.hit("5/15min", "bob")
        assert (decision.allowed, decision.retry_after) == (False, 1.0)
    finally:
        other.rollback()
        other.close()
    assert limiter.hit("5/15min", "bob")


# --- faults that are no outage --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["OOM", "READONLY", "NOAUTH", "NOPERM", "no scripts"])
def test_a_server_that_refuses_leaves_limits_to_the_host(
    server: RedisServer, limiter: RateLimiter, fault: str
) -> None:
    assert hits(limiter, "5/15min", "bob", 2) == [True, True]
    mend = _refuse(server, fault)
    answers = [limiter.hit("5/15min", "bob") for _ in range(5)]
    assert [bool(answer) for answer in answers] == [True, True, True, False, False]
    mend()
    wait_for(lambda: limiter.hit("1000/min", "eve").source == "redis", seconds=30)
    assert not limiter.hit("5/15min", "bob")


def _refuse(server: RedisServer, fault: str) -> Callable[[], object]:
    if fault == "OOM":
        server.config_set("maxmemory", "1")
        return lambda: server.config_set("maxmemory", "0")
    if fault == "READONLY":
        server.command("REPLICAOF", "127.0.0.1", "1")
        server.config_set("replica-serve-stale-data", "yes")
        return lambda: server.command("REPLICAOF", "NO", "ONE")
    if fault == "NOAUTH":
        server.command("ACL", "SETUSER", "default", "off")
        return lambda: None
    rule = "-@scripting" if fault == "no scripts" else "-eval -evalsha"
    server.command("ACL", "SETUSER", "default", *rule.split())
    return lambda: server.command("ACL", "SETUSER", "default", "+@all")


def test_a_forgotten_script_is_sent_whole(server: RedisServer, limiter: RateLimiter) -> None:
    """SCRIPT FLUSH under load: nothing was executed, so it may be sent again."""
    for _ in range(5):
        assert limiter.hit("1000/min", "bob").source == "redis"
        server.command("SCRIPT", "FLUSH")
    assert limiter.peek("1000/min", "bob").remaining == 995


def test_a_key_of_another_type_ends_no_request(
    server: RedisServer, limiter: RateLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.hit("5/15min", "bob")
    (key,) = server.command("KEYS", "ri:rl:*")
    server.command("DEL", key)
    server.command("LPUSH", key, "x")
    assert isinstance(limiter.hit("5/15min", "bob"), Decision)
    assert "redis_infra.limiter_refused" in caplog.text
    back_with_redis(limiter)


# --- forks and loops ------------------------------------------------------------------------------------


def test_a_forked_child_counts_with_its_parent(server: RedisServer, limiter: RateLimiter) -> None:
    assert hits(limiter, "5/15min", "bob", 2) == [True, True]

    def child() -> list[bool]:
        first = hits(limiter, "5/15min", "bob", 1)
        server.kill()
        return first + hits(limiter, "5/15min", "bob", 1)

    assert in_child(child) == [True, True]
    assert hits(limiter, "5/15min", "bob", 2) == [True, False]


def test_event_loops_count_with_everybody(server: RedisServer, limiter: RateLimiter) -> None:
    async def ask(count: int) -> list[bool]:
        return [
            bool(answer)
            for answer in await asyncio.gather(*(limiter.ahit("5/15min", "bob") for _ in range(count)))
        ]

    assert sum(asyncio.run(ask(3))) == 3
    server.freeze()
    assert sum(asyncio.run(ask(10))) == 2
    server.thaw()
    back_with_redis(limiter)
    assert sum(asyncio.run(ask(1))) == 0


def test_a_reset_in_an_outage_holds_here_and_on_return(server: RedisServer, limiter: RateLimiter) -> None:
    hits(limiter, "5/15min", "bob", 5)
    server.freeze()
    assert not limiter.hit("5/15min", "bob")
    limiter.reset("5/15min", "bob")
    assert hits(limiter, "5/15min", "bob", 1) == [True]
    server.thaw()
    back_with_redis(limiter)
    assert limiter.peek("5/15min", "bob").remaining >= 3


def test_a_policy_that_was_forgotten_in_an_outage_begins_anew(
    server: RedisServer, limiter: RateLimiter
) -> None:
    hits(limiter, "upload", "bob", 5)
    hits(limiter, "search", "bob", 30)
    server.kill()
    assert hits(limiter, "upload", "bob", 1) == [False]
    limiter.forget_policy("upload")
    assert hits(limiter, "upload", "bob", 1) == [True]
    assert hits(limiter, "search", "bob", 1) == [False], "others stay"
    server.start()
    back_with_redis(limiter)
    assert limiter.peek("upload", "bob").remaining == 4


def test_a_policy_that_was_forgotten_is_not_remembered_after_a_restart(
    server: RedisServer, limiter: RateLimiter
) -> None:
    hits(limiter, "upload", "bob", 5)
    limiter.forget_policy("upload")
    server.restart()
    time.sleep(1.1)
    assert limiter.hit("upload", "bob").remaining == 4


def test_a_refund_in_an_outage_is_given_back(server: RedisServer, limiter: RateLimiter) -> None:
    server.kill()
    decision = limiter.hit("5/15min", "bob")
    assert limiter.peek("5/15min", "bob").remaining == 4
    limiter.refund(decision)
    assert limiter.peek("5/15min", "bob").remaining == 5


def test_health_says_who_decides(server: RedisServer, said: dict[str, Any], settings: Any) -> None:
    from redis_infra.observability.health import check_health

    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": server.url,
            "OPTIONS": {"STATE_DIR": said["STATE_DIR"]},
        }
    }

    def findings() -> list[str]:
        (health,) = check_health(["default"]).aliases
        return [f"{each.status} {each.value}" for each in health.findings if each.name == "limits"]

    assert findings() == []
    limiter = made(said)
    server.freeze()
    limiter.hit("5/min", "bob")
    (said_now,) = findings()
    assert said_now.startswith("warn decided by the processes of this host for ")
    server.thaw()
    back_with_redis(limiter)
    assert findings() == []


def test_health_says_where_each_process_would_decide_alone(server: RedisServer, settings: Any) -> None:
    from redis_infra.observability.health import check_health

    options = {"STATE_DIR": None}
    settings.CACHES = {
        "default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": server.url, "OPTIONS": options}
    }
    (health,) = check_health(["default"]).aliases
    assert health.status == "pass"
    assert [each.value for each in health.findings] == [
        "in an outage each process would decide alone: STATE_DIR is off: everything stays in memory"
    ]


# --- what a reviewer found ------------------------------------------------------------------------------


def test_a_child_forked_in_an_outage_finds_its_way_back(server: RedisServer, limiter: RateLimiter) -> None:
    """It has its parent's open circuit and no prober, and would keep the host from Redis for ever."""
    limiter.hit("1000/min", "bob")
    server.kill()
    limiter.hit("1000/min", "bob")

    def child() -> str:
        limiter.hit("1000/min", "bob")
        server.start()
        wait_for(lambda: limiter.hit("1000/min", "bob").source == "redis", seconds=20)
        return limiter.hit("1000/min", "bob").source

    assert in_child(child) == "redis"
    server.kill()


@pytest.mark.parametrize("wish", ["deny", "allow"])
def test_policies_that_do_not_count_wait_once_for_a_frozen_server(
    server: RedisServer, said: dict[str, Any], wish: str
) -> None:
    limiter = made(said, POLICIES={"export": {"rate": "1000/min", "on_outage": wish}})
    limiter.hit("export", "bob")
    server.freeze()
    took = []
    for _ in range(20):
        begin = time.monotonic()
        limiter.hit("export", "bob")
        took.append(time.monotonic() - begin)
    assert sorted(took)[15] < 0.05
    server.thaw()


def test_a_server_on_which_the_script_may_not_write_gives_nobody_a_fresh_budget(
    server: RedisServer, limiter: RateLimiter
) -> None:
    limiter.hit("5/15min", "eve")
    server.command("ACL", "SETUSER", "default", "-set")
    allowed = 0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        allowed += bool(limiter.hit("5/15min", "bob"))
        limiter.forget_denials()
    assert allowed == 5
    server.command("ACL", "SETUSER", "default", "+@all")


def test_a_damaged_log_gives_nobody_a_fresh_budget(server: RedisServer, limiter: RateLimiter) -> None:
    allowed = sum(hits(limiter, "5/15min", "bob", 2))
    (key,) = server.command("KEYS", "ri:rl:*")
    server.command("DEL", key)
    server.command("LPUSH", key, "x")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        allowed += bool(limiter.hit("5/15min", "bob"))
        limiter.forget_denials()
    assert allowed == 5


def test_a_denied_drain_does_not_keep_limits_from_redis(server: RedisServer, limiter: RateLimiter) -> None:
    limiter.hit("5/15min", "bob")
    server.command("ACL", "SETUSER", "default", "-unlink", "-del")
    server.freeze()
    limiter.hit("5/15min", "bob")
    limiter.reset("5/15min", "bob")
    server.thaw()
    back_with_redis(limiter)


def test_processes_leave_a_file_that_was_removed(server: RedisServer, said: dict[str, Any]) -> None:
    one, other = made(said), made(said)
    server.kill()
    assert hits(one, "5/15min", "bob", 1) == [True]
    for path in Path(said["STATE_DIR"]).glob("limits-*/logs-2.0.sqlite3*"):
        path.unlink()

    def another_process() -> int:
        return sum(hits(other, "5/15min", "bob", 9))

    assert in_child(another_process) == 5
    assert not one.hit("5/15min", "bob")


def test_a_child_that_is_forked_while_others_decide_has_its_turns(
    server: RedisServer, limiter: RateLimiter
) -> None:
    """SQLite's notes of who has a turn are in memory, and a fork copies them."""
    server.kill()
    limiter.hit("1000/15min", "bob")
    done = threading.Event()

    def decide() -> None:
        while not done.is_set():
            limiter.hit("1000/15min", "eve")

    threads = [threading.Thread(target=decide) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        children = [in_child(lambda: sum(hits(limiter, "1000/15min", "bob", 5))) for _ in range(12)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert children == [5] * 12
    assert limiter.hit("1000/15min", "bob").remaining == 1000 - 1 - 12 * 5 - 1


def test_a_removed_directory_ends_no_request(
    server: RedisServer, said: dict[str, Any], limiter: RateLimiter
) -> None:
    import shutil

    limiter.hit("5/15min", "bob")
    server.restart()
    shutil.rmtree(said["STATE_DIR"])
    for _ in range(3):
        assert isinstance(limiter.hit("5/15min", "bob"), Decision)
    server.kill()
    assert isinstance(limiter.hit("5/15min", "bob"), Decision)


def test_sites_that_share_a_database_keep_their_logs_apart(server: RedisServer, said: dict[str, Any]) -> None:
    blue, green = made({**said, "KEY_PREFIX": "blue"}), made({**said, "KEY_PREFIX": "green"})
    hits(blue, "5/15min", "bob", 2)
    server.kill()
    assert [sum(hits(each, "5/15min", "bob", 9)) for each in (blue, green)] == [3, 5]
    server.start()
    for each in (blue, green):
        back_with_redis(each)
        assert each.peek("5/15min", "bob").remaining == 0


def test_many_are_told_and_nobody_is_turned_away_meanwhile(server: RedisServer, said: dict[str, Any]) -> None:
    """Telling them takes a second and more; whoever kept the logs for that long would turn everybody away."""
    with TcpProxy(server.url) as proxy:
        said["URL"] = proxy.url
        limiter = made(said)
        server.kill()
        for number in range(3000):
            limiter.hit("20/15min", f"user{number}")
        # As quick as the others: who is put aside while he has the logs keeps them from everybody.
        with Crowd(said, ["100000/min"], ["bystander"], size=2, pause=0.002, nice=0) as crowd:
            crowd.go()
            proxy.delay(0.015)
            server.start()
            began = time.monotonic()
            wait_for(lambda: not host_of(limiter).decides, seconds=30)
            ended = time.monotonic()
            answers = [answer for answer in crowd.answers() if answer.told > began and answer.asked < ended]
    assert sources(answers)["host"]
    waited_in_vain = sum(answer.took for answer in answers if not answer.allowed)
    assert waited_in_vain < 0.25 * crowd.size * (ended - began)
    assert {limiter.peek("20/15min", f"user{number}").remaining for number in (0, 1500, 2999)} == {19}


def test_a_server_that_is_far_away_decides_again_although_somebody_always_asks(
    server: RedisServer, said: dict[str, Any]
) -> None:
    """The last to be told is always new; so they wait for as long as an answer may take."""
    with TcpProxy(server.url) as proxy:
        said["URL"] = proxy.url
        limiter = made(said)
        server.kill()
        limiter.hit("20/15min", "bob")
        with Crowd(said, ["100000/min"], ["bystander"], size=2, pause=0.002, nice=0) as crowd:
            crowd.go()
            proxy.delay(0.035)  # on the way there, and on the way back
            server.start()
            wait_for(lambda: not host_of(limiter).decides, seconds=30)
            crowd.answers()


def test_who_is_not_reminded_of_is_not_asked_about(server: RedisServer, limiter: RateLimiter) -> None:
    """A server that has forgotten somebody, and cannot be told, does not give him a fresh budget."""
    hits(limiter, "5/15min", "bob", 5)
    server.restart()
    time.sleep(1.1)
    limiter.peek("5/15min", "eve")  # somebody has met the new one
    server.command("SCRIPT", "FLUSH")
    server.command("ACL", "SETUSER", "default", "-eval")  # the reminder is sent whole
    limiter.forget_denials()
    assert not limiter.hit("5/15min", "bob")
    server.command("ACL", "SETUSER", "default", "+eval")


def test_forgetting_a_policy_leaves_what_others_have_by_a_key_of_that_name(limiter: RateLimiter) -> None:
    limiter.hit("auth", {"ip": "203.0.113.9", "username": "bob"})
    assert limiter.forget_policy("ip") == 0
