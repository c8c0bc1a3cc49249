"""Durations and sizes the way people write them: ``"250ms"``, ``"15min"``, ``"32mb"``.

Reads settings and environment variables into plain seconds and bytes, and writes seconds for people.
Does not know which setting wants what: the caller checks ranges narrower than "not negative".
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final, NoReturn

from redis_infra.exceptions import SettingsError

__all__ = ["format_duration", "parse_duration", "parse_size"]

_DURATION_FORMS: Final = 'seconds (0.25, 30), text ("250ms", "15min", "24h", "2d", "1h30min") or a timedelta'
_SIZE_FORMS: Final = 'bytes (65536) or text ("512b", "16kb", "32mb", "1gb")'

# Longest first: parts of a compound duration must come in this order, each at most once.
_UNITS: Final = (
    (604800.0, ("w", "week", "weeks")),
    (86400.0, ("d", "day", "days")),
    (3600.0, ("h", "hr", "hrs", "hour", "hours")),
    (60.0, ("m", "min", "mins", "minute", "minutes")),
    (1.0, ("s", "sec", "secs", "second", "seconds")),
    (1e-3, ("ms", "msec", "millisecond", "milliseconds")),
    (1e-6, ("us", "usec", "microsecond", "microseconds")),
)
_SECONDS: Final = {name: seconds for seconds, names in _UNITS for name in names}

# As in redis.conf: "1k" is 1000 bytes and "1kb" is 1024.
_BYTES: Final = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1024,
    "kib": 1024,
    "m": 1000**2,
    "mb": 1024**2,
    "mib": 1024**2,
    "g": 1000**3,
    "gb": 1024**3,
    "gib": 1024**3,
}

_PART: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})\s*([a-z]*)\s*")


def parse_duration(value: object, *, name: str = "") -> float:
    """Return ``value`` in seconds, never negative and always finite.

    Takes seconds as a number (or as text, for environment variables), a ``timedelta``, or text with units
    from ``us`` to ``w``, upper or lower case, the longest first: ``"1h30min"``. ``name`` is the setting
    that the error names.

    Raises:
        SettingsError: it is none of these, negative, infinite or not a number.
    """
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        _refuse("a duration", value, name, _DURATION_FORMS)
    return seconds


def parse_size(value: object, *, name: str = "") -> int:
    """Return ``value`` in bytes, never negative.

    Takes a whole number of bytes (or text of one) or text with a unit as in redis.conf, upper or lower
    case: ``"16kb"`` is 16,384, ``"16k"`` is 16,000. ``name`` is the setting that the error names.

    Raises:
        SettingsError: it is none of these, negative, or not a whole number of bytes.
    """
    size = _text_bytes(value) if isinstance(value, str) else value
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        _refuse("a size", value, name, _SIZE_FORMS)
    return size


def format_duration(seconds: float) -> str:
    """Return ``seconds`` for people: ``"250ms"``, ``"12.3s"``, ``"15min"``, ``"1h 23min"``, ``"2d 3h"``.

    Three significant digits under a minute, two units above; ``parse_duration`` reads it back. A negative
    duration (two clocks that disagree) has its sign in front.
    """
    if not math.isfinite(seconds):
        return str(seconds)
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    return sign + (_short(seconds) if seconds < 59.95 else _long(round(seconds)))


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        return _text_seconds(value.strip().lower())
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _as_float(value)
    return None


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an int beyond 1e308
        return math.inf


def _text_seconds(text: str) -> float | None:
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text):
        return None
    if len(parts) == 1 and not parts[0][1]:
        return float(parts[0][0])
    total, last = 0.0, math.inf
    for number, unit in parts:
        size = _SECONDS.get(unit, math.inf)
        if size >= last:  # unknown or missing, out of order, or twice
            return None
        total, last = total + float(number) * size, size
    return total


def _text_bytes(text: str) -> int | None:
    match = _PART.fullmatch(text.strip().lower())
    if match is None or match[2] not in _BYTES:
        return None
    number, unit = match[1], _BYTES[match[2]]
    if number.isdigit():
        return int(number) * unit
    size = float(number) * unit
    return int(size) if size.is_integer() else None


def _short(seconds: float) -> str:
    if seconds == 0 or seconds >= 0.9995:
        return f"{seconds:.3g}s"
    if seconds >= 0.9995e-3:
        return f"{seconds * 1e3:.3g}ms"
    return f"{seconds * 1e6:.3g}us"


def _long(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def _refuse(what: str, value: object, name: str, forms: str) -> NoReturn:
    subject = f"{name}: " if name else ""
    raise SettingsError(f"{subject}{value!r} is not {what}; write {forms}")
