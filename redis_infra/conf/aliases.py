"""The settings of one cache alias: ``REDIS_INFRA`` with the alias' ``OPTIONS`` on top.

Also of what is no cache and works with Redis as if it were one: a capability finds its server by the same
rules, and has the settings of the alias that lends it one.

``OPTIONS`` take our names and those of django-redis. Where both say the same thing, ours wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from django.conf import settings as django_settings

from redis_infra.conf import django_redis
from redis_infra.conf.readers import did_you_mean
from redis_infra.conf.schema import (
    CapabilitySettings,
    Report,
    Settings,
    SharedSettings,
    get_settings,
    known_settings,
    mapping_in,
    raise_error,
    unknown_name,
    values_in,
)
from redis_infra.conf.sources import Source, find_source, is_ours
from redis_infra.exceptions import SettingsError

__all__ = ["AliasSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSettings(SharedSettings):
    """What holds for one cache alias, or for a capability that uses Redis as an alias would.

    ``url`` is the one of ``source``. ``connection`` is what OPTIONS say of user, password, database and TLS,
    by redis-py's names; ``options`` is what is left for the client of django-redis.
    """

    source: Source
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        location: object,
        params: Mapping[str, Any],
        *,
        environ: Mapping[str, str] = os.environ,
        settings: Settings | None = None,
        where: str = "OPTIONS",
        report: Report = raise_error,
    ) -> AliasSettings:
        """Return the settings of an alias from its LOCATION and the other parameters of ``CACHES[alias]``.

        Takes some tens of microseconds; reads Django's settings and ``environ``, opens nothing. ``where``
        is what errors call the OPTIONS.

        Raises:
            SettingsError: a name, a value or a URL's scheme is wrong, here or in ``REDIS_INFRA``. With a
                ``report`` that returns, what is wrong is left out.
        """
        settings = settings if settings is not None else get_settings()
        options = mapping_in(params.get("OPTIONS") or {}, where, report)
        values = _values(options, settings, where, report)
        source = _source(location, values.pop("url", None), environ, settings, report)
        merged = {item.name: getattr(settings, item.name) for item in _SHARED} | values
        return cls(
            **merged | {"url": source.url},
            source=source,
            connection=django_redis.connection_in(options, where, report),
            options=django_redis.left_over(options) | _dotted(merged),
        )

    @classmethod
    def for_capability(
        cls,
        name: str,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        environ: Mapping[str, str] = os.environ,
        report: Report = raise_error,
    ) -> AliasSettings:
        """Return what holds for what stands in ``REDIS_INFRA[name]``, and where that finds Redis.

        The first that is there: ``url``, for who is told it in code; the capability's own ``URL`` or
        ``ALIAS``; then as for an alias without a LOCATION. Where that leads to an alias of the cache, its
        OPTIONS count too: they may hold the password.

        Raises:
            SettingsError: as :meth:`load`; or ALIAS names none of our caches.
        """
        settings = settings if settings is not None else get_settings()
        said: CapabilitySettings = getattr(settings, name.lower())
        where = f"REDIS_INFRA[{name!r}]"
        common: dict[str, Any] = {"environ": environ, "settings": settings, "report": report}
        if url or said.url:
            found = cls.load(url or said.url, {}, **common)
            return _reworded(found, "URL", "the URL that was given" if url else f"{where}['URL']")
        if said.alias:
            params = _cache(said.alias, f"{where}['ALIAS']", report)
            found = cls._of_cache(said.alias, params, **common)
            reason = f"the LOCATION of the cache alias {said.alias!r}, which {where}['ALIAS'] names"
            return _reworded(found, "ALIAS", reason)
        found = cls.load("", {}, **common)
        if found.source.rule != "default alias":
            return found
        return replace(cls._of_cache("default", _caches()["default"], **common), source=found.source)

    @classmethod
    def for_throttle(
        cls,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        environ: Mapping[str, str] = os.environ,
        report: Report = raise_error,
    ) -> AliasSettings:
        """:meth:`for_capability` of ``THROTTLE``."""
        return cls.for_capability("THROTTLE", settings, url=url, environ=environ, report=report)

    @classmethod
    def _of_cache(cls, alias: str, params: Mapping[str, Any], **common: Any) -> AliasSettings:
        return cls.load(params.get("LOCATION", ""), params, where=f"CACHES[{alias!r}]['OPTIONS']", **common)


_SHARED = fields(SharedSettings)


def _caches() -> Mapping[str, Any]:
    caches: Mapping[str, Any] = getattr(django_settings, "CACHES", {})
    return caches


def _cache(alias: str, label: str, report: Report) -> Mapping[str, Any]:
    """Return what CACHES says of an alias that is ours; nothing of one that is not."""
    params: Mapping[str, Any] | None = _caches().get(alias)
    if params is not None and is_ours(params.get("BACKEND")):
        return params
    if params is None:
        ours = [name for name, each in _caches().items() if is_ours(each.get("BACKEND"))]
        remedy = did_you_mean(alias, ours) if ours else "; add it, or write a URL"
        report("value", SettingsError(f"{label}: {alias!r} is not a key of CACHES{remedy}"))
    else:
        text = f"{label}: the BACKEND of CACHES[{alias!r}] is not 'redis_infra.cache.RedisCache'; write a URL"
        report("value", SettingsError(text))
    return {}


def _reworded(found: AliasSettings, rule: str, reason: str) -> AliasSettings:
    """Say who named the server, where it was not the alias itself."""
    if found.source.rule != "LOCATION":
        return found
    return replace(found, source=replace(found.source, rule=rule, reason=reason))


def _values(options: Mapping[str, Any], settings: Settings, where: str, report: Report) -> dict[str, Any]:
    known = known_settings(SharedSettings)
    for name in options:
        if name not in known and name not in django_redis.ACCEPTED:
            report("name", unknown_name(f"{where}[{name!r}]", name, (*known, *django_redis.ACCEPTED)))
    ours = {name: options[name] for name in options if name in known}
    theirs = django_redis.settings_in(options, settings, where, report)
    return theirs | values_in(ours, known, settings, where, report)


def _source(
    location: object, url: str | None, environ: Mapping[str, str], settings: Settings, report: Report
) -> Source:
    """Find the server; OPTIONS["URL"] stands in for a LOCATION that is not there."""
    try:
        source = find_source(location or url, environ=environ, settings=settings)
    except SettingsError as error:
        report("url", error)
        return Source(url="memory://", rule="error", reason=str(error))
    if source.rule == "LOCATION" and not location:
        return replace(source, reason="URL in the alias' own OPTIONS")
    return source


def _dotted(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the formats that are paths: django-redis' client imports them, and knows no short names."""
    named = {name.upper(): values[name] or "" for name in ("serializer", "compressor")}
    return {name: path for name, path in named.items() if "." in path}
