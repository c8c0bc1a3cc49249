"""Which limits there are, by the names that their logs have.

Those that settings name, and of others what a log's name says of itself. Knows nothing of who is limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from django.conf import settings as django_settings

from redis_infra.conf import did_you_mean
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.identity import Key
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.plans import Plan, plain_label
from redis_infra.throttling.policies import Limit, Policy
from redis_infra.throttling.rates import Rate
from redis_infra.throttling.routes import parse_routes
from redis_infra.throttling.sliding_log import Terms

__all__ = ["CODE", "DRF", "KnownLimit", "find_limits", "is_of", "nearest_scope", "unknown_limit"]

DRF: Final = "drf"
"""Group of the policies whose logs DRF's drop-in classes keep."""
CODE: Final = "code"
"""Group of those that no setting names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLimit:
    """A limit by the name that its logs have."""

    label: str
    policy: str
    group: str
    name: str
    key: Key | None = None
    """None where DRF's ``get_cache_key`` says whom it is for, or code that is not known here."""
    plan: Plan | None = None
    """Of this limit alone; None where only its logs are known."""

    @property
    def rate(self) -> Rate | None:
        return None if self.plan is None else self.plan.policy.limits[0].rate

    @property
    def on_outage(self) -> str:
        return "" if self.plan is None else self.plan.policy.on_outage

    @property
    def terms(self) -> Terms:
        """What is known of it; of one that is not, the limit is -1."""
        return Terms(-1, _window_in(self.label), 0) if self.plan is None else self.plan.terms[0]


def find_limits(limiter: RateLimiter, scope: str | None = None) -> dict[str, KnownLimit]:
    """Return the limits that settings name, by label; with ``scope`` those of the policies of that name.

    A scope of DRF's drop-in classes has logs of its own, beside those of a policy of the same name.
    """
    found: dict[str, KnownLimit] = {}
    for policy, has_keys in _policies(limiter):
        if scope is not None and policy.name != scope:
            continue
        plan = limiter.plan(policy)
        for label, (name, _), limit in zip(plan.labels, plan.named_rates, policy.limits, strict=True):
            alone = Plan(replace(policy, limits=(limit,)), plan.prefix, together=plan.together)
            key = limit.key if has_keys else None
            known = KnownLimit(
                label=label, policy=policy.name, group=policy.group, name=name, key=key, plan=alone
            )
            found.setdefault(label, known)
    return found


def _policies(limiter: RateLimiter) -> Iterator[tuple[Policy, bool]]:
    """Yield every policy that settings name, and whether its own keys say whom it is for.

    Those of THROTTLE, its routes' own rates, and the scopes of DRF's drop-in classes.
    """
    for policy in limiter.policies.values():
        yield policy, True
    for route in parse_routes(limiter.throttle, limiter.policies):
        if route.policy is not None:
            yield route.policy, True
    rates = (getattr(django_settings, "REST_FRAMEWORK", None) or {}).get("DEFAULT_THROTTLE_RATES") or {}
    for scope, text in rates.items():
        with suppress(SettingsError):  # a system check says so; what it has logged is shown all the same
            yield Policy(scope, tuple(Limit(rate) for rate in Rate.parse(text) or ()), group=DRF), False
    for policy in limiter.policies.values():
        if policy.name not in rates:
            yield replace(policy, group=DRF), True


def unknown_limit(label: str) -> KnownLimit:
    """Return what a label says of itself: a rate that stands in code, or that settings had before."""
    policy, _, rest = label.partition(":")
    drop_in = policy.startswith(f"{DRF}.")
    name = policy.removeprefix(f"{DRF}.") if drop_in else policy
    return KnownLimit(label=label, policy=name, group=DRF if drop_in else CODE, name=rest)


def _window_in(label: str) -> int:
    """Return the milliseconds of the window that a label ends with; of one that does not, all there are."""
    try:
        return Rate.parse(f"1/{label.rpartition(':')[2].removesuffix('-fixed')}").window_ms
    except SettingsError:
        return 2**53


def is_of(label: str, scope: str | None) -> bool:
    """Return whether a limit is one of a policy of this name, or of DRF's classes of this scope."""
    return scope is None or label.startswith((plain_label(scope), f"{DRF}.{plain_label(scope)}"))


def nearest_scope(limiter: RateLimiter, scope: str) -> str:
    """Return the end of a sentence that says which policies there are."""
    return did_you_mean(scope, {policy.name for policy, _ in _policies(limiter)})
