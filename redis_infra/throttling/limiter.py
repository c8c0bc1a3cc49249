"""RateLimiter: one question, one command, one answer that holds.

Asks Redis with one EVALSHA for all limits of a policy. What becomes of a call that fails is decided by the
database's failover and circuits, like everybody's; only that the limiter waits less (``TIMEOUT``), and that
this short wait never votes. Knows nothing of requests: identities are text.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from redis_infra.conf import AliasSettings, Settings, did_you_mean, get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.instrumentation import ThrottleCounters
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.deny_cache import DenyCache
from redis_infra.throttling.host import monotonic_ms
from redis_infra.throttling.local import ProcessStore
from redis_infra.throttling.plans import Identity, Plan, Tag, plain_label, tag_of
from redis_infra.throttling.policies import Policy, load_policies, make_policy
from redis_infra.throttling.rates import Rate
from redis_infra.throttling.remote import RemoteStore, open_remote
from redis_infra.throttling.signals import throttled

__all__ = ["PolicyLike", "RateLimiter", "default_limiter", "denials", "forget_limiters"]

MOST_DENIALS: Final = 100
"""Policies that are told apart in ``denials``: rates that stand in code are policies too."""

PolicyLike: TypeAlias = str | Rate | Policy | Sequence["str | Rate"]
"""A policy's name or itself; or rates, as text or not, alone or several that have to hold together."""

MOST_PLANS: Final = 1024
_UNCOUNTED: Final = ThrottleCounters()
"""For looks: a peek is no request."""
_CERTAIN: Final = ("redis", "host")
"""Whose denials can be remembered; a second number of 0 says that no log was looked at."""


class RateLimiter:
    """Say whether one more fits, and charge it if it does.

    ::

        limiter = RateLimiter()
        limiter.hit("chat", "user:7")                       # a name from REDIS_INFRA["THROTTLE"]
        limiter.hit("100/2 hours;20/min", "tenant:acme")    # or rates
        limiter.hit("auth", {"ip": address, "username": name})

    Identities are normalised (width, case, spaces around them) and leave the process as keyed digests only.
    Opens nothing before the first question. Thread-safe, safe after ``fork`` and in any number of event
    loops: :meth:`ahit` and the other ``a`` twins are native coroutines on the same state.

    ``url`` is a Redis of its own; without one it is where ``REDIS_INFRA["THROTTLE"]`` and the other
    settings say. Without any, this process' memory counts, for itself.

    Raises:
        SettingsError: the settings are wrong.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        self._settings = settings if settings is not None else get_settings()
        self.throttle = self._settings.throttle
        self.policies: Mapping[str, Policy] = load_policies(self.throttle)
        self.counters = ThrottleCounters()
        self._alias = AliasSettings.for_throttle(self._settings, url=url)
        self._plans: dict[Any, Plan] = {}
        self._lock = threading.Lock()
        self._memory = ProcessStore()
        self._denials = DenyCache(monotonic_ms)
        self._remote: RemoteStore | None = None
        self._opened = False
        _register(self)

    # What people ask

    def hit(self, policy: PolicyLike, identity: Identity, cost: int = 1) -> Decision:
        """Charge ``cost`` to ``identity`` if it fits into every limit of ``policy``, to none otherwise.

        One command and at most ``TIMEOUT`` (100 ms). ``cost`` 0 only looks; a cost above a limit can never
        fit, which ``retry_after`` None says. Raises nothing because of Redis.

        Raises:
            SettingsError: there is no such policy, or identities do not match its limits.
            ValueError: ``cost`` is not a whole number from 0 up.
        """
        plan = self._plan(policy)
        whole = cost if type(cost) is int and cost >= 0 else _whole(cost)
        return self.decide(plan, plan.tags(identity), whole)

    async def ahit(self, policy: PolicyLike, identity: Identity, cost: int = 1) -> Decision:
        """:meth:`hit` in the running event loop."""
        plan = self._plan(policy)
        return await self.adecide(plan, plan.tags(identity), _whole(cost))

    def peek(self, policy: PolicyLike, identity: Identity) -> Decision:
        """Return how an identity stands, and charge nothing: allowed if one more would fit."""
        plan = self._plan(policy)
        return _peeked(self.decide(plan, plan.tags(identity), 0), plan)

    async def apeek(self, policy: PolicyLike, identity: Identity) -> Decision:
        """:meth:`peek` in the running event loop."""
        plan = self._plan(policy)
        return _peeked(await self.adecide(plan, plan.tags(identity), 0), plan)

    def reset(self, policy: PolicyLike, identity: Identity) -> bool:
        """Forget what an identity was charged; return whether there was anything that could be seen.

        In an outage it is forgotten here at once, and in Redis on return.
        """
        plan = self._plan(policy)
        tags = plan.tags(identity)
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            return self._memory.forget(plan.names(tags)) > 0
        return remote.forget(plan, tags)

    async def areset(self, policy: PolicyLike, identity: Identity) -> bool:
        """:meth:`reset` in the running event loop."""
        plan = self._plan(policy)
        tags = plan.tags(identity)
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            return self._memory.forget(plan.names(tags)) > 0
        return await remote.aforget(plan, tags)

    def forget_policy(self, name: str) -> int:
        """Forget all that was charged to a policy, by DRF's classes of that scope too; return how many logs.

        In an outage it is forgotten here at once and in Redis on return. Costs a scan of the database.
        """
        return self._forget_labels(plain_label(name), f"drf.{plain_label(name)}")

    def forget_group(self, group: str) -> int:
        """:meth:`forget_policy` for all policies of a group."""
        return self._forget_labels(f"{group}.")

    async def aforget_group(self, group: str) -> int:
        """:meth:`forget_group` in the running event loop."""
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            return self._memory.forget_where(lambda name: name.label.startswith(f"{group}."))
        return await remote.aforget_labels(self._settings.key_prefix, (f"{group}.",))

    def _forget_labels(self, *starts: str) -> int:
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            return self._memory.forget_where(lambda name: name.label.startswith(starts))
        return remote.forget_labels(self._settings.key_prefix, starts)

    def refund(
        self, policy: PolicyLike | Decision, identity: Identity | None = None, cost: int | None = None
    ) -> None:
        """Give back what was charged: ``refund(decision)``, or ``refund(policy, identity, cost)``.

        With the decision it is taken back exactly where it was charged, and once; without, from the oldest,
        so that nobody gains by it. What Redis cannot be told is not given back.
        """
        found = self._refundable(policy, identity, cost)
        if found is None:
            return
        plan, tags, amount, charged, source = found
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            self._memory.refund(plan.names(tags), plan.terms, amount, charged)
        else:
            remote.refund(plan, tags, amount, charged, source)

    async def arefund(
        self, policy: PolicyLike | Decision, identity: Identity | None = None, cost: int | None = None
    ) -> None:
        """:meth:`refund` in the running event loop."""
        found = self._refundable(policy, identity, cost)
        if found is None:
            return
        plan, tags, amount, charged, source = found
        self._denials.clear()
        remote = self._opened_remote()
        if remote is None:
            self._memory.refund(plan.names(tags), plan.terms, amount, charged)
        else:
            await remote.arefund(plan, tags, amount, charged, source)

    # The one decision

    def decide(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Decision:
        """:meth:`hit` for those who have a plan and tags already."""
        known = self._remembered(plan, tags, cost) if self._denials.replies else None
        if known is not None:
            return self._answer(plan, known, "cache", cost, tags)
        if not plan.count:
            return plan.unasked(True, cost)
        remote = self._remote if self._opened else self._opened_remote()
        if remote is None:
            here = self._memory.hit(plan.names(tags), plan.terms, cost)
            return self._answer(plan, here, "process", cost, tags)
        reply, source = remote.hit(plan, tags, cost)
        return self._answer(plan, reply, source, cost, tags)

    async def adecide(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Decision:
        """:meth:`decide` in the running event loop."""
        known = self._remembered(plan, tags, cost) if self._denials.replies else None
        if known is not None:
            return self._answer(plan, known, "cache", cost, tags)
        if not plan.count:
            return plan.unasked(True, cost)
        remote = self._remote if self._opened else self._opened_remote()
        if remote is None:
            here = self._memory.hit(plan.names(tags), plan.terms, cost)
            return self._answer(plan, here, "process", cost, tags)
        reply, source = await remote.ahit(plan, tags, cost)
        return self._answer(plan, reply, source, cost, tags)

    def _remembered(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> list[int] | None:
        """Return the denial that still holds; none does once somebody has forgotten a log by hand."""
        if self._remote is not None and self._remote.was_forgotten():
            self._denials.clear()
        return self._denials.get((plan, tags, cost))

    def _answer(
        self, plan: Plan, reply: Sequence[int] | None, source: str, cost: int, tags: tuple[Tag, ...]
    ) -> Decision:
        """Return the decision, count it, and tell whoever listens of a denial."""
        counters = self.counters if cost else _UNCOUNTED
        if source not in ("redis", "cache"):
            counters.local += 1
        if reply is None:
            decision = plan.unasked(plan.policy.on_outage == "allow", cost)
        else:
            decision = plan.decision(reply, source, cost, tags)
        if decision.allowed:
            counters.allowed += 1
            return decision
        counters.denied += 1
        # Here and not by the signal, which takes three microseconds that a flood would pay.
        name = plan.name if plan.name in denials or len(denials) < MOST_DENIALS else "other"
        denials[name] = denials.get(name, 0) + 1
        if source in _CERTAIN and reply is not None and reply[1]:
            self._denials.put((plan, tags, cost), reply)
        if throttled.receivers:
            identities = [tag.text.decode() for tag in tags]
            throttled.send_robust(
                sender=RateLimiter, policy=plan.name, identities=identities, decision=decision
            )
        return decision

    # Plans

    def plan(self, policy: PolicyLike) -> Plan:
        """Return what :meth:`decide` takes: a policy made ready, the same one each time."""
        return self._plan(policy)

    def _plan(self, policy: PolicyLike) -> Plan:
        try:
            return self._plans[policy]
        except (KeyError, TypeError):
            return self._make_plan(_known_kind(policy))

    def _make_plan(self, policy: Any) -> Plan:
        found = self._plans.get(policy)
        if found is not None:
            return found
        plan = Plan(self._policy(policy), self._settings.key_prefix)
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()  # rates made up at run time: as many as there are plans, ever
        return self._plans.setdefault(policy, plan)

    def _policy(self, policy: Any) -> Policy:
        if isinstance(policy, Policy):
            return policy
        if isinstance(policy, tuple):
            rates = [each for part in policy for each in Rate.parse(part)]
            return self._unnamed(rates)
        if isinstance(policy, Rate):
            return self._unnamed(list(policy))
        if policy in self.policies:
            return self.policies[policy]
        try:
            return self._unnamed(list(Rate.parse(policy)))
        except SettingsError as error:
            near = did_you_mean(policy, self.policies)
            raise SettingsError(f"{policy!r} is neither a policy{near} nor a rate: {error}") from None

    def _unnamed(self, rates: list[Rate]) -> Policy:
        rate = Rate(rates[0].limit, rates[0].window, fixed=rates[0].fixed, also=tuple(rates[1:]))
        return make_policy(str(rate), rate, on_outage=self.throttle.on_outage)

    def _refundable(
        self, policy: PolicyLike | Decision, identity: Identity | None, cost: int | None
    ) -> tuple[Plan, tuple[Tag, ...], int, int, str] | None:
        if isinstance(policy, Decision):
            if not policy.allowed or policy.charged is None:
                return None  # nothing was charged
            charged, tags, left = policy.charged
            amount = left if cost is None else min(left, _whole(cost))  # no more than was paid, and once
            if not amount:
                return None
            policy.charged[2] = left - amount
            return policy.terms, tags, amount, charged, policy.source  # type: ignore[return-value]  # a plan
        plan = self._plan(policy)
        if identity is None:
            raise ValueError("refund(policy, identity) needs an identity; or pass the decision alone")
        return plan, plan.tags(identity), _whole(1 if cost is None else cost), 0, ""

    # Where the logs are

    @property
    def remote(self) -> RemoteStore | None:
        """The Redis that keeps the logs; None where there is none and memory does."""
        return self._opened_remote()

    @property
    def memory(self) -> ProcessStore:
        """The logs of a process without Redis."""
        return self._memory

    def _opened_remote(self) -> RemoteStore | None:
        if not self._opened:
            with self._lock:
                if not self._opened:
                    self._remote = open_remote(self._alias, self.throttle, self._settings.key_prefix)
                    self._opened = True
        return self._remote

    def forget_denials(self) -> None:
        """Ask Redis again about whoever was denied."""
        self._denials.clear()


def _peeked(decision: Decision, plan: Plan) -> Decision:
    """Return what a look at the logs says of one more."""
    if decision.allowed and decision.numbers and 0 in decision.numbers[::3]:
        numbers = list(decision.numbers)
        for at in range(0, len(numbers), 3):
            if numbers[at] == 0:
                numbers[at + 2] = numbers[at + 1] or -1  # one more fits when the next piece of quota appears
        return Decision(False, decision.source, 0, plan, numbers)
    return decision


def _known_kind(policy: Any) -> Any:
    """Return a policy in a form that can be looked up."""
    if isinstance(policy, str | Rate | Policy):
        return policy
    is_several = isinstance(policy, Sequence) and not isinstance(policy, bytes)
    if not is_several or not policy or not all(isinstance(each, str | Rate) for each in policy):
        raise SettingsError(
            f"{policy!r} is not a policy; give the name of one, a rate such as '20/min', or several rates"
        )
    return tuple(policy)


def _whole(cost: int) -> int:
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 0:
        raise ValueError(f"cost {cost!r} is not a whole number from 0 up")
    return cost


denials: Final[dict[str, int]] = {}
"""How many were turned away in this process, by policy; beyond a hundred names, as ``other``."""

_limiters: weakref.WeakSet[RateLimiter] = weakref.WeakSet()
_has_fork_hook = False


def _register(limiter: RateLimiter) -> None:
    """See to it that no child inherits a lock that a thread of its parent held."""
    global _has_fork_hook
    _limiters.add(limiter)
    if not _has_fork_hook and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _has_fork_hook = True


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for limiter in list(_limiters):
        limiter._lock = threading.Lock()
        limiter._memory.after_fork()


_default: RateLimiter | None = None
_default_lock = threading.Lock()


def default_limiter() -> RateLimiter:
    """Return the limiter of the site's settings: one a process, made at the first call.

    Raises:
        SettingsError: the settings are wrong.
    """
    limiter = _default
    return limiter if limiter is not None else _make_default()


def _make_default() -> RateLimiter:
    global _default
    with _default_lock:
        if _default is None:
            _default = RateLimiter()
        return _default


def forget_limiters() -> None:
    """Make the default limiter anew at its next use: settings have changed (tests)."""
    global _default
    _default = None
    tag_of.cache_clear()  # digests are keyed with SECRET_KEY
