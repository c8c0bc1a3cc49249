"""What OpenAPI schemas of drf-spectacular say of throttles: the 429, its headers, and the limits in words.

::

    REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "redis_infra.throttling.spectacular.ThrottleAutoSchema"}

Importing this needs drf-spectacular. Asks no Redis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from redis_infra.exceptions import MissingExtra
from redis_infra.throttling.drf import PolicyThrottle, SimpleRateThrottle
from redis_infra.throttling.drf_limiters import site_limiters
from redis_infra.throttling.policies import Policy

try:
    from drf_spectacular.openapi import AutoSchema
    from drf_spectacular.utils import OpenApiResponse
except ImportError as error:
    raise MissingExtra("drf-spectacular", "spectacular") from error

__all__ = ["ThrottleAutoSchema", "ThrottleSchemaMixin"]

_DETAIL: Final = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
_RETRY: Final = {"Retry-After": ("integer", "Seconds after which the request fits.")}
_STANDING: Final = {
    "RateLimit": (
        "string",
        "What is left of the limit that matters: r requests; in t seconds there are more.",
    ),
    "RateLimit-Policy": ("string", "The limits: q requests in w seconds."),
}
_LEGACY: Final = {
    "X-RateLimit-Limit": ("integer", "Requests in all of the limit that matters."),
    "X-RateLimit-Remaining": ("integer", "Requests that are left of it."),
    "X-RateLimit-Reset": ("integer", "Seconds until there are more."),
}


class ThrottleSchemaMixin:
    """Adds the responses of throttles to operations: for in front of an ``AutoSchema`` of the site's own.

    A response 429 (or 503) that the view describes itself is left alone. Limits that are not shown in
    headers are not shown here either.
    """

    view: Any
    method: str

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        responses = super()._get_response_bodies(direction)  # type: ignore[misc]
        policies = _policies_of(self.view, self.method) if direction == "response" else []
        if policies:
            responses.setdefault("429", self._described("429", _words(policies), _headers(policies)))
        if any(policy.on_outage == "deny" for policy in policies):
            text = "Requests cannot be counted at the moment."
            responses.setdefault("503", self._described("503", text, _RETRY))
        return responses

    def _described(self, status: str, text: str, headers: dict[str, tuple[str, str]]) -> Any:
        response = OpenApiResponse(response=_DETAIL, description=text)
        made = self._get_response_for_code(response, status)  # type: ignore[attr-defined]
        documented = {
            name: {"schema": {"type": kind}, "description": words} for name, (kind, words) in headers.items()
        }
        return {**made, "headers": {**documented, **made.get("headers", {})}}


class ThrottleAutoSchema(ThrottleSchemaMixin, AutoSchema):
    """drf-spectacular's ``AutoSchema`` that knows of throttles."""


def _policies_of(view: Any, method: str) -> list[Policy]:
    ours = [each for each in view.get_throttles() if isinstance(each, SimpleRateThrottle | PolicyThrottle)]
    return [policy for policy in (_policy_of(each, view, method) for each in ours) if policy is not None]


def _policy_of(throttle: Any, view: Any, method: str) -> Policy | None:
    try:
        return throttle.policy_for(view, method)  # type: ignore[no-any-return]
    except ImproperlyConfigured:
        raise
    except Exception:
        # The site's get_policies, get_rate and the like go by a request with a user in it, and nobody is
        # logged in when a schema is made. Limits that depend on him are in no schema anyway.
        return Policy(type(throttle).__name__, (), headers=False)


def _words(policies: Iterable[Policy]) -> str:
    """Return the limits as people read them: ``At most 20/min, 200/h.``"""
    rates = [str(limit.rate) for policy in policies if policy.headers for limit in policy.limits]
    return f"Too many requests. At most {', '.join(dict.fromkeys(rates))}." if rates else "Too many requests."


def _headers(policies: Iterable[Policy]) -> dict[str, tuple[str, str]]:
    style = site_limiters().site.throttle.headers
    if not style or not any(policy.headers for policy in policies):
        return dict(_RETRY)
    return {**_RETRY, **_STANDING, **(_LEGACY if style == "legacy" else {})}
