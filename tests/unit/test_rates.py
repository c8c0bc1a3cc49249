"""Rates: what people write is read the way they mean it, and what nobody can mean is refused."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.exceptions import SettingsError
from redis_infra.throttling.rates import LONGEST, MOST, Rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20/min", Rate(20, 60)),
        ("5/15min", Rate(5, 900)),
        ("5/15m", Rate(5, 900)),
        ("5/15 minutes", Rate(5, 900)),
        ("100/2 hours", Rate(100, 7200)),
        ("100 per hour", Rate(100, 3600)),
        ("100 per 2 hours", Rate(100, 7200)),
        ("30/s", Rate(30, 1)),
        ("1000/day", Rate(1000, 86_400)),
        ("1/w", Rate(1, 604_800)),
        ("7/250ms", Rate(7, 0.25)),
        (" 20 / MIN ", Rate(20, 60)),
        ("0/min", Rate(0, 60)),
        ("1000/day fixed", Rate(1000, 86_400, fixed=True)),
    ],
)
def test_rate_reads_the_way_people_write_it(text: str, expected: Rate) -> None:
    assert Rate.parse(text) == expected


@pytest.mark.parametrize("period", ["s", "sec", "second", "m", "min", "minute", "h", "hour", "d", "day"])
def test_periods_of_drf_mean_what_they_mean_there(period: str) -> None:
    from rest_framework.throttling import SimpleRateThrottle

    limit, window = SimpleRateThrottle.parse_rate(None, f"10/{period}")  # type: ignore[arg-type]
    assert Rate.parse(f"10/{period}") == Rate(limit, window)


def test_several_rates_hold_together() -> None:
    rate = Rate.parse("20/min;200/hour, 1000/day fixed")
    assert list(rate) == [Rate(20, 60), Rate(200, 3600), Rate(1000, 86_400, fixed=True)]
    assert (rate.limit, rate.window) == (20, 60)


def test_none_is_no_limit() -> None:
    assert Rate.parse(None) is None


@pytest.mark.parametrize(
    "text",
    [
        *("10/month", "10/year", "ten/min", "10", "/min", "10/", "-1/min", "1.5/min", "10/min/h", "10/dog"),
        *(
            "20/min;",
            "20/min;20/min",
            "20/min;30/min",
            "",
            " ",
            "20/0min",
            "99999999/min",
            "1/999999999 days",
        ),
        *("20/min moving", "٣/min", "20\u2044min"),
        *(20, 20.0, b"20/min", ("20/min",), True, {}, ["20/min"]),
    ],
)
def test_anything_else_is_refused_and_named(text: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        Rate.parse(text)
    assert repr(text) in str(caught.value)


def test_a_month_is_told_why() -> None:
    with pytest.raises(SettingsError, match="differ in length"):
        Rate.parse("10/month")


@pytest.mark.parametrize(
    ("limit", "window"),
    [
        (-1, 60),
        (MOST + 1, 60),
        (1.0, 60),
        (True, 60),
        (1, 0),
        (1, -1),
        (1, LONGEST + 1),
        (1, True),
        (1, math.nan),
    ],
)
def test_numbers_out_of_range_are_refused(limit: Any, window: Any) -> None:
    with pytest.raises(SettingsError):
        Rate(limit, window)


def test_a_window_may_be_a_timedelta() -> None:
    assert Rate(5, timedelta(minutes=15)) == Rate(5, 900)  # type: ignore[arg-type]


rates = st.builds(
    Rate,
    st.integers(0, MOST),
    st.integers(1, LONGEST * 1000).map(lambda ms: ms / 1000),
    fixed=st.booleans(),
)


@given(rates)
def test_what_a_rate_says_of_itself_is_that_rate(rate: Rate) -> None:
    assert Rate.parse(str(rate)) == rate


@given(rates)
def test_a_log_stays_small_whatever_the_limit(rate: Rate) -> None:
    """One entry a grain and window, and one for the grain that has begun: at most 101 of 20 bytes."""
    if rate.fixed:
        assert rate.grain_ms == 0
        return
    entries = min(rate.limit, math.ceil(rate.window_ms / rate.grain_ms) + 1)
    assert entries <= 101


@given(rates)
def test_a_grain_is_a_hundredth_of_the_window_at_most(rate: Rate) -> None:
    assert rate.grain_ms <= max(1, math.ceil(rate.window_ms / 100))


def test_rates_travel_between_processes() -> None:
    rate = Rate.parse("20/min;200/hour")
    assert pickle.loads(pickle.dumps(rate)) == rate
    assert hash(rate) == hash(Rate.parse("20/min;200/h"))
