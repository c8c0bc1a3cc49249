"""Rates: how many in how long, read the way people write them.

Takes what Django REST framework, limits and django-ratelimit take, and refuses what they guess at: stock
DRF reads ``10/month`` as ten a minute. Knows nothing of Redis, Django or who is limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, overload

from redis_infra.exceptions import SettingsError

__all__ = ["Rate"]

MOST: Final = 9_999_999
"""The largest limit: a log entry counts with seven digits."""
LONGEST: Final = 366 * 86_400
"""Seconds of the longest window; a log lives that long for each identity."""

_UNITS: Final = {
    "ms": 0.001,
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
}
_SHORT: Final = (("day", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_ONE: Final = re.compile(
    r"\s*([0-9]{1,9})\s*(?:/|\bper\b)\s*([0-9]{1,12})?\s*([a-z]+)(\s+fixed)?\s*", re.IGNORECASE
)
_FORMS: Final = (
    "write one such as '20/min', '5/15min', '100 per 2 hours', '20/min;200/hour' or '1000/day fixed'"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``limit`` in any ``window`` seconds: ``Rate(5, 900)`` is ``Rate.parse("5/15min")``.

    ``fixed`` makes it a quota by the calendar instead: so many a day from midnight (UTC) to midnight, an
    hour from full hour to full hour. It is easier to explain to those who pay for it, and weaker: around the
    change of windows up to twice the limit fits into one window's length.

    ``also`` are further limits that have to hold at the same time; iterating yields all of them, each
    alone. A limit of 0 lets nothing through. Frozen, hashable.

    Raises:
        SettingsError: limit or window is out of range.
    """

    limit: int
    window: float
    fixed: bool = field(default=False, kw_only=True)
    also: tuple[Rate, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _seconds(self.window))
        if not isinstance(self.limit, int) or isinstance(self.limit, bool) or not 0 <= self.limit <= MOST:
            raise SettingsError(f"{self.limit!r} is not a limit; write a whole number from 0 to {MOST}")
        alike = [(rate.window_ms, rate.fixed) for rate in self]
        if len(set(alike)) < len(alike):
            raise SettingsError(f"'{self}' has two limits for the same window; keep the smaller one")

    @overload
    @classmethod
    def parse(cls, text: str | Rate) -> Rate: ...
    @overload
    @classmethod
    def parse(cls, text: None) -> None: ...
    @classmethod
    def parse(cls, text: str | Rate | None) -> Rate | None:
        """Return the rate that ``text`` says; None, which is no limit, stays None.

        ``"20/min"``, ``"5/15m"``, ``"100/2 hours"``, ``"100 per hour"``, several separated by ``;`` or ``,``,
        each with `` fixed`` behind it for a quota by the calendar. Units are ms, s, m, h, d and w with their
        usual longer forms; a month is none, since months differ.

        Raises:
            SettingsError: it is anything else; the text names it.
        """
        if text is None or isinstance(text, Rate):
            return text
        if not isinstance(text, str):  # before the cache, which a dictionary is no key of
            raise SettingsError(f"{text!r} is not a rate; {_FORMS}")
        return _parse(text)

    @property
    def window_ms(self) -> int:
        return round(self.window * 1000)

    @property
    def grain_ms(self) -> int:
        """Milliseconds that one entry of a log covers; 0 for fixed windows.

        One up to a limit of 100, so that it is exact to the millisecond; a hundredth of the window above,
        so that a log has at most 101 entries, 2.1 KB, whatever the limit.
        """
        if self.fixed:
            return 0
        return 1 if self.limit <= 100 else -(-self.window_ms // 100)

    @property
    def period(self) -> str:
        """The window as people write it: ``min``, ``15min``, ``2h``."""
        for unit, seconds in _SHORT:
            if self.window >= seconds and self.window % seconds == 0:
                count = int(self.window // seconds)
                return unit if count == 1 else f"{count}{unit}"
        return f"{self.window_ms}ms"

    def __iter__(self) -> Iterator[Rate]:
        yield Rate(self.limit, self.window, fixed=self.fixed) if self.also else self
        for rate in self.also:
            yield from rate

    def __str__(self) -> str:
        first = f"{self.limit}/{self.period}{' fixed' if self.fixed else ''}"
        return ";".join((first, *map(str, self.also)))


def _seconds(window: Any) -> float:
    """Return the window's seconds, whole ones as ``int``, so that equal rates look alike too."""
    seconds = window.total_seconds() if isinstance(window, timedelta) else window
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= LONGEST:
        raise SettingsError(f"{window!r} is not a window; write seconds, from 0.001 to {LONGEST} (366 days)")
    return int(seconds) if seconds == int(seconds) else round(seconds, 3)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Rate:
    rates = [_parse_one(part, text) for part in re.split(r"[;,]", text)]
    try:
        return Rate(rates[0].limit, rates[0].window, fixed=rates[0].fixed, also=tuple(rates[1:]))
    except SettingsError as error:
        raise SettingsError(f"{text!r} is not a rate: {error}") from None


def _parse_one(part: str, whole: str) -> Rate:
    found = _ONE.fullmatch(part)
    unit = _UNITS.get(found[3].lower()) if found else None
    if found is None or unit is None:
        raise SettingsError(f"{whole!r} is not a rate{_hint(found[3] if found else '')}; {_FORMS}")
    try:
        return Rate(int(found[1]), unit * int(found[2] or 1), fixed=bool(found[4]))
    except SettingsError as error:
        raise SettingsError(f"{whole!r} is not a rate: {error}") from None


def _hint(unit: str) -> str:
    if unit.lower().startswith(("month", "year")):
        return f" ({unit}s differ in length: write days, such as '30 days')"
    return ""
