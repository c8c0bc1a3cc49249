"""How what the query cache is told is read: lifetimes by data type, jitter, key templates with names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from redis_infra.durations import parse_duration
from redis_infra.exceptions import SettingsError
from redis_infra.keys import template

__all__ = ["DEFAULT_TTLS", "at_most", "fraction", "key_templates", "lifetime", "lifetimes"]

DEFAULT_TTLS: Final[Mapping[str, float]] = MappingProxyType(
    {"user": 300.0, "chat": 180.0, "messages": 120.0, "documents": 60.0, "stats": 30.0}
)


LONGEST: Final = 1e12
"""Seconds: some 30,000 years, and far from the end of what 64 bits can count in milliseconds."""


def at_most(seconds: float, value: Any, label: str) -> float:
    """Return seconds that were read from ``value``, unless they are more than can be counted."""
    if seconds > LONGEST:
        raise SettingsError(f"{label}: {value!r} is longer than Redis can count; write such as 3600 or '1w'")
    return seconds


def lifetime(value: Any, label: str) -> float:
    """Read how long a value lives: more than nothing, in seconds."""
    seconds = parse_duration(value, name=label)
    if seconds <= 0:
        raise SettingsError(f"{label}: {value!r} is no lifetime; write more than 0, such as 300 or '5min'")
    return at_most(seconds, value, label)


def lifetimes(value: Any, label: str) -> Mapping[str, float]:
    """Read lifetimes by data type, over those that there are."""
    named = _by_name(value, label, "{'user': '5min'}")
    read = {name: lifetime(each, f"{label}[{name!r}]") for name, each in named.items()}
    return MappingProxyType({**DEFAULT_TTLS, **read})


def fraction(value: Any, label: str) -> float:
    """Read a part of one, as jitter is: from 0 up to, and not with, 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise SettingsError(
            f"{label}: {value!r} is no fraction; write a number from 0 to below 1, such as 0.1"
        )
    return float(value)


def key_templates(value: Any, label: str) -> Mapping[str, str]:
    """Read key templates by name."""
    named = _by_name(value, label, "{'user': 'user:{user_id}'}")
    for name, text in named.items():
        try:
            template(text)
        except SettingsError as error:
            raise SettingsError(f"{label}[{name!r}]: {error}") from None
    return MappingProxyType(dict(named))


def _by_name(value: Any, label: str, form: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{label}: a {type(value).__name__} is not a dictionary; write {form}")
    for name in value:
        if not isinstance(name, str) or not name:
            raise SettingsError(f"{label}: {name!r} is not a name; write {form}")
    return value
