"""What responses say of limits: read back as a client would, by the grammar of structured fields."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.headers import headers_for, retry_after_seconds
from redis_infra.throttling.rates import Rate

STRING = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
INTEGER = r"-?[0-9]{1,15}"
ITEM = re.compile(rf"{STRING}((?:; *[a-z*][a-z0-9_.*-]*={INTEGER})*)")
"""An RFC 9651 item of the kinds that the draft has: a string with whole numbers as parameters."""


def parsed(value: str) -> list[tuple[str, dict[str, int]]]:
    """Return a structured field's list; fails where a strict parser would drop the header."""
    found, at = [], 0
    while True:
        item = ITEM.match(value, at)
        assert item, f"no item at {at} of {value!r}"
        name = re.sub(r"\\(.)", r"\1", item[1])
        parameters = re.findall(rf"([a-z*][a-z0-9_.*-]*)=({INTEGER})", item[2])
        found.append((name, {key: int(number) for key, number in parameters}))
        at = item.end()
        if at == len(value):
            return found
        comma = re.compile(r"[ \t]*,[ \t]*").match(value, at)
        assert comma, f"neither comma nor end at {at} of {value!r}"
        at = comma.end()


@dataclass(frozen=True)
class Terms:
    """What a decision was made about, without a plan."""

    name: str
    named_rates: tuple[tuple[str, Rate], ...]


def decided(*numbers: int, allowed: bool = True, rate: str = "20/min", name: str = "chat", source="redis"):
    rates = list(Rate.parse(rate))
    names = [name] if len(rates) == 1 else [f"{name}-{each.period}" for each in rates]
    return Decision(allowed, source, 1, Terms(name, tuple(zip(names, rates, strict=True))), numbers)


# --- RateLimit and RateLimit-Policy ---------------------------------------------------------------------


def test_a_client_reads_what_is_left_until_when_of_how_much():
    headers = headers_for(decided(7, 12_000, 0))
    assert parsed(headers["RateLimit"]) == [("chat", {"r": 7, "t": 12})]
    assert parsed(headers["RateLimit-Policy"]) == [("chat", {"q": 20, "w": 60})]


def test_of_several_limits_all_are_told_and_the_tightest_is_what_is_left():
    headers = headers_for(decided(19, 1000, 0, 3, 900_000, 0, rate="20/min;200/hour"))
    assert parsed(headers["RateLimit"]) == [("chat-h", {"r": 3, "t": 900})]
    assert parsed(headers["RateLimit-Policy"]) == [
        ("chat-min", {"q": 20, "w": 60}),
        ("chat-h", {"q": 200, "w": 3600}),
    ]


def test_of_a_denial_the_limit_is_told_that_gives_way_last():
    headers = headers_for(decided(0, 900, 900, 0, 5000, 5000, allowed=False, rate="20/min;200/hour"))
    assert parsed(headers["RateLimit"]) == [("chat-h", {"r": 0, "t": 5})]


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0, 0), (1, 1), (1000, 1), (1001, 2), (59_999, 60)])
def test_nobody_is_told_to_come_too_early(milliseconds, seconds):
    assert parsed(headers_for(decided(7, milliseconds, 0))["RateLimit"]) == [("chat", {"r": 7, "t": seconds})]


def test_a_window_of_less_than_a_second_is_told_as_one():
    headers = headers_for(decided(4, 100, 0, rate="5/250ms"))
    assert parsed(headers["RateLimit-Policy"]) == [("chat", {"q": 5, "w": 1})]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ('a "b" \\ c', 'a "b" \\ c'),
        ("GET,POST =/search/", "GET,POST =/search/"),
        ("suche-für-alle", "suche-f?r-alle"),
        ("x\r\nSet-Cookie: a=b", "x??Set-Cookie: a=b"),
        ("\0", "?"),
    ],
)
def test_no_name_ends_the_header_that_it_is_in(name, read):
    headers = headers_for(decided(7, 0, 0, name=name))
    assert [item for item, _ in parsed(headers["RateLimit"])] == [read]
    assert [item for item, _ in parsed(headers["RateLimit-Policy"])] == [read]


# --- Retry-After ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("milliseconds", "said"), [(1, "1"), (1000, "1"), (1001, "2"), (900_000, "900")])
def test_retry_after_is_whole_seconds_rounded_up(milliseconds, said):
    decision = decided(0, milliseconds, milliseconds, allowed=False)
    assert headers_for(decision)["Retry-After"] == said


@pytest.mark.parametrize(
    ("rate", "milliseconds", "said"),
    [("1/h", 3_600_001, "3600"), ("1/h", 3_600_000, "3600"), ("500/h", 3_605_492, "3606")],
)
def test_the_rest_of_a_millisecond_is_no_second_more_than_the_window(rate, milliseconds, said):
    """A log of many entries has coarser ones, which do count longer."""
    assert (
        headers_for(decided(0, milliseconds, milliseconds, allowed=False, rate=rate))["Retry-After"] == said
    )


def test_who_may_pass_is_not_told_to_wait():
    assert "Retry-After" not in headers_for(decided(0, 5000, 0))


def test_who_can_never_pass_is_not_told_to_wait():
    decision = decided(20, 0, -1, allowed=False)
    assert retry_after_seconds(decision) is None
    assert "Retry-After" not in headers_for(decision)


def test_who_cannot_be_counted_is_told_when_to_come_again_and_nothing_else():
    assert headers_for(decided(allowed=False, source="none")) == {"Retry-After": "5"}


# --- what is shown --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"shown": False}, {"style": False}, {"shown": False, "style": "legacy"}])
def test_a_hidden_limit_tells_when_to_come_again_and_nothing_else(options):
    assert headers_for(decided(7, 12_000, 0), **options) == {}
    assert headers_for(decided(0, 12_000, 12_000, allowed=False), **options) == {"Retry-After": "12"}


def test_clients_of_old_get_the_headers_of_old_as_well():
    headers = headers_for(decided(7, 12_000, 0), style="legacy")
    assert {name: value for name, value in headers.items() if name.startswith("X-")} == {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "7",
        "X-RateLimit-Reset": "12",
    }
    assert parsed(headers["RateLimit"]) == [("chat", {"r": 7, "t": 12})]


def test_a_policy_without_limits_has_nothing_to_tell():
    assert headers_for(Decision(True, "none", 1, Terms("chat", ()))) == {}


@given(
    name=st.text(min_size=1, max_size=20),
    limit=st.integers(0, 9_999_999),
    window=st.integers(1, 366 * 86_400_000),
    remaining=st.integers(0, 9_999_999),
    reset=st.integers(0, 366 * 86_400_000),
    longer=st.integers(0, 86_400_000),
    allowed=st.booleans(),
)
def test_whatever_the_numbers_the_headers_can_be_read_and_hold(
    name, limit, window, remaining, reset, longer, allowed
):
    """Neither window nor Retry-After end before their time, and the latter not before the former."""
    terms = Terms(name, ((name, Rate(limit, window / 1000)),))
    retry = 0 if allowed else max(1, reset + longer)
    headers = headers_for(Decision(allowed, "redis", 1, terms, (remaining, reset, retry)), style="legacy")
    ((_, left),) = parsed(headers["RateLimit"])
    ((_, policy),) = parsed(headers["RateLimit-Policy"])
    assert left == {"r": remaining, "t": min(math.ceil(reset / 1000), math.ceil(window / 1000))}
    assert (policy["q"], policy["w"] >= 1) == (limit, True)
    if not allowed:
        assert int(headers["Retry-After"]) == math.ceil(retry / 1000)
        assert int(headers["Retry-After"]) >= left["t"]
