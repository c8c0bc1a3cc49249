"""What settings say of a scope of Django REST framework: DRF's own, and where they are silent, ours.

Read when a request comes, so that what ``override_settings`` or a test changes holds at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from rest_framework.settings import DEFAULTS, api_settings
from rest_framework.throttling import SimpleRateThrottle

from redis_infra.conf import did_you_mean
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.drf_limiters import site_limiters
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.policies import Limit, Policy, make_policy
from redis_infra.throttling.rates import Rate

__all__ = ["LiveRates", "PolicyRate", "policy_named", "policy_of_rate", "rate_of_scope", "written_rates"]

_AT_IMPORT: Final[Any] = SimpleRateThrottle.THROTTLE_RATES
_DEFAULT: Final[Any] = DEFAULTS["DEFAULT_THROTTLE_RATES"]
"""``user`` and ``anon`` are None in it, which nobody wrote."""
_REMEDY: Final = (
    "name it in REST_FRAMEWORK['DEFAULT_THROTTLE_RATES'], or in RATES or POLICIES of REDIS_INFRA['THROTTLE']"
)


class LiveRates:
    """The attribute ``THROTTLE_RATES``: what settings say now, not what they said when the class was made."""

    def __get__(self, throttle: Any, owner: type) -> Any:
        rates = SimpleRateThrottle.THROTTLE_RATES
        # Where a site replaced stock's, it means all throttles that derive from stock's.
        return api_settings.DEFAULT_THROTTLE_RATES if rates is _AT_IMPORT else rates


class PolicyRate(str):
    """The rate of a scope that only ``REDIS_INFRA["THROTTLE"]`` knows, as text, and its policy."""

    __slots__ = ("policy",)

    policy: Policy

    @classmethod
    def of(cls, policy: Policy) -> PolicyRate | None:
        """Return the limits for the policy's first key as a rate; None if it has none at all."""
        rates = [str(limit.rate) for limit in policy.limits if limit.key == policy.limits[0].key]
        if not rates:
            return None
        made = cls(";".join(rates))
        made.policy = policy
        return made


def written_rates() -> Mapping[str, str | None]:
    """Return the rates that the site wrote into DRF's settings."""
    rates: Any = api_settings.DEFAULT_THROTTLE_RATES
    return {} if rates is _DEFAULT else rates


def rate_of_scope(scope: str, rates: Mapping[str, str | None]) -> str | None:
    """Return the rate of a scope in ``rates``, else that of our policy of this name; None is no limit.

    Raises:
        ImproperlyConfigured: nobody has one.
    """
    if not isinstance(scope, str):
        raise ImproperlyConfigured(
            f"{scope!r} is not a scope; PolicyThrottle takes several, and dictionaries"
        )
    try:
        rate = rates[scope]
    except KeyError:
        rate = None
        if scope not in site_limiters().site.policies:
            raise _unknown("No default throttle rate set for '%s' scope", scope) from None
    else:
        if rate is not None or rates is not _DEFAULT:
            return rate
    limiters = site_limiters()
    try:
        return limiters.ready["rate", scope]  # type: ignore[no-any-return]
    except KeyError:
        policy = limiters.site.policies.get(scope)
        return limiters.keep(("rate", scope), None if policy is None else PolicyRate.of(policy))


def policy_of_rate(limiter: RateLimiter, name: str, rate: Rate | None) -> Policy:
    """Return the policy ``name`` with another rate, for its first key; a new one if there is none."""
    policy = limiter.policies.get(name)
    if policy is None:
        return make_policy(name, rate, on_outage=limiter.throttle.on_outage)
    key = policy.keys[0] if policy.keys else None
    limits = make_policy(name, rate, key).limits
    return dataclasses.replace(policy, limits=tuple(Limit(each.rate, each.key) for each in limits))


def policy_named(limiter: RateLimiter, name: str, rates: Mapping[str, str | None]) -> Policy:
    """Return the policy of this name, with the rate that ``rates`` have for it, if they have one.

    Raises:
        ImproperlyConfigured: there is neither, or the rate is wrong.
    """
    if name in rates:
        try:
            return policy_of_rate(limiter, name, Rate.parse(rates[name]))
        except SettingsError as error:
            label = f"REST_FRAMEWORK['DEFAULT_THROTTLE_RATES'][{name!r}]"
            raise ImproperlyConfigured(f"{label}: {error}") from error
    try:
        return limiter.policies[name]
    except KeyError:
        raise _unknown("'%s' is not a policy", name) from None


def _unknown(text: str, name: str) -> ImproperlyConfigured:
    near = did_you_mean(name, site_limiters().site.policies)
    return ImproperlyConfigured(f"{text % name}{near}; {_REMEDY}")
