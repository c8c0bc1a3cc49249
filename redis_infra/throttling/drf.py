"""Throttles for Django REST framework: stock's names, attributes and hooks, with limits that hold.

::

    REST_FRAMEWORK = {
        "DEFAULT_THROTTLE_CLASSES": ["redis_infra.throttling.drf.UserRateThrottle"],
        "DEFAULT_THROTTLE_RATES": {"user": "20/min;200/hour"},
    }

Stock reads a list, adds to it and writes it back, so that requests at once count as one. Here a request is
one command, whatever the number of limits; they hold over any number of processes, and without Redis too.

Names that begin with ``Async`` are for views that are coroutines (adrf's): ``allow_request`` is one, and the
other hooks are functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from rest_framework import throttling as stock
from rest_framework.settings import api_settings

from redis_infra.exceptions import SettingsError
from redis_infra.throttling import auth, drf_history
from redis_infra.throttling.addresses import UNKNOWN, client_ip, network_of
from redis_infra.throttling.charges import arefund, decision_of, is_for_logins, refund
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.drf_limiters import GROUP, site_limiters
from redis_infra.throttling.drf_policies import AsyncPolicyThrottle, PolicyThrottle
from redis_infra.throttling.drf_rates import LiveRates, PolicyRate, policy_of_rate, rate_of_scope
from redis_infra.throttling.drf_responses import (
    RefundOnSuccess,
    ServiceUnavailable,
    can_carry_guess,
    enter,
    keep_out_of_caches,
    paid_before,
)
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.plans import Identity, Plan
from redis_infra.throttling.policies import Policy, make_policy
from redis_infra.throttling.rates import Rate

__all__ = [
    "AnonRateThrottle",
    "AsyncAnonRateThrottle",
    "AsyncAuthRateThrottle",
    "AsyncChatRateThrottle",
    "AsyncPolicyThrottle",
    "AsyncScopedRateThrottle",
    "AsyncSearchRateThrottle",
    "AsyncSimpleRateThrottle",
    "AsyncUploadRateThrottle",
    "AsyncUserRateThrottle",
    "AuthRateThrottle",
    "ChatRateThrottle",
    "PolicyThrottle",
    "RefundOnSuccess",
    "ScopedRateThrottle",
    "SearchRateThrottle",
    "ServiceUnavailable",
    "SimpleRateThrottle",
    "UploadRateThrottle",
    "UserRateThrottle",
    "arefund",
    "decision_of",
    "refund",
]

_CLOCK: Final = stock.SimpleRateThrottle.timer


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a throttle has made of its rate, for the next request."""

    limiter: RateLimiter
    plan: Plan
    by_key: bool
    """Whether ``get_cache_key`` says who it is; otherwise the keys of the policy do."""
    hooked: bool
    """Whether ``throttle_success`` is the site's own, and says what is counted."""
    shared: bool
    """Whether the logs are those of the policy everywhere, so that route and decorator may have charged."""


class SimpleRateThrottle(stock.SimpleRateThrottle):
    """Stock's ``SimpleRateThrottle``, exact: a subclass says by ``get_cache_key`` who is limited.

    ``rate`` may be several limits that hold together, ``"20/min;200/hour"``: ``num_requests`` and
    ``duration`` are the first one's. What ``get_cache_key`` returns never leaves the process as it is.
    ``decision`` is what was decided.

    Who overrides ``throttle_success`` says what counts, as with stock: what he adds to ``history``; that
    takes a second command. A throttle with a ``timer`` or ``cache`` of its own counts as stock does.
    """

    THROTTLE_RATES = LiveRates()
    num_requests: int | None
    duration: float | None
    decision: Decision | None = None

    _rates: tuple[Rate, ...] = ()
    """What the history is kept for, in stock's way."""

    # Stock's hooks

    def get_ident(self, request: Any) -> str:
        """Return the network of the client; NUM_PROXIES and TRUSTED_PROXIES say whom to believe."""
        address = client_ip(request, num_proxies=api_settings.NUM_PROXIES)
        if address == UNKNOWN and "REMOTE_ADDR" not in request.META:
            return None  # type: ignore[return-value]  # as stock has it
        return network_of(address)

    def get_rate(self) -> str | None:
        scope = getattr(self, "scope", None)
        if not scope:
            name = type(self).__name__
            raise ImproperlyConfigured(f"You must set either `.scope` or `.rate` for '{name}' throttle")
        return rate_of_scope(scope, self.THROTTLE_RATES)

    def parse_rate(self, rate: str | None) -> tuple[int | None, Any]:
        """Return how many requests in how many seconds; of several limits, the first.

        Raises:
            ImproperlyConfigured: it is no rate; the text names it, and what would be one.
        """
        if rate is None:
            return (None, None)
        try:
            first = Rate.parse(rate)
        except SettingsError as error:
            raise ImproperlyConfigured(f"{type(self).__name__}: {error}") from error
        return (first.limit, first.window)

    def throttle_success(self) -> bool:
        """Add the request to the history."""
        self.history.insert(0, self.now)
        if self.decision is None:
            timeout = drf_history.kept_for(self._rates) if self._rates else self.duration
            self.cache.set(str(self.key), self.history, timeout)
        return True

    def wait(self) -> float | None:
        """Return the seconds after which the request fits, to the millisecond; None if it never does."""
        # DRF rounds this up for its Retry-After: 60.001, where a stamp is the end of its millisecond, becomes
        # 61 (the middleware, which writes the header itself, says 60). Less would be said too early to those
        # who wait as long as this method says, and the time since the decision is no millisecond.
        if self.decision is not None:
            return self.decision.retry_after
        return drf_history.wait(self.history, self.now, self._rates) if self._rates else super().wait()

    @cached_property
    def history(self) -> list[Any]:  # type: ignore[override]
        """What is used of the first limit, newest first: as many times as there are, not when each was."""
        if self.decision is None or not self.decision.numbers:
            return []
        used = (self.num_requests or 0) - self.decision.numbers[0]
        oldest = min(self.now, self.now + self.decision.numbers[1] / 1000 - (self.duration or 0))
        return [self.now] * (used - 1) + [oldest] if used > 0 else []

    def policy_for(self, view: Any, method: str) -> Policy | None:
        """Return what holds for a view, for people to read; None if nothing does."""
        if self.rate is None or self.num_requests is None:
            return None
        ready = self._ready()
        return make_policy(self._name, self._whole_rate()) if ready is None else ready.plan.policy

    # One request

    def allow_request(self, request: Any, view: Any) -> bool:
        """Return whether the request may pass, and charge it if so.

        Raises:
            ServiceUnavailable: Redis is away, and the policy says ``on_outage="deny"``.
            ImproperlyConfigured: the rate, or another setting, is wrong.
        """
        if not self._is_for(request, view):
            return True
        ready = self._ready()
        if ready is None:
            return self._allow_by_history()
        if ready.shared and self._is_decided(ready, request, view):
            return self._answer(view)
        identity = self._identity(ready, request)
        if ready.hooked:
            return _driven(self._follow(ready, request, view), ready, identity)
        decision = ready.limiter.decide(ready.plan, ready.plan.tags(identity), 1)
        return self._settle(decision, ready, request, view)

    def _is_for(self, request: Any, view: Any) -> bool:
        """Whether this throttle has anything to do with the request."""
        if self.rate is None:
            return False
        self.key = self.get_cache_key(request, view)
        return self.key is not None and self.num_requests is not None

    def _identity(self, ready: _Ready, request: Any) -> Identity:
        return str(self.key) if ready.by_key else ready.plan.policy.identities(request)

    def _is_decided(self, ready: _Ready, request: Any, view: Any) -> bool:
        """Return whether somebody else has asked for this request already, and take the answer."""
        known, owed, _ = paid_before(request, ready.plan, 1, view, type(self))
        if known is None or owed is not None:
            return False
        self._remember(known)
        return True

    def _answer(self, view: Any) -> bool:
        if self.decision:
            return True
        keep_out_of_caches(view)
        return self.throttle_failure()

    def _settle(self, decision: Decision, ready: _Ready, request: Any, view: Any) -> bool:
        self._remember(decision)
        passes = enter(decision, ready.plan, ready.limiter, request, view, self.__class__)
        return passes or self.throttle_failure()

    def _remember(self, decision: Decision) -> None:
        self.decision = decision
        self.now = self.timer()
        self.__dict__.pop("history", None)  # of the request before

    def _follow(self, ready: _Ready, request: Any, view: Any) -> Generator[int, Decision, bool]:
        """Let the site's ``throttle_success`` say what is counted: yields costs, and is sent decisions."""
        looked = yield 0
        if not looked.allowed:
            return self._settle(looked, ready, request, view)
        self._remember(looked)
        before = len(self.history)
        if not self.throttle_success():
            return False
        added = len(self.history) - before
        return self._settle((yield added) if added > 0 else looked, ready, request, view)

    def _allow_by_history(self) -> bool:
        """Decide as stock does, where the site chose the clock or the cache."""
        self.decision = None
        self._rates = rates = tuple(self._whole_rate())
        self.now = self.timer()
        self.history = drf_history.live(self.cache.get(str(self.key), []), self.now, rates)
        if drf_history.fits(self.history, self.now, rates):
            return self.throttle_success()
        return self.throttle_failure()

    # What is worked out once

    def _ready(self) -> _Ready | None:
        """Return who decides and by what; None if stock's algorithm does."""
        limiters = site_limiters()
        limiter = limiters.of(self.cache)
        if limiter is None or self.timer is not _CLOCK:
            return None
        rate = self.rate
        made_of = (type(self), limiter, self.scope, rate, type(rate), self.num_requests, self.duration)
        ready: _Ready | None = limiters.ready.get(made_of)
        return limiters.keep(made_of, self._make_ready(limiter)) if ready is None else ready

    def _make_ready(self, limiter: RateLimiter) -> _Ready:
        rate, by_key = self.rate, True
        if isinstance(rate, PolicyRate) and self._means(Rate.parse(rate)):
            policy, by_key = rate.policy, type(self).get_cache_key not in _SAID_BY_POLICIES
        else:
            policy = policy_of_rate(limiter, self._name, self._whole_rate())
        hooked = type(self).throttle_success is not SimpleRateThrottle.throttle_success
        if not (policy.refund_on or is_for_logins(policy)):
            plan = limiter.plan(dataclasses.replace(policy, group=GROUP))
            return _Ready(limiter, plan, by_key, hooked, shared=False)
        # Guesses are counted once, whoever asks, and clearing a cache must not give an attacker new ones.
        auth.connect()
        return _Ready(limiter, limiter.plan(policy), by_key, hooked, shared=not by_key)

    @property
    def _name(self) -> str:
        return self.scope or type(self).__name__

    def _whole_rate(self) -> Rate:
        """Return what ``num_requests`` and ``duration`` say, and what else ``rate`` does, if it is theirs."""
        try:
            rate = Rate.parse(self.rate)
        except SettingsError:
            rate = None  # parse_rate is the site's own, and so is the grammar
        if rate is not None and self._means(rate):
            return rate
        try:
            return Rate(int(self.num_requests or 0), self.duration or 0)
        except SettingsError as error:
            raise ImproperlyConfigured(f"{type(self).__name__}: {error}") from error

    def _means(self, rate: Rate) -> bool:
        return (rate.limit, rate.window) == (self.num_requests, self.duration)


class AsyncSimpleRateThrottle(SimpleRateThrottle):
    """:class:`SimpleRateThrottle` for views that are coroutines."""

    async def allow_request(self, request: Any, view: Any) -> bool:  # type: ignore[override]
        if not self._is_for(request, view):
            return True
        ready = self._ready()
        if ready is None:
            return await sync_to_async(self._allow_by_history)()
        if ready.shared and self._is_decided(ready, request, view):
            return self._answer(view)
        identity = self._identity(ready, request)
        if ready.hooked:
            return await _adriven(self._follow(ready, request, view), ready, identity)
        decision = await ready.limiter.adecide(ready.plan, ready.plan.tags(identity), 1)
        return self._settle(decision, ready, request, view)


def _driven(talk: Generator[int, Decision, bool], ready: _Ready, identity: Identity) -> bool:
    """Ask the limiter what ``talk`` wants to know: to charge a cost, or with 0 to look. Return its answer."""
    limiter, policy = ready.limiter, ready.plan.policy
    try:
        cost = next(talk)
        while True:
            found = limiter.hit(policy, identity, cost) if cost else limiter.peek(policy, identity)
            cost = talk.send(found)
    except StopIteration as done:
        return bool(done.value)


async def _adriven(talk: Generator[int, Decision, bool], ready: _Ready, identity: Identity) -> bool:
    limiter, policy = ready.limiter, ready.plan.policy
    try:
        cost = next(talk)
        while True:
            found = limiter.ahit(policy, identity, cost) if cost else limiter.apeek(policy, identity)
            cost = talk.send(await found)
    except StopIteration as done:
        return bool(done.value)


# --- whom they are for ----------------------------------------------------------------------------------


class AnonRateThrottle(SimpleRateThrottle, stock.AnonRateThrottle):
    """Stock's ``AnonRateThrottle``: who is not logged in, by network."""


class UserRateThrottle(SimpleRateThrottle, stock.UserRateThrottle):
    """Stock's ``UserRateThrottle``: users, and by network who is not logged in."""


class ScopedRateThrottle(SimpleRateThrottle, stock.ScopedRateThrottle):
    """Stock's ``ScopedRateThrottle``: by the ``throttle_scope`` of the view.

    The scopes ``chat``, ``auth``, ``upload`` and ``search`` need no further setting.
    """

    def _is_for(self, request: Any, view: Any) -> bool:
        return self._has_scope(view) and super()._is_for(request, view)

    def policy_for(self, view: Any, method: str) -> Policy | None:
        return super().policy_for(view, method) if self._has_scope(view) else None

    def _has_scope(self, view: Any) -> bool:
        self.scope = getattr(view, self.scope_attr, None)
        if not self.scope:
            return False
        self.rate = self.get_rate()
        self.num_requests, self.duration = self.parse_rate(self.rate)
        return True


class ChatRateThrottle(UserRateThrottle):
    """20 a minute for each user, unless settings say otherwise of ``chat``."""

    scope = "chat"


class UploadRateThrottle(UserRateThrottle):
    """5 a minute for each user, unless settings say otherwise of ``upload``."""

    scope = "upload"


class SearchRateThrottle(UserRateThrottle):
    """30 a minute for each user, unless settings say otherwise of ``search``."""

    scope = "search"


class AuthRateThrottle(SimpleRateThrottle):
    """Logins, by the policy ``auth``: 5 in 15 minutes for a network and an account, and two more limits.

    Counts together with routes and decorators of that policy, and once with them. What cannot be a guess is
    not counted: a method that the view does not have, and a GET that carries nothing. Responses tell
    ``Retry-After`` and nothing else. With :class:`RefundOnSuccess` on the view, who knew the password gets
    back what he paid. A rate in DEFAULT_THROTTLE_RATES is for each network, and is all.
    """

    scope = "auth"

    def _is_for(self, request: Any, view: Any) -> bool:
        return can_carry_guess(request, view) and super()._is_for(request, view)

    def get_cache_key(self, request: Any, view: Any) -> str | None:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}


_SAID_BY_POLICIES: Final = (
    stock.AnonRateThrottle.get_cache_key,
    stock.UserRateThrottle.get_cache_key,
    stock.ScopedRateThrottle.get_cache_key,
    AuthRateThrottle.get_cache_key,
)
"""What says no more than the keys of a policy do, and often less."""


class AsyncAnonRateThrottle(AsyncSimpleRateThrottle, AnonRateThrottle):
    """:class:`AnonRateThrottle` for views that are coroutines."""


class AsyncUserRateThrottle(AsyncSimpleRateThrottle, UserRateThrottle):
    """:class:`UserRateThrottle` for views that are coroutines."""


class AsyncScopedRateThrottle(AsyncSimpleRateThrottle, ScopedRateThrottle):
    """:class:`ScopedRateThrottle` for views that are coroutines."""


class AsyncChatRateThrottle(AsyncSimpleRateThrottle, ChatRateThrottle):
    """:class:`ChatRateThrottle` for views that are coroutines."""


class AsyncUploadRateThrottle(AsyncSimpleRateThrottle, UploadRateThrottle):
    """:class:`UploadRateThrottle` for views that are coroutines."""


class AsyncSearchRateThrottle(AsyncSimpleRateThrottle, SearchRateThrottle):
    """:class:`SearchRateThrottle` for views that are coroutines."""


class AsyncAuthRateThrottle(AsyncSimpleRateThrottle, AuthRateThrottle):
    """:class:`AuthRateThrottle` for views that are coroutines."""
