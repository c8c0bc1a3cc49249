"""The script: the same answers as the Python twin and as the model, whatever the time; small logs."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_infra.throttling import plans
from redis_infra.throttling.local import decide
from redis_infra.throttling.sliding_log import Terms, live
from tests.throttling.logs import START, WrongAnswer, run, run_many

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

CLOCK = "redis.call('TIME')"
EXPIRY = "string.format('%.0f', stamp - now + window)"


class ScriptEngine:
    """``hit.lua`` on a real server, whose clock is the trial's: its last two arguments instead of TIME."""

    def __init__(self, server: RedisServer, source: str) -> None:
        self.server = server
        self.source = source
        self.tag = os.urandom(8).hex()  # hypothesis seeds random

    def hit(self, terms: Sequence[Terms], now: int, cost: int) -> list[int]:
        keys = [f"t:{{{self.tag}}}:{index}" for index in range(len(terms))]
        numbers = [number for each in terms for number in each]
        clock = [now // 1_000_000, now % 1_000_000]
        reply = self.server.command("EVAL", self.source, len(keys), *keys, cost, *numbers, *clock)
        return list(reply)


class TwinEngine:
    """The same in Python, on logs of its own."""

    def __init__(self) -> None:
        self.logs: dict[int, list[list[int]]] = {}

    def hit(self, terms: Sequence[Terms], now: int, cost: int) -> list[int]:
        logs = [live(self.logs.get(index, []), now // 1000, each.window) for index, each in enumerate(terms)]
        reply, charged = decide(logs, terms, now // 1000, cost)
        if charged:
            self.logs.update(enumerate(logs))
        return reply


class BothEngines:
    """Script and twin side by side; they must not differ in a single number."""

    def __init__(self, script: ScriptEngine) -> None:
        self.script, self.twin = script, TwinEngine()

    def hit(self, terms: Sequence[Terms], now: int, cost: int) -> list[int]:
        theirs, ours = self.script.hit(terms, now, cost), self.twin.hit(terms, now, cost)
        if theirs != ours:
            raise WrongAnswer(f"the script says {theirs}, the twin {ours}, of {cost} at {now} for {terms}")
        return theirs


def clockless(source: str) -> str:
    """Return the script with the trial's clock; keys outlive it, for time stands still on the server."""
    assert CLOCK in source
    assert EXPIRY in source
    return source.replace(CLOCK, "{ARGV[#ARGV - 1], ARGV[#ARGV]}").replace(EXPIRY, "1000000")


@pytest.fixture(scope="module")
def script() -> str:
    return clockless(plans.HIT.source)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers())
def test_script_twin_and_model_agree_step_by_step(redis_server: RedisServer, script: str, seed: int) -> None:
    run(lambda: BothEngines(ScriptEngine(redis_server, script)), random.Random(seed))


MUTANTS = {
    "forgets a millisecond late": ("at + 12)) <= cut do", "at + 12)) < cut do"),
    "forgets a millisecond early": ("at + 12)) <= cut do", "at + 12)) <= cut + 1 do"),
    "stamps the beginning of the grain": (
        "(math.floor(now / grain) + 1) * grain",
        "math.floor(now / grain) * grain",
    ),
    "charges although one limit says no": ("if reply[1] == 1 and cost > 0 then", "if cost > 0 then"),
    "lets one more through": ("if total + cost > limit then", "if total + cost > limit + 1 then"),
    "charges those who only look": ("and cost > 0 then", "then"),
    "forgets who came in the same grain": ("cost + tonumber(string.sub(log, -7))", "cost"),
    "forgets the total": ("used[i] + cost) .. log", "cost) .. log"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_trials_find_every_mistake(redis_server: RedisServer, script: str, mutant: str) -> None:
    old, new = MUTANTS[mutant]
    assert script.count(old) == 1
    broken = script.replace(old, new)
    with pytest.raises(WrongAnswer):
        run_many(lambda: BothEngines(ScriptEngine(redis_server, broken)), 600)


def test_trials_find_an_engine_with_a_clock_of_its_own(redis_server: RedisServer) -> None:
    """The server's time counts: a script that takes anything else for it is noticed."""
    broken = clockless(plans.HIT.source).replace("ARGV[#ARGV]}", "0}")
    with pytest.raises(WrongAnswer):
        run_many(lambda: ScriptEngine(redis_server, broken), 20)


def ask(server: RedisServer, key: str, terms: Terms, cost: int = 1) -> list[int]:
    return list(server.command("EVAL", plans.HIT.source, 1, key, cost, *terms))


def test_the_server_says_what_time_it_is(redis_server: RedisServer) -> None:
    seconds, micros = map(int, redis_server.command("TIME"))
    reply = ask(redis_server, "t", Terms(5, 60_000, 1))
    assert 0 <= reply[1] - (seconds * 1000 + micros // 1000) < 1000


@pytest.mark.parametrize("terms", [Terms(5, 60_000, 1), Terms(1000, 60_000, 600), Terms(3, 86_400_000, 0)])
def test_a_log_lives_exactly_as_long_as_it_counts(redis_server: RedisServer, terms: Terms) -> None:
    """Shorter would let one too many through, longer would be litter."""
    reply = ask(redis_server, "t", terms)
    left = redis_server.command("PTTL", "t")
    assert 0 <= reply[3] - left < 1000
    if terms.grain > 1:
        assert reply[3] >= terms.window


@pytest.mark.parametrize("limit", [5, 20, 100, 101, 1000, 10_000, 1_000_000])
def test_a_log_stays_small_at_any_limit(redis_server: RedisServer, script: str, limit: int) -> None:
    from redis_infra.throttling.rates import Rate

    rate = Rate(limit, 60)
    terms = [Terms(rate.limit, rate.window_ms, rate.grain_ms)]
    engine = ScriptEngine(redis_server, script)
    for step in range(400):
        engine.hit(terms, START + step * 150_000, max(1, limit // 400))
    (key,) = redis_server.command("KEYS", "t:*")
    assert redis_server.command("MEMORY", "USAGE", key) <= 2200


def test_a_look_writes_nothing(redis_server: RedisServer) -> None:
    reply = ask(redis_server, "t", Terms(5, 60_000, 1), cost=0)
    assert reply[0] == 1
    assert reply[2:] == [5, 0, 0]
    assert redis_server.command("DBSIZE") == 0


def refund(server: RedisServer, key: str, terms: Terms, cost: int, charged: int) -> list[Any]:
    return list(server.command("EVAL", plans.REFUND.source, 1, key, cost, charged, terms.window, terms.grain))


@pytest.fixture(params=[Terms(5, 60_000, 1), Terms(500, 60_000, 600), Terms(5, 86_400_000, 0)], ids=str)
def terms(request: pytest.FixtureRequest) -> Terms:
    found: Terms = request.param
    return found


def test_a_refund_leaves_no_trace(redis_server: RedisServer, terms: Terms) -> None:
    reply = ask(redis_server, "t", terms, cost=3)
    assert refund(redis_server, "t", terms, 3, reply[1])[1] == 0
    assert redis_server.command("DBSIZE") == 0


def test_a_refund_gives_back_no_more_than_there_is(redis_server: RedisServer, terms: Terms) -> None:
    reply = ask(redis_server, "t", terms, cost=2)
    assert refund(redis_server, "t", terms, 9, reply[1])[1] == 0
    assert ask(redis_server, "t", terms)[2] == terms.limit - 1


def test_a_refund_without_a_time_takes_from_the_oldest(redis_server: RedisServer, terms: Terms) -> None:
    ask(redis_server, "t", terms, cost=3)
    assert refund(redis_server, "t", terms, 1, 0)[1] == 2
    assert 0 < redis_server.command("PTTL", "t") <= terms.window + max(terms.grain, 1)


def merge(
    server: RedisServer, terms: Terms, *more: int, known: int = 0, known_at: int = 0, mark: str = "m"
) -> Any:
    return server.command(
        "EVAL", plans.MERGE.source, 2, "t", mark, terms.window, terms.grain, known, known_at, *more
    )


def test_what_was_let_through_elsewhere_is_added_once(redis_server: RedisServer, terms: Terms) -> None:
    ask(redis_server, "t", terms)
    assert merge(redis_server, terms, 20, 2)[1] == 3
    assert merge(redis_server, terms, 20, 2)[1] == 3, "sent again under the same mark"
    assert merge(redis_server, terms, 20, 1, mark="n")[1] == 4
    assert ask(redis_server, "t", terms)[2] == terms.limit - 5


def test_what_is_too_old_is_not_added(redis_server: RedisServer) -> None:
    terms = Terms(5, 60_000, 1)
    assert merge(redis_server, terms, 60_002, 2, 10, 1)[1] == 1


def test_what_a_server_forgot_is_put_back(redis_server: RedisServer, terms: Terms) -> None:
    for _ in range(2):
        at = ask(redis_server, "t", terms)[1]
    redis_server.command("DEL", "t")
    assert merge(redis_server, terms, known=2, known_at=at)[1] == 2
    assert merge(redis_server, terms, known=2, known_at=at)[1] == 2, "by the next process, too"


def test_what_a_server_did_not_forget_is_not_put_back(redis_server: RedisServer) -> None:
    terms = Terms(5, 60_000, 1)
    for _ in range(2):
        at = ask(redis_server, "t", terms)[1]
    assert merge(redis_server, terms, known=2, known_at=at)[1] == 2


def test_what_came_since_is_no_excuse_for_what_was_forgotten(redis_server: RedisServer, script: str) -> None:
    """Three were known, the server lost them and let one more through: that makes four."""
    terms = Terms(5, 60_000, 1)
    now = ask(redis_server, "other", terms)[1]
    ask(redis_server, "t", terms)
    assert merge(redis_server, terms, known=3, known_at=now - 10)[1] == 4


def test_forgetting_says_how_many_there_were(redis_server: RedisServer) -> None:
    ask(redis_server, "{t}1", Terms(5, 60_000, 1))
    reply = redis_server.command("EVAL", plans.FORGET.source, 2, "{t}1", "{t}2")
    assert reply[1] == 1
    assert redis_server.command("DBSIZE") == 0
