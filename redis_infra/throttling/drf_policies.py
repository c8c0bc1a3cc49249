"""``PolicyThrottle``: the policies of a view, several limits and identities of them in one question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from rest_framework.throttling import BaseThrottle

from redis_infra.exceptions import SettingsError
from redis_infra.throttling import auth
from redis_infra.throttling.charges import has_charges
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.drf_limiters import Limiters, site_limiters
from redis_infra.throttling.drf_rates import policy_named, written_rates
from redis_infra.throttling.drf_responses import enter, keep_out_of_caches, paid_before
from redis_infra.throttling.joint import JointPlan
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.plans import Plan
from redis_infra.throttling.policies import Policy

__all__ = ["AsyncPolicyThrottle", "PolicyThrottle"]

Wanted: TypeAlias = str | Iterable[str] | Mapping[str, Any] | None
"""The policies of a view: one, several that hold together, or either by action or method."""


class PolicyThrottle(BaseThrottle):
    """The policies of ``REDIS_INFRA["THROTTLE"]`` that a view names, for whomever they are.

    ::

        class Search(APIView):
            throttle_classes = [PolicyThrottle]           # or PolicyThrottle.of("search"), and nothing more
            throttle_policy = "search"                    # or ["search", "tenant"], which hold together,
                                                          # or {"list": "search", "POST": "upload"}

    Without ``throttle_policy`` it looks at ``throttle_scope``, in the same forms. One command a request. What
    the middleware or ``@ratelimit`` charged to the same policy is not charged again. A rate of the same name
    in DEFAULT_THROTTLE_RATES wins. ``decision`` is what was decided.
    """

    policies: ClassVar[tuple[str, ...]] = ()
    decision: Decision | None = None

    @classmethod
    def of(cls, *names: str) -> type[PolicyThrottle]:
        """Return a class for these policies, whatever the view says; the same one each time."""
        return _with_policies(cls, names)  # type: ignore[arg-type]  # mypy: a class is no Hashable

    def get_policies(self, request: Any, view: Any) -> Wanted:
        """Return the policies for a request: those of the class, else what the view says."""
        return (
            self.policies or getattr(view, "throttle_policy", None) or getattr(view, "throttle_scope", None)
        )

    def get_cost(self, request: Any, view: Any) -> int:
        """Return what the request counts: a whole number, 0 for nothing."""
        return 1

    def is_exempt(self, request: Any, view: Any) -> bool:
        """Return whether the request is not limited at all."""
        return False

    def allow_request(self, request: Any, view: Any) -> bool:
        """Return whether the request may pass, and charge it if so.

        Raises:
            ServiceUnavailable: Redis is away, and the policy says ``on_outage="deny"``.
            ImproperlyConfigured: there is no such policy, or another setting is wrong.
        """
        asked = self._question(request, view)
        if isinstance(asked, bool):
            return asked
        limiter, plan, cost = asked
        self.decision = limiter.decide(plan, plan.tags(plan.policy.identities(request)), cost)
        return enter(self.decision, plan, limiter, request, view, self.__class__)

    def wait(self) -> float | None:
        """Return the seconds after which the request fits, to the millisecond; None if it never does."""
        return None if self.decision is None else self.decision.retry_after

    def policy_for(self, view: Any, method: str) -> Policy | None:
        """Return what holds for a method of a view, for people to read; None if nothing does.

        Raises whatever ``get_policies`` of the site's own does, as there may be no request.
        """
        request = getattr(view, "request", None)
        plan = self._plan(_chosen(self.get_policies(request, view), view, method), site_limiters())
        return None if plan is None else plan.policy

    def _question(self, request: Any, view: Any) -> tuple[RateLimiter, Plan, int] | bool:
        """Return who is to be asked what; or the answer, where that is known."""
        if self.is_exempt(request, view):
            return True
        limiters = site_limiters()
        wanted = self.get_policies(request, view)
        if type(wanted) is not tuple:  # which ``of()`` has made ready
            wanted = (wanted,) if type(wanted) is str else _chosen(wanted, view, request.method)
        plan = self._plan(wanted, limiters)
        if plan is None:
            return True
        cost = self.get_cost(request, view)
        if type(cost) is not int or cost != 1:
            _whole(cost, self)
        if has_charges(request):
            self.decision, plan, cost = paid_before(request, plan, cost, view, type(self))
            if plan is None:
                if self.decision:
                    return True
                keep_out_of_caches(view)
                return False
        return limiters.site, plan, cost

    @staticmethod
    def _plan(names: tuple[str, ...], limiters: Limiters) -> Plan | None:
        rates = written_rates()
        made_of = (names, tuple([rates[name] for name in names if name in rates]))
        try:
            return limiters.ready[made_of]  # type: ignore[no-any-return]
        except KeyError:
            policies = [policy_named(limiters.site, name, rates) for name in dict.fromkeys(names)]
            return limiters.keep(made_of, _plan_of(limiters.site, policies))


class AsyncPolicyThrottle(PolicyThrottle):
    """:class:`PolicyThrottle` whose ``allow_request`` is a coroutine, for adrf's views."""

    async def allow_request(self, request: Any, view: Any) -> bool:  # type: ignore[override]
        asked = self._question(request, view)
        if isinstance(asked, bool):
            return asked
        limiter, plan, cost = asked
        self.decision = await limiter.adecide(plan, plan.tags(plan.policy.identities(request)), cost)
        return enter(self.decision, plan, limiter, request, view, self.__class__)


@cache
def _with_policies(cls: type[PolicyThrottle], names: tuple[str, ...]) -> type[PolicyThrottle]:
    return type(
        f"{cls.__name__}[{'+'.join(names)}]", (cls,), {"policies": names, "__module__": cls.__module__}
    )


def _chosen(wanted: Wanted, view: Any, method: str) -> tuple[str, ...]:
    """Return the names that a view means for an action (of a view set), a method, or by ``default``."""
    if isinstance(wanted, str):
        return (wanted,)
    if isinstance(wanted, tuple):
        return wanted
    if isinstance(wanted, Mapping):
        cases: tuple[Any, ...] = (getattr(view, "action", None), method, method.lower(), "default")
        return _chosen(next((wanted[case] for case in cases if case in wanted), None), view, method)
    return tuple(wanted or ())


def _plan_of(limiter: RateLimiter, policies: Iterable[Policy]) -> Plan | None:
    plans = [limiter.plan(policy) for policy in policies if policy.limits]
    if any(plan.policy.refund_on for plan in plans):
        auth.connect()
    if len(plans) < 2:
        return plans[0] if plans else None
    try:
        return JointPlan(plans)
    except SettingsError as error:
        raise ImproperlyConfigured(str(error)) from error


def _whole(cost: Any, throttle: PolicyThrottle) -> int:
    if isinstance(cost, int) and not isinstance(cost, bool) and cost >= 0:
        return cost
    name = type(throttle).__name__
    raise ValueError(f"{name}.get_cost() returned {cost!r}; it has to be a whole number from 0 up")
