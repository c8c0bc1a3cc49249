"""``@ratelimit``: a limit for one view, sync or async, a function or a method.

::

    @ratelimit("search")                                  # a policy of REDIS_INFRA["THROTTLE"]
    @ratelimit(rate="20/min", key="ip", methods=["POST"])  # or a rate of its own

Decides before the view runs, and sets ``request.throttle_decision``. What can be wrong is said when the view
is decorated; whether there is such a policy, at the first request, since that is a matter of settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse

from redis_infra.conf import did_you_mean
from redis_infra.exceptions import SettingsError
from redis_infra.throttling import auth
from redis_infra.throttling.charges import acharge, book_of, charge
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.identity import Key, parse_key
from redis_infra.throttling.limiter import RateLimiter, default_limiter
from redis_infra.throttling.plans import Plan
from redis_infra.throttling.policies import Policy, make_policy
from redis_infra.throttling.rates import Rate
from redis_infra.throttling.responses import Responder, afinish, finish, load_responder, refuse
from redis_infra.throttling.routes import parse_methods

__all__ = ["RateLimit", "ratelimit"]

P = ParamSpec("P")
R = TypeVar("R")

Cost: TypeAlias = int | Callable[[HttpRequest], int]
StepUp: TypeAlias = bool | Callable[[HttpRequest], bool]
KeyLike: TypeAlias = str | Callable[[Any], str | None]


@overload
def ratelimit(
    policy: str | Policy,
    /,
    *,
    cost: Cost = 1,
    methods: str | Iterable[str] | None = None,
    response: str | Responder | None = None,
    step_up: StepUp = False,
) -> RateLimit: ...
@overload
def ratelimit(
    *,
    rate: str | Rate,
    key: KeyLike = "user_or_ip",
    name: str | None = None,
    cost: Cost = 1,
    methods: str | Iterable[str] | None = None,
    response: str | Responder | None = None,
    step_up: StepUp = False,
) -> RateLimit: ...
def ratelimit(
    policy: str | Policy | None = None,
    /,
    *,
    rate: str | Rate | None = None,
    key: KeyLike | None = None,
    name: str | None = None,
    cost: Cost = 1,
    methods: str | Iterable[str] | None = None,
    response: str | Responder | None = None,
    step_up: StepUp = False,
) -> RateLimit:
    """Limit how often a view may be asked for: by a policy, or by a ``rate`` for each ``key``.

    ``cost`` is what a request counts, or says so for a request; 0 is free. ``methods`` are the ones that
    count, by default all. ``name`` is what the limit is called in headers and signals, by default the view's
    module and name; views with the same name share their limit. ``response`` makes the response to who is
    turned away: a function of (request, decision), its dotted path, or a template; by default the setting
    ``RESPONSE``. ``step_up`` lets a request through that only limits for the account alone deny (true, or a
    function of the request that says so): the view has to ask ``needs_step_up(request)`` then.

    Goes outside of ``cache_page``; through ``method_decorator`` or on the method itself.

    Raises:
        SettingsError: an argument is wrong; the text names it.
    """
    return RateLimit(
        policy=_named(policy, rate, key, name),
        rate=None if rate is None else Rate.parse(rate),
        key=parse_key("user_or_ip" if key is None else key),
        name=name,
        cost=_checked_cost(cost),
        methods=None if methods is None else parse_methods(methods),
        # A template or a dotted path is found at the first request: views are imported before both can be.
        response=load_responder(response, "response") if callable(response) else response,
        step_up=step_up,
    )


def _named(policy: object, rate: object, key: object, name: object) -> str | Policy | None:
    if policy is not None and not isinstance(policy, str | Policy):
        raise SettingsError(f"{policy!r} is not the name of a policy; write @ratelimit('search')")
    if (policy is None) == (rate is None):
        raise SettingsError("@ratelimit takes a policy's name or rate=, one of both")
    if policy is not None and not (key is None and name is None):
        raise SettingsError(f"policy {policy!r} has its own name and keys; key= and name= go with rate=")
    if isinstance(policy, str) and _is_rate(policy):
        raise SettingsError(f"{policy!r} is a rate; write @ratelimit(rate={policy!r})")
    return policy


def _is_rate(text: str) -> bool:
    try:
        Rate.parse(text)
    except SettingsError:
        return False
    return True


def _checked_cost(cost: Any) -> Any:
    if callable(cost) or (isinstance(cost, int) and not isinstance(cost, bool) and cost >= 0):
        return cost
    raise SettingsError(f"cost {cost!r} is not a whole number from 0 up, nor a function of the request")


@dataclass(frozen=True, kw_only=True, eq=False)
class RateLimit:
    """The decorator that :func:`ratelimit` makes. Types of the view stay what they are."""

    policy: str | Policy | None
    rate: Rate | None
    key: Key
    name: str | None
    cost: Cost
    methods: frozenset[str] | None
    response: str | Responder | None
    step_up: StepUp
    gates: dict[str, Gate] = field(default_factory=dict, init=False, repr=False)
    """By the names of views: method_decorator decorates anew with every request."""

    def __call__(self, view: Callable[P, R]) -> Callable[P, R]:
        name = _name_of(view, self)
        gate = self.gates.get(name) or self.gates.setdefault(name, Gate(self, name))
        if not _is_async(view):

            @functools.wraps(view)
            def limited(*args: P.args, **kwargs: P.kwargs) -> R:
                request = _request_in(args, kwargs)
                if not gate.counts(request):
                    return view(*args, **kwargs)
                response = gate.enter(request) or view(*args, **kwargs)
                finish(request, response)
                return cast("R", response)

            return limited

        awaited = cast("Callable[..., Any]", view)

        @functools.wraps(view)
        async def alimited(*args: Any, **kwargs: Any) -> Any:
            request = _request_in(args, kwargs)
            if not gate.counts(request):
                return await awaited(*args, **kwargs)
            response = await gate.aenter(request) or await awaited(*args, **kwargs)
            await afinish(request, response)
            return response

        return cast("Callable[P, R]", alimited)


class Gate:
    """One view's limit at work. Remembers what it made of the settings, as long as they are the same."""

    __slots__ = ("_made", "_name", "_options")

    def __init__(self, options: RateLimit, name: str) -> None:
        self._options = options
        self._name = name
        self._made: tuple[RateLimiter, Plan, Responder] | None = None

    def counts(self, request: Any) -> bool:
        methods = self._options.methods
        return methods is None or request.method in methods

    def enter(self, request: Any) -> HttpResponse | None:
        """Return None if the view may run, else the response."""
        limiter, plan, respond = self._ready()
        cost = self._cost(request)
        decision = charge(request, limiter, plan, cost)
        if not decision and self._steps_up(request, decision):
            decision = charge(request, limiter, auth.without_accounts(plan), cost)
        return None if decision else refuse(request, decision, respond)

    async def aenter(self, request: Any) -> HttpResponse | None:
        """:meth:`enter` in the running event loop."""
        limiter, plan, respond = self._ready()
        cost = self._cost(request)
        decision = await acharge(request, limiter, plan, cost)
        if not decision and self._steps_up(request, decision):
            decision = await acharge(request, limiter, auth.without_accounts(plan), cost)
        return None if decision else refuse(request, decision, respond)

    def _ready(self) -> tuple[RateLimiter, Plan, Responder]:
        limiter, made = default_limiter(), self._made
        if made is None or made[0] is not limiter:
            auth.connect()
            made = self._made = (limiter, limiter.plan(self._policy(limiter)), self._responder(limiter))
        return made

    def _policy(self, limiter: RateLimiter) -> Policy:
        options = self._options
        if isinstance(options.policy, Policy):
            return options.policy
        if options.policy is None:
            return make_policy(self._name, options.rate, options.key, on_outage=limiter.throttle.on_outage)
        try:
            return limiter.policies[options.policy]
        except KeyError:
            near = did_you_mean(options.policy, limiter.policies)
            raise SettingsError(
                f"@ratelimit({options.policy!r}) on {self._name}: there is no such policy{near}; "
                f"add it to REDIS_INFRA['THROTTLE']['POLICIES']"
            ) from None

    def _responder(self, limiter: RateLimiter) -> Responder:
        if self._options.response is not None:
            return load_responder(self._options.response, f"@ratelimit on {self._name}: response")
        return load_responder(limiter.throttle.response, "REDIS_INFRA['THROTTLE']['RESPONSE']")

    def _cost(self, request: Any) -> int:
        cost = self._options.cost
        if not callable(cost):
            return cost
        found = cost(request)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise ValueError(f"cost of {self._name}: {found!r} is not a whole number from 0 up")
        return found

    def _steps_up(self, request: Any, decision: Decision) -> bool:
        """Let a request through to the second factor, if that is what it needs and the view wants it."""
        step_up = self._options.step_up
        if not step_up or not auth.needs_step_up(decision):
            return False
        if callable(step_up) and not step_up(request):
            return False
        book_of(request).step_up(decision)
        return True


def _request_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the request among a view's arguments: the first, behind ``self`` of a method, or by name."""
    for each in (*args[:2], kwargs.get("request")):
        if hasattr(each, "META"):
            return each
    raise TypeError("@ratelimit found no request among the arguments; it is for views and their methods")


def _owner(view: Any) -> Any:
    # method_decorator hands over a partial of the bound method, anew with every request.
    return getattr(getattr(view, "func", None), "__self__", None)


def _is_async(view: Any) -> bool:
    if iscoroutinefunction(view):
        return True
    # View.dispatch is a plain function that returns what the coroutine of an async view is.
    return getattr(view, "__name__", "") == "dispatch" and getattr(_owner(view), "view_is_async", False)


def _name_of(view: Any, options: RateLimit) -> str:
    """Return what the limit of a view is called."""
    if options.name is not None:
        return options.name
    owner, name = _owner(view), getattr(view, "__name__", "")
    if options.rate is not None and name in ("", "<lambda>"):
        raise SettingsError(f"{view!r} has no name; its limit needs one: @ratelimit(..., name='search')")
    if owner is not None:
        # The class that answers: dispatch() is View's own in all of them, and they do not share a limit.
        return f"{type(owner).__module__}.{type(owner).__qualname__}.{name}"
    return f"{getattr(view, '__module__', '')}.{getattr(view, '__qualname__', name)}"
