"""Policies: how long a value lives, for how long it may be served after that, and whether it is kept at all.

Knows nothing of Redis, or of what is cached.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

from redis_infra.conf import did_you_mean, get_settings
from redis_infra.conf.querycache import at_most, lifetime
from redis_infra.durations import parse_duration
from redis_infra.exceptions import SettingsError

__all__ = ["Policy", "Ttl", "make_policy"]

Ttl: TypeAlias = float | str | timedelta | Callable[[Any], float | str | timedelta]
"""Seconds, ``"5min"``, a timedelta, the name of a data type, or a function of the result that returns one."""

_FORMS: Final = "write seconds, '5min', a timedelta, a data type of REDIS_INFRA['TTL'], or a function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the values of one function are kept. Seconds."""

    kind: str
    """The data type, as statistics have it."""
    ttl: Ttl
    none_ttl: float | None
    stale: float
    version: int
    condition: Callable[[Any], bool] | None

    def keeps(self, result: Any) -> bool:
        """Whether a result is stored, if it can be."""
        # A coroutine is none yet: a condition that raised for it would leave it un-awaited.
        return self.condition is None or inspect.iscoroutine(result) or bool(self.condition(result))

    def lifetime(self, result: Any) -> float:
        """Return how long a result is good, with jitter: never longer than asked for.

        Raises:
            SettingsError: a function of the result returned what is no lifetime.
        """
        if result is None and self.none_ttl is not None:
            seconds = self.none_ttl
        elif callable(self.ttl):
            seconds = _seconds(self.ttl(result))
        else:
            seconds = _seconds(self.ttl)  # looked up anew: settings of data types can be overridden
        jitter = get_settings().ttl_jitter
        return seconds * (1.0 - jitter * random.random())  # noqa: S311  # spreads, protects nothing

    def longest(self) -> float:
        """Return how long a value may be served, as far as that is known before there is one: a day else."""
        known = 24 * 3600.0 if callable(self.ttl) else _seconds(self.ttl)
        return known + self.stale


def make_policy(
    *,
    kind: str,
    ttl: Ttl,
    none_ttl: Any = None,
    stale: Any = None,
    version: int = 1,
    condition: Callable[[Any], bool] | None = None,
) -> Policy:
    """Return a checked policy.

    Raises:
        SettingsError: a lifetime is none, or names a data type that there is not; or another option is wrong.
    """
    if not callable(ttl):
        _seconds(ttl)
    if isinstance(ttl, str) and ttl in get_settings().ttl:
        kind = ttl
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < 2**16:
        raise SettingsError(f"version {version!r} is not a whole number from 1 to 65535")
    if condition is not None and not callable(condition):
        raise SettingsError(f"condition {condition!r} is not a function of the result")
    return Policy(
        kind=kind,
        ttl=ttl,
        none_ttl=None if none_ttl is None else lifetime(none_ttl, "none_ttl"),
        stale=0.0 if stale is None else at_most(parse_duration(stale, name="stale"), stale, "stale"),
        version=version,
        condition=condition,
    )


def _seconds(ttl: Any) -> float:
    if isinstance(ttl, str):
        types = get_settings().ttl
        if ttl in types:
            return types[ttl]
        if ttl.isidentifier():
            raise SettingsError(f"ttl {ttl!r} is not a data type{did_you_mean(ttl, types)}; {_FORMS}")
    if ttl is None or isinstance(ttl, bool):
        raise SettingsError(f"ttl {ttl!r} is no lifetime, and everything that is cached has one; {_FORMS}")
    return lifetime(ttl, "ttl")
