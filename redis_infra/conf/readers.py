"""One reader for each kind of value that a setting can have, and the words that refuse a wrong one.

A reader takes the value and the name by which the user knows it, and returns what the code works with.
Does not know which settings there are.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from redis_infra.durations import parse_duration, parse_size
from redis_infra.exceptions import SettingsError

__all__ = [
    "SCHEMES",
    "count",
    "did_you_mean",
    "directory",
    "format_name",
    "on_outage",
    "optional_format",
    "optional_url",
    "prefix",
    "redact_url",
    "room",
    "signed",
    "size",
    "timeout",
    "url",
    "wait",
]

SCHEMES: Final = (
    *("redis", "rediss", "valkey", "valkeys", "unix", "redis+sentinel", "redis+cluster"),
    *("memory", "embedded", "https", "file"),
)
"""What a URL may begin with."""

_DAY: Final = 86400.0
_ON_OUTAGE: Final = ("local", "miss", "raise")

_SCHEME: Final = re.compile(r"[\w+.-]+://")
# What follows the first colon of an address where it is no port: "redis://:secret", the host forgotten.
_NO_PORT: Final = re.compile(r"(?s)^((?>\[[^\]]*\]|[^:/?#,]*)):(?!\d+(?:[/?#,]|$)).*")
_SECRET: Final = re.compile(r"(?i)(\w*(?:pass|pwd|secret|token|auth)\w*=)[^&#\s]*")


def wait(value: Any, name: str) -> float:
    """Read seconds that may be none. At most a day: ``settimeout`` overflows, and nobody waits longer."""
    seconds = parse_duration(value, name=name)
    if seconds > _DAY:
        raise SettingsError(f"{name}: {value!r} is longer than a day; write a duration such as '250ms'")
    return seconds


def timeout(value: Any, name: str) -> float:
    """Read seconds, more than none."""
    seconds = wait(value, name)
    if seconds == 0:
        raise SettingsError(f"{name}: {value!r} leaves no time; write a duration above zero such as '250ms'")
    return seconds


def count(value: Any, name: str) -> int:
    """Read a whole number above zero, also as text (environment variables are)."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise SettingsError(f"{name}: {value!r} is not a whole number above zero; write one such as 50")
    return number


def size(value: Any, name: str) -> int:
    """Read bytes that may be none."""
    return parse_size(value, name=name)


def room(value: Any, name: str) -> int:
    """Read bytes, more than none."""
    number = parse_size(value, name=name)
    if number == 0:
        raise SettingsError(f"{name}: {value!r} leaves no room; write a size above zero such as '16mb'")
    return number


def on_outage(value: Any, name: str) -> str:
    if isinstance(value, str) and value in _ON_OUTAGE:
        return value
    raise SettingsError(f"{name}: {value!r} is not a choice{did_you_mean(value, _ON_OUTAGE)}")


def signed(value: Any, name: str) -> bool | Literal["migrate"]:
    if isinstance(value, bool):
        return value
    if value == "migrate":
        return "migrate"
    raise SettingsError(f"{name}: {value!r} is not a choice; write True, False or 'migrate'")


def format_name(value: Any, name: str) -> str:
    """Read the name of a serializer. Which there are, the codec knows; it refuses a wrong one."""
    if isinstance(value, str) and value:
        return value
    raise SettingsError(f"{name}: {value!r} is not a name; write a short name or a dotted path, as text")


def optional_format(value: Any, name: str) -> str | None:
    """Read the name of a compressor, or None."""
    return None if value is None or value == "" else format_name(value, name)


def prefix(value: Any, name: str) -> str:
    """Read what leads keys. Braces are hash tags to Redis Cluster: they would put every key on one node."""
    if isinstance(value, str) and re.fullmatch(r"[^\s{}]{1,64}", value):
        return value
    raise SettingsError(f"{name}: {value!r} cannot lead a key; write 1 to 64 characters, no space, no brace")


def directory(value: Any, name: str) -> str | None:
    """Read an absolute path, ``"auto"``, or None."""
    if value is None or value == "auto":
        return value  # type: ignore[no-any-return]
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if isinstance(path, str) and os.path.isabs(path):
        return path
    raise SettingsError(f"{name}: {value!r} is not an absolute path; write one, 'auto', or None for memory")


def url(value: Any, name: str) -> str:
    """Read a URL of one of the ``SCHEMES``; what follows the scheme is ``connection.options``' to judge."""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise SettingsError(f"{name}: a {kind} is not a URL; write text such as 'redis://localhost:6379/0'")
    scheme, mark, _ = value.strip().partition("://")
    if mark and scheme.lower() in SCHEMES:
        return value.strip()
    remedy = did_you_mean(scheme, SCHEMES) if mark else "; write one such as 'redis://localhost:6379/0'"
    raise SettingsError(f"{name}: {redact_url(value)!r} is not a URL of a known scheme{remedy}")


def optional_url(value: Any, name: str) -> str | None:
    return None if value is None or value == "" else url(value, name)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error's sentence: the nearest of the ``known`` names, or all of them."""
    names = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), names, n=1)
    if near:
        return f"; did you mean {names[near[0]]!r}?"
    return f"; there are {', '.join(sorted(names.values()))}"


def redact_url(text: str) -> str:
    """Return a URL for people, without whatever may be a password; also of text that is not quite a URL.

    Hides more rather than less: a password that should have been percent-encoded may hold any character.
    """
    text = text.strip()
    match = _SCHEME.match(text)
    scheme = match.group() if match else ""
    rest = text[len(scheme) :]
    _, at, tail = rest.rpartition("@")
    shown = f"***@{tail}" if at else _NO_PORT.sub(r"\1:***", rest)
    return _SECRET.sub(r"\1***", f"{scheme}{shown}")
