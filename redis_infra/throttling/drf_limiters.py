"""Which limiter counts for a throttle of Django REST framework: that of the Redis on which its ``cache`` is.

Stock throttles keep what they count in a Django cache, the class attribute ``cache``, and sites rely on it:
they give a throttle a cache of its own, and their tests empty it. Here logs are not in the cache, but which
Redis has them still follows it, and what the cache's ``clear()`` did to stock's logs it does to ours.

Knows nothing of requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from django.core.cache import DEFAULT_CACHE_ALIAS, caches
from django.core.cache import cache as default_cache
from django.core.exceptions import ImproperlyConfigured

from redis_infra.conf import get_settings, is_ours
from redis_infra.exceptions import SettingsError
from redis_infra.instrumentation import observe_clears
from redis_infra.throttling.limiter import RateLimiter, default_limiter

__all__ = ["GROUP", "Limiters", "site_limiters"]

T = TypeVar("T")

GROUP: Final = "drf"
"""The policies' group, whose logs go with the cache."""
MOST_READY: Final = 1024


class Limiters:
    """The limiters of a site's throttles, as long as its settings stay the same."""

    def __init__(self, site: RateLimiter) -> None:
        self.site = site
        self.ready: dict[Any, Any] = {}
        """What throttles have made of these settings, for the next request."""
        self._by_alias: dict[str, RateLimiter | None] = {}

    def keep(self, made_of: Any, made: T) -> T:
        """Keep what was made for the next request; bounded, since rates may be made up for each."""
        if len(self.ready) >= MOST_READY:
            self.ready.clear()
        self.ready[made_of] = made
        return made

    def of(self, cache: Any) -> RateLimiter | None:
        """Return who counts for throttles on this cache; None where stock's algorithm does, on the cache."""
        # Most leave the cache alone. Compared by identity: Django's proxy hands on all else to the cache.
        alias = DEFAULT_CACHE_ALIAS if cache is default_cache else _alias_of(cache)
        if alias is None:
            return None
        if alias not in self._by_alias:
            self._by_alias[alias] = self._make(alias)
            _used.add(alias)
        return self._by_alias[alias]

    def _make(self, alias: str) -> RateLimiter | None:
        ours = is_ours(caches.settings[alias].get("BACKEND"))
        if alias == DEFAULT_CACHE_ALIAS:
            # Without any Redis, another cache (memcached, the database) is still shared by all processes.
            return self.site if ours or self.site.remote is not None else None
        return _limiter_of_alias(alias) if ours else None


def _limiter_of_alias(alias: str) -> RateLimiter:
    settings = get_settings()
    throttle = dataclasses.replace(settings.throttle, url=None, alias=alias)
    return RateLimiter(settings=dataclasses.replace(settings, throttle=throttle))


def _alias_of(cache: Any) -> str | None:
    """Return the alias of a proxy, or of a cache that Django made for one; None if it is neither."""
    attributes = getattr(cache, "__dict__", {})
    if "_alias" in attributes:
        return str(attributes["_alias"])
    # Django tells a cache no name, and makes one for each thread: what it was made of has to do.
    made_of = (attributes.get("_server"), attributes.get("_params"))
    return next((alias for alias, said in caches.settings.items() if made_of == _handed_on(said)), None)


def _handed_on(said: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what Django hands to the cache of an alias."""
    params = {name: value for name, value in said.items() if name not in ("BACKEND", "LOCATION")}
    return said.get("LOCATION", ""), params


class _ForgetsWithTheCache:
    """Forget what throttles on a cache have counted, when the cache is cleared."""

    def cleared(self, cache: object) -> None:
        limiter = self._limiter(cache)
        if limiter is not None:
            limiter.forget_group(GROUP)

    async def acleared(self, cache: object) -> None:
        limiter = self._limiter(cache)
        if limiter is not None:
            await limiter.aforget_group(GROUP)

    @staticmethod
    def _limiter(cache: object) -> RateLimiter | None:
        return site_limiters().of(cache) if _alias_of(cache) in _used else None


_forgets = _ForgetsWithTheCache()
_limiters: Limiters | None = None
_used: set[str] = set()
"""Aliases on which throttles have counted in this process, whatever the settings were then."""


def site_limiters() -> Limiters:
    """Return the limiters of the settings as they are now.

    Raises:
        ImproperlyConfigured: they are wrong.
    """
    global _limiters  # replaced whole, which needs no lock: two threads at once make the same
    try:
        site = default_limiter()
    except SettingsError as error:
        raise ImproperlyConfigured(str(error)) from error
    limiters = _limiters
    if limiters is None or limiters.site is not site:
        observe_clears(_forgets)
        limiters = _limiters = Limiters(site)
    return limiters
