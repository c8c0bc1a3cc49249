"""Durations and sizes: every way that people write them, and what is refused, with which words."""

from __future__ import annotations

import contextlib
import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.durations import format_duration, parse_duration, parse_size
from redis_infra.exceptions import SettingsError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250ms", 0.25),
        ("15min", 900),
        ("24h", 86400),
        ("1.5s", 1.5),
        ("2d", 172800),
        ("1w", 604800),
        ("50us", 50e-6),
        (".5s", 0.5),
        ("5m", 300),
        ("90 seconds", 90),
        ("1 hour", 3600),
        (" 30S ", 30),
        ("250MS", 0.25),
        ("1h30min", 5400),
        ("1h 30min 5s", 5405),
        ("30", 30),
        ("0.25", 0.25),
        ("0", 0),
        (0, 0),
        (30, 30),
        (0.25, 0.25),
        (timedelta(minutes=1, milliseconds=500), 60.5),
    ],
)
def test_a_duration_reads_the_way_people_write_it(value, seconds):
    assert parse_duration(value) == pytest.approx(seconds, rel=1e-12)


def test_a_duration_is_a_float_of_seconds():
    assert isinstance(parse_duration(30), float)
    assert isinstance(parse_duration("24h"), float)


@pytest.mark.parametrize(
    "value",
    [
        "", "abc", "15 parsecs", "min", "1.2.3s", "1,5s", "-5s", "+5s", "1e3", "5s3", "30min1h", "5min5min",
        "5ss", "inf", "nan", "٣s", "9" * 5000, "s" * 5000,
        -1, -0.001, math.inf, -math.inf, math.nan, 10**400, timedelta(seconds=-1),
        True, False, None, [], {}, b"5s", object,
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(SettingsError):
        parse_duration(value)


def test_a_refused_duration_is_quoted_with_its_setting_and_the_accepted_forms():
    with pytest.raises(SettingsError) as caught:
        parse_duration("fast", name="REDIS_INFRA['COMMAND_TIMEOUT']")
    assert str(caught.value) == (
        "REDIS_INFRA['COMMAND_TIMEOUT']: 'fast' is not a duration; write seconds (0.25, 30), "
        'text ("250ms", "15min", "24h", "2d", "1h30min") or a timedelta'
    )


def test_a_refused_value_without_a_name_begins_with_the_value():
    with pytest.raises(SettingsError, match=r"^'fast' is not a duration"):
        parse_duration("fast")


def test_a_number_of_more_digits_than_anyone_means_is_refused():
    with pytest.raises(SettingsError):
        parse_duration("0" * 100 + "s")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (65536, 65536),
        ("65536", 65536),
        ("512b", 512),
        ("16kb", 16384),
        ("16k", 16000),
        ("16KiB", 16384),
        ("32mb", 33554432),
        ("32 MB", 33554432),
        ("1m", 1000000),
        ("1gb", 1073741824),
        ("2G", 2000000000),
        ("1.5kb", 1536),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_reads_as_in_redis_conf(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "mb",
        "32 bananas",
        "-1",
        "-1kb",
        "1.5",
        "0.3kb",
        "1e3",
        "9" * 5000,
        -1,
        1.0,
        True,
        None,
        [],
        b"1kb",
    ],
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(SettingsError):
        parse_size(value)


def test_a_refused_size_is_quoted_with_its_setting_and_the_accepted_forms():
    with pytest.raises(SettingsError) as caught:
        parse_size("-1", name="FALLBACK['max_bytes']")
    assert str(caught.value) == (
        "FALLBACK['max_bytes']: '-1' is not a size; write bytes (65536) or text "
        '("512b", "16kb", "32mb", "1gb")'
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0000004, "0.4us"),
        (0.00005, "50us"),
        (0.00025, "250us"),
        (0.25, "250ms"),
        (0.0123, "12.3ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (12.345, "12.3s"),
        (59.94, "59.9s"),
        (59.96, "1min"),
        (60, "1min"),
        (90, "1min 30s"),
        (900, "15min"),
        (3599.6, "1h"),
        (4980, "1h 23min"),
        (3601, "1h"),
        (86400, "1d"),
        (183600, "2d 3h"),
        (-90, "-1min 30s"),
        (-0.25, "-250ms"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_duration_is_written_for_people(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_what_is_written_reads_back_within_what_is_shown(seconds):
    """Three digits under a minute, the second unit above: at worst half a percent, or a unit of 24 or 60."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.05)


@given(st.integers(min_value=0, max_value=10**7))
def test_whole_minutes_survive_writing_and_reading_up_to_a_day(minutes):
    seconds = (minutes % 1440) * 60
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text):
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(SettingsError):
            assert parse(text) >= 0
