"""The settings that there are: frozen classes whose fields are the schema.

A new setting is a new field with its default and its reader, and that is its documentation for the code,
its default and its validation. Reads ``REDIS_INFRA``; of ``CACHES`` it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

from django.conf import settings as django_settings

from redis_infra.conf import querycache, readers
from redis_infra.durations import format_duration
from redis_infra.exceptions import SettingsError

__all__ = [
    "BreakerPolicy",
    "CapabilitySettings",
    "FallbackLimits",
    "JournalLimits",
    "KVSettings",
    "Report",
    "RetryPolicy",
    "Settings",
    "SharedSettings",
    "StatsSettings",
    "ThrottleSettings",
    "get_settings",
    "ipv6_prefix",
    "known_settings",
    "mapping_in",
    "raise_error",
    "read_into",
    "read_setting",
    "unknown_name",
    "values_in",
    "written_settings",
]

T = TypeVar("T")

Reader: TypeAlias = Callable[[Any, str], Any]
"""A value and the name by which the user knows it -> what the code works with, or SettingsError."""

Report: TypeAlias = Callable[[str, SettingsError], None]
"""Takes a mistake and its kind, ``"name"``, ``"value"`` or ``"url"``: run time raises it, checks collect."""


def raise_error(kind: str, error: SettingsError) -> None:
    """Be a :data:`Report` that raises."""
    raise error from None


def _setting(default: T, read: Reader) -> T:
    """Make a field from its default and its reader."""
    made: T = field(default=default, metadata={"read": read})
    return made


def _ascending(policy: object, low: str, high: str) -> None:
    least, most = getattr(policy, low), getattr(policy, high)
    if least > most:
        pair = f"{low} ({format_duration(least)}) is longer than {high} ({format_duration(most)})"
        raise SettingsError(f"{pair}; write a longer {high} or a shorter {low}")


# --- the settings ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How commands, warmers and outboxes try again; a request does not sleep. Seconds."""

    attempts: int = _setting(3, readers.count)
    base: float = _setting(0.01, readers.wait)
    cap: float = _setting(1.0, readers.wait)

    def __post_init__(self) -> None:
        _ascending(self, "base", "cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When Redis counts as down, and how often it is asked whether it is back. Seconds."""

    timeouts: int = _setting(2, readers.count)
    probe_base: float = _setting(0.25, readers.timeout)
    probe_cap: float = _setting(5.0, readers.timeout)

    def __post_init__(self) -> None:
        _ascending(self, "probe_base", "probe_cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackLimits:
    """How much a process keeps while Redis is down, and for how long. Bytes and seconds."""

    max_entries: int = _setting(10_000, readers.count)
    max_bytes: int = _setting(32 * 1024**2, readers.room)
    max_ttl: float = _setting(30.0, readers.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLimits:
    """How many keys that Redis missed are remembered one by one. Bytes."""

    max_keys: int = _setting(100_000, readers.count)
    max_bytes: int = _setting(16 * 1024**2, readers.room)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """What ``REDIS_INFRA`` says for all and a cache alias' ``OPTIONS`` may say for itself.

    A setting's name is the field's, in upper case. Durations are seconds, sizes bytes.
    """

    url: str | None = field(default=None, repr=False, metadata={"read": readers.optional_url})
    key_prefix: str = _setting("ri", readers.prefix)
    state_dir: str | None = _setting("auto", readers.directory)
    command_timeout: float = _setting(0.25, readers.timeout)
    connect_timeout: float = _setting(0.25, readers.timeout)
    max_connections: int = _setting(50, readers.count)
    pool_wait: float = _setting(0.05, readers.wait)
    retry: RetryPolicy = field(default=RetryPolicy(), metadata={"read": RetryPolicy})
    breaker: BreakerPolicy = field(default=BreakerPolicy(), metadata={"read": BreakerPolicy})
    fallback: FallbackLimits = field(default=FallbackLimits(), metadata={"read": FallbackLimits})
    on_outage: str = _setting("local", readers.on_outage)
    journal: JournalLimits = field(default=JournalLimits(), metadata={"read": JournalLimits})
    serializer: str = _setting("pickle", readers.format_name)
    compressor: str | None = _setting(None, readers.optional_format)
    compress_min: int = _setting(1024, readers.size)
    signed: bool | Literal["migrate"] = _setting(False, readers.signed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitySettings:
    """What a capability has to itself: a dictionary in ``REDIS_INFRA``, its names in upper case too.

    ``url`` or ``alias`` says where it finds Redis, if not where everything else does.
    """

    url: str | None = field(default=None, repr=False, metadata={"read": readers.optional_url})
    alias: str | None = _setting(None, readers.optional_alias)

    def __post_init__(self) -> None:
        if self.url and self.alias:
            raise SettingsError("both URL and ALIAS say where Redis is; write one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleSettings(CapabilitySettings):
    """``REDIS_INFRA["THROTTLE"]``: what is limited, who asks, and what happens to who is refused.

    Of rates, policies and routes only the types have been checked. Seconds.
    """

    rates: Mapping[str, str | None] = field(
        default_factory=lambda: readers.DEFAULT_RATES, metadata={"read": readers.rates}
    )
    policies: Mapping[str, str | list[Any] | Mapping[str, Any]] = field(
        default_factory=lambda: MappingProxyType({}), metadata={"read": readers.policies}
    )
    routes: tuple[tuple[str, str | None], ...] = _setting((), readers.routes)
    trusted_proxies: tuple[readers.Peer, ...] = _setting((), readers.peers)
    ipv6_prefix: int = _setting(64, readers.ipv6_prefix)
    on_outage: str = _setting("host", readers.throttle_on_outage)
    hosts: int = _setting(1, readers.count)
    headers: bool | Literal["legacy"] = _setting(True, readers.headers)
    timeout: float = _setting(0.1, readers.timeout)
    response: str | None = _setting(None, readers.response)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSettings(CapabilitySettings):
    """``REDIS_INFRA["STATS"]``: whether processes sum what they count, how often, and how long it is kept."""

    enabled: bool = _setting(True, readers.switch)
    flush: float = _setting(10.0, readers.timeout)
    keep: float = _setting(24 * 3600.0, readers.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSettings(CapabilitySettings):
    """``REDIS_INFRA["KV"]``: what keeps the key-value store, and how long a REST API may take. Seconds."""

    url: str | None = field(default=None, repr=False, metadata={"read": readers.optional_store_url})
    provider: str | None = _setting(None, readers.store_provider)
    fallback: str | None = _setting(None, readers.store_fallback)
    file: str | None = _setting(None, readers.optional_path)
    token: str | None = field(default=None, repr=False, metadata={"read": readers.optional_token})
    connect_timeout: float = _setting(2.0, readers.timeout)
    command_timeout: float = _setting(1.0, readers.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(SharedSettings):
    """``REDIS_INFRA``, checked."""

    ttl: Mapping[str, float] = field(
        default_factory=lambda: querycache.DEFAULT_TTLS, metadata={"read": querycache.lifetimes}
    )
    ttl_jitter: float = _setting(0.1, querycache.fraction)
    loaders: int = _setting(8, readers.count)
    keys: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), metadata={"read": querycache.key_templates}
    )
    throttle: ThrottleSettings = field(default=ThrottleSettings(), metadata={"read": ThrottleSettings})
    stats: StatsSettings = field(default=StatsSettings(), metadata={"read": StatsSettings})
    kv: KVSettings = field(default=KVSettings(), metadata={"read": KVSettings})

    @classmethod
    def load(
        cls, raw: object, *, environ: Mapping[str, str] = os.environ, report: Report = raise_error
    ) -> Settings:
        """Return what the dictionary ``raw`` says over the defaults; REDIS_PREFIX overrides KEY_PREFIX.

        Raises:
            SettingsError: a name or a value is wrong. With a ``report`` that returns, the default holds.
        """
        settings = _merged(cls(), mapping_in(raw, "REDIS_INFRA", report), "REDIS_INFRA", report)
        values: dict[str, Any] = {}
        if prefix := environ.get("REDIS_PREFIX", "").strip():
            read_into(values, "KEY_PREFIX", prefix, "REDIS_PREFIX", report)
        return replace(settings, **values)


def get_settings() -> Settings:
    """Return the site's settings, made anew when ``REDIS_INFRA`` is another object (``override_settings``).

    Costs some two microseconds when it is not. Thread-safe.

    Raises:
        SettingsError: ``REDIS_INFRA`` is wrong; every call raises until it is right.
    """
    global _last  # one tuple, replaced whole: that is what makes this safe without a lock
    # Compared and not cleared by a signal: a signal has to be connected first, and in a site that names our
    # cache but not our app nobody does.
    written = (*_written(), os.environ.get("REDIS_PREFIX"))
    last = _last
    if last is None or last[0][0] is not written[0] or last[0][1:] != written[1:]:
        last = _last = (written, Settings.load(written_settings()))
    return last[1]


_last: tuple[tuple[object, object, str | None], Settings] | None = None


def ipv6_prefix() -> int:
    """Return ``THROTTLE["IPV6_PREFIX"]`` of the site; asked for each address, and so by one comparison."""
    global _last_prefix  # replaced whole, as above
    written = getattr(django_settings, "REDIS_INFRA", None)
    last = _last_prefix
    if last is None or last[0] is not written:
        last = _last_prefix = (written, get_settings().throttle.ipv6_prefix)
    return last[1]


_last_prefix: tuple[object, int] | None = None


def written_settings() -> object:
    """Return ``REDIS_INFRA`` as it is written, with what settings of django-redis say where it is silent."""
    raw, ignore_exceptions = _written()
    if raw is None:
        raw = {}
    # Only a False that was written out: it is django-redis' default as well, and asks for nothing there.
    if ignore_exceptions is False and isinstance(raw, Mapping) and "ON_OUTAGE" not in raw:
        return {**raw, "ON_OUTAGE": "raise"}
    return raw


def _written() -> tuple[object, object]:
    return (
        getattr(django_settings, "REDIS_INFRA", None),
        getattr(django_settings, "DJANGO_REDIS_IGNORE_EXCEPTIONS", None),
    )


# --- reading dictionaries by the schema -----------------------------------------------------------------


@cache
def known_settings(cls: type) -> Mapping[str, Any]:
    """Return the readers of a class by the names that users type.

    Upper case at the top and in what a capability has to itself, lower case below. The reader of a nested
    dictionary is the class whose fields it fills.
    """
    upper = issubclass(cls, (SharedSettings, CapabilitySettings))
    named = {(item.name.upper() if upper else item.name): item.metadata.get("read") for item in fields(cls)}
    return {name: read for name, read in named.items() if read is not None}


def read_setting(name: str, value: Any, *, label: str) -> Any:
    """Return ``value`` as the setting ``name`` reads it; the error calls it ``label``.

    Raises:
        SettingsError: it is wrong.
    """
    return known_settings(SharedSettings)[name](value, label)


def read_into(
    values: dict[str, Any], name: str, value: Any, label: str, report: Report, *, read: Reader | None = None
) -> None:
    """Put ``value``, read as the setting ``name`` (or by ``read``), into ``values`` under its field."""
    try:
        values[name.lower()] = (read or known_settings(SharedSettings)[name])(value, label)
    except SettingsError as error:
        report("url" if name == "URL" else "value", error)


def values_in(
    raw: Mapping[str, Any], known: Mapping[str, Any], over: object, where: str, report: Report
) -> dict[str, Any]:
    """Return what ``raw`` says, read as ``known``, by field; nested ones are laid over those of ``over``."""
    values: dict[str, Any] = {}
    for name, value in raw.items():
        label = f"{where}[{name!r}]"
        if name not in known:
            report("name", unknown_name(label, name, known))
        elif isinstance(known[name], type):
            nested = mapping_in(value, label, report)
            values[name.lower()] = _merged(getattr(over, name.lower()), nested, label, report)
        else:
            read_into(values, name, value, label, report, read=known[name])
    return values


def mapping_in(raw: object, where: str, report: Report) -> Mapping[str, Any]:
    """Return ``raw`` if it is a dictionary, and an empty one otherwise."""
    if isinstance(raw, Mapping):
        return raw
    kind = type(raw).__name__
    report("value", SettingsError(f"{where}: a {kind} is not a dictionary; write {{'NAME': value}}"))
    return {}


def unknown_name(label: str, name: object, known: Iterable[str]) -> SettingsError:
    return SettingsError(f"{label} is not a setting{readers.did_you_mean(name, known)}")


def _merged(base: T, raw: Mapping[str, Any], where: str, report: Report) -> T:
    """Return ``base`` with what ``raw`` says in place of its own."""
    cls: type = type(base)
    values = values_in(raw, known_settings(cls), base, where, report)
    try:
        return replace(base, **values)  # type: ignore[type-var]
    except SettingsError as error:
        report("value", SettingsError(f"{where}: {error}"))
        return base
