"""The Django app: what has to be told to Django once, and nothing else."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from django.apps import AppConfig

__all__ = ["RedisInfraConfig"]


class RedisInfraConfig(AppConfig):
    """Registers the system checks. Opens nothing, starts nothing, imports no redis-py."""

    name = "redis_infra"
    verbose_name = "Redis"

    def ready(self) -> None:
        from django.core.checks import register
        from django.core.signals import setting_changed

        from redis_infra.checks import TAG, check_deployment, check_settings
        from redis_infra.instrumentation import observe_use

        register(check_settings, TAG)
        register(check_deployment, TAG, deploy=True)
        observe_use(_begin_statistics)
        setting_changed.connect(_forget_caches, dispatch_uid="redis_infra.apps")


def _begin_statistics() -> None:
    """Sum what this process counts. Imported with the first Redis that is used, and not before."""
    from redis_infra.observability.flushing import begin

    begin()


def _forget_caches(*, setting: str, **_: Any) -> None:
    """Let the calling thread's caches be built anew after ``override_settings(REDIS_INFRA=...)``.

    Django does the same for CACHES; a cache holds the settings that it was built with, and so do a limiter
    and a key-value store.
    """
    if setting in ("REDIS_INFRA", "CACHES", "SECRET_KEY"):
        from redis_infra.throttling.limiter import forget_limiters

        forget_limiters()
        if "redis_infra.kv.factory" in sys.modules:
            from redis_infra.kv.factory import forget_stores

            forget_stores()
    if setting == "REDIS_INFRA":
        from django.core.cache import caches

        for alias in caches:
            with suppress(AttributeError):  # not built yet in this thread
                del caches[alias]
