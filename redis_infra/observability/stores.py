"""How the key-value store of a site is, and what decided that it is this one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from django.conf import settings as django_settings

from redis_infra.conf import KVSettings, get_settings
from redis_infra.exceptions import RedisInfraError
from redis_infra.kv import StoreHealth, get_store

__all__ = ["StoreReport", "check_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """The key-value store, as this process sees it."""

    status: Literal["pass", "warn", "fail"]
    state: str
    """``up``, ``down``, ``degraded``, ``memory`` or ``invalid``."""
    provider: str = ""
    where: str = ""
    reason: str = ""
    ping_ms: float | None = None
    cause: str = ""
    remedy: str = ""


def check_store() -> StoreReport:
    """Ask the store whether it is there; never raises.

    Of a site that says nothing of ``KV`` nobody knows whether it uses the store: what is wrong is a warning.
    """
    try:
        store = get_store()
        began = time.perf_counter()
        found = store.health()
    except (RedisInfraError, ImportError) as error:
        return StoreReport(
            status="fail" if _is_wanted() else "warn",
            state="invalid",
            cause=" ".join(str(error).split()),
            remedy="run: python manage.py check --tag redis_infra",
        )
    took = (time.perf_counter() - began) * 1000
    state, status, remedy = _judged(found)
    return StoreReport(
        status=status,
        state=state,
        provider=found.provider,
        where=found.where,
        reason=found.why,
        ping_ms=took if state == "up" else None,
        cause=found.problem,
        remedy=remedy,
    )


def _judged(found: StoreHealth) -> tuple[str, Literal["pass", "warn", "fail"], str]:
    if found.status == "down":
        remedy = "start it, or correct where it is; get_store() raises StoreUnavailable meanwhile"
        return "down", "fail" if _is_wanted() else "warn", remedy
    if found.status == "degraded":
        return "degraded", "warn", "what is set meanwhile is of each process alone, and forgotten (FALLBACK)"
    if found.provider == "memory":
        is_meant = django_settings.DEBUG or not _is_wanted()
        remedy = "" if is_meant else "each process has a store of its own, gone at its end; set REDIS_URL"
        return "memory", "pass" if is_meant else "warn", remedy
    return "up", "pass", ""


def _is_wanted() -> bool:
    try:
        return get_settings().kv != KVSettings()
    except RedisInfraError:
        return True
