"""What every template may show: the cache's state, what this page was served from, how it should look."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from example_project.relay import demo, records, trace
from example_project.relay.records import Settings
from redis_infra.exceptions import RedisInfraError

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = {
    "closed": "Redis up",
    "open": "Degraded",
    "half_open": "Degraded",
    "recovering": "Recovering",
    "memory": "In memory",
}


def served_from(request: HttpRequest) -> dict[str, object]:
    """Give templates ``cache_state``, ``cache_label`` and ``served_from``.

    ``served_from`` is a function: the page's footer calls it last, when all of
    the page's reads have been made.
    """
    state = trace.status()["state"]
    return {
        "cache_state": state,
        "cache_label": LABELS.get(state, state),
        "served_from": _summary(getattr(request, "cache_operations", [])),
        "demo_password": demo.password(),
    }


def _summary(operations: list[trace.Operation]) -> Callable[[], dict[str, object]]:
    def summary() -> dict[str, object]:
        counts = Counter(operation.source.value for operation in operations)
        return {"sources": sorted(counts.items()), "ms": sum(op.seconds for op in operations) * 1000}

    return summary


def appearance(request: HttpRequest) -> dict[str, object]:
    """Give templates ``appearance``: what somebody has chosen. Asked for when it is used, once a page."""
    return {"appearance": SimpleLazyObject(lambda: _chosen(request))}


def _chosen(request: HttpRequest) -> Settings:
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return records.DEFAULTS
    try:
        return records.settings_of(user.pk)
    except RedisInfraError:
        # A page in the wrong colours is a page. The Settings page says that they cannot be read.
        return records.DEFAULTS
