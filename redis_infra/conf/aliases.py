"""The settings of one cache alias: ``REDIS_INFRA`` with the alias' ``OPTIONS`` on top.

``OPTIONS`` take our names and those of django-redis. Where both say the same thing, ours wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from redis_infra.conf import django_redis
from redis_infra.conf.schema import (
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
from redis_infra.conf.sources import Source, find_source
from redis_infra.exceptions import SettingsError

__all__ = ["AliasSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSettings(SharedSettings):
    """What holds for one cache alias.

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


_SHARED = fields(SharedSettings)


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
