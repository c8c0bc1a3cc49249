"""Logins: paid for before the password is looked at, given back when it was right.

Django's signals tell who logged in and who failed; nothing is guessed from a response, since the page of a
login that failed is a 200. :func:`connect` listens to them; importing this module does not.

What was paid before covers one failure. Each further one of the same request (a batch, GraphQL), and each of
a login that nobody limits (Basic authentication, another form), is charged when it has happened, to the name
that ``authenticate()`` was given.

A limit for the account alone, from any address, would let anybody lock anybody out. Where only that one
denies, :func:`needs_step_up` says so, and the site asks for a second factor or a captcha instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis_infra.conf import username_field
from redis_infra.throttling.charges import LOGINS, arefund, book_of, is_for_logins, plan_of, refund
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.identity import Key, Part
from redis_infra.throttling.joint import JointPlan
from redis_infra.throttling.limiter import RateLimiter, default_limiter
from redis_infra.throttling.plans import Plan, Tag
from redis_infra.throttling.policies import Policy
from redis_infra.throttling.sent import text_of

__all__ = ["arefund", "connect", "needs_step_up", "refund"]


def connect() -> None:
    """Listen to ``user_logged_in`` and ``user_login_failed``; again is harmless."""
    from django.contrib.auth.signals import user_logged_in, user_login_failed

    user_logged_in.connect(_give_back, dispatch_uid="redis_infra.throttling.auth")
    user_login_failed.connect(_count_failure, dispatch_uid="redis_infra.throttling.auth")


def _give_back(*, request: Any = None, **_: Any) -> None:
    # What this request paid and no more: who has an account must not be able to clear what he was charged
    # for guessing at others'.
    if hasattr(request, "META"):
        refund(request)


# --- failures -------------------------------------------------------------------------------------------


def _count_failure(*, request: Any = None, credentials: Mapping[str, Any] | None = None, **_: Any) -> None:
    """Let what the request paid cover a login that failed; charge what is not covered by it.

    Backends get whatever ``authenticate()`` was given, which need not be a request.
    """
    if not hasattr(request, "META"):
        return
    book = book_of(request)
    paid = {each.plan: each.limiter for each in book.charges if is_for_logins(each.plan.policy)}
    for plan, limiter in (paid or _nobodys()).items():
        tags = plan.tags(_identities(plan.policy, request, credentials or {}))
        cover = book.spend(plan)
        covered = cover.decision.charged[1] if cover is not None and cover.decision.charged else ()
        _charge(limiter, plan, tags, [at for at, tag in enumerate(tags) if tag not in covered[at : at + 1]])


def _nobodys() -> dict[Plan, RateLimiter]:
    """Return by what logins are charged that no decorator, no route and no throttle covers."""
    limiter = default_limiter()
    policy = limiter.policies.get(LOGINS)
    return {} if policy is None else {limiter.plan(policy): limiter}


def _charge(limiter: RateLimiter, plan: Plan, tags: tuple[Tag, ...], places: Iterable[int]) -> None:
    """Charge what has happened to the limits at these places: where not all have room, to those that have."""
    wanted = frozenset(places)
    for part, first in _parts(plan):
        own = tuple(at for at in range(part.count) if first + at in wanted)
        if not own:
            continue
        asked = part_of(part, own)
        decision = limiter.decide(asked, tuple([tags[first + at] for at in own]), 1)
        if decision.allowed or not decision.numbers:
            continue
        room = tuple(at for at, state in zip(own, decision.limits, strict=True) if state.retry_after == 0)
        if room:
            limiter.decide(part_of(part, room), tuple([tags[first + at] for at in room]), 1)


def _parts(plan: Plan) -> Iterator[tuple[Plan, int]]:
    """Yield the plans that a plan is made of, and which of its limits is the first of each."""
    first = 0
    for part in plan.parts if isinstance(plan, JointPlan) else (plan,):
        yield part, first
        first += part.count


def _identities(policy: Policy, request: Any, credentials: Mapping[str, Any]) -> tuple[str, ...]:
    """Return whom a failure is charged to: where keys ask for a name, to that which was tried."""
    return tuple([_said_by(key, credentials).of(request) for key in policy.keys])


def _said_by(key: Key, credentials: Mapping[str, Any]) -> Key:
    return dataclasses.replace(key, parts=tuple([_said(part, credentials) for part in key.parts]))


def _said(part: Part, credentials: Mapping[str, Any]) -> Part:
    names = (username_field(), "username") if part.name == "username" else (part.name.partition("field:")[2],)
    found = [text for name in names if (text := text_of(credentials.get(name)))]
    # Django puts stars in place of what may be a secret: as a name they would be everybody's.
    if not found or not found[0].strip("*"):
        return part
    return _Said(part.name, part.kind, part.exact, value=found[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said(Part):
    """A part of a key whose value is known, whatever else the request has."""

    value: str

    def read(self, request: Any) -> str | None:
        return self.value


# --- step-up --------------------------------------------------------------------------------------------


def needs_step_up(subject: Any) -> bool:
    """Return whether only limits for the account alone deny: ask for more than the password.

    ``subject`` is a decision, or a request: one that was let through by a route or with
    ``@ratelimit(..., step_up=...)``, or one that is being turned away (in a ``response`` of the site's).
    """
    if isinstance(subject, Decision):
        return _denies_accounts_alone(subject)
    book = book_of(subject)
    return bool(book.aside) or (book.decision is not None and _denies_accounts_alone(book.decision))


def lets_by(request: Any, decision: Decision) -> bool:
    """Set a denial of a login aside that a route must not insist on; return whether that was done.

    A route cannot ask for more, and the view behind it can. Not where nothing is left that limits guessing.
    """
    plan = plan_of(decision)
    if plan is None or not is_for_logins(plan.policy) or not needs_step_up(decision):
        return False
    if not without_accounts(plan).count:
        return False
    book_of(request).step_up(decision)
    return True


def _denies_accounts_alone(decision: Decision) -> bool:
    plan = plan_of(decision)
    if decision.allowed or plan is None or not decision.numbers:
        return False
    states = zip(decision.limits, plan.policy.limits, strict=True)
    return all(_is_account(limit.key) for state, limit in states if state.retry_after != 0)


def _is_account(key: Key) -> bool:
    """Return whether a key is what the client says of himself, and nothing of where he is."""
    return all(part == "username" or part.startswith("field:") for part in key.name.split("+"))


def without_accounts(plan: Plan) -> Plan:
    """Return the plan without its limits for the account alone, on the same logs.

    Who is let through to a second factor pays these: otherwise he could try that as often as he likes.
    """
    places = [at for at, limit in enumerate(plan.policy.limits) if not _is_account(limit.key)]
    return part_of(plan, tuple(places))


@lru_cache(maxsize=64)
def part_of(plan: Plan, places: tuple[int, ...]) -> Plan:
    """Return a plan with only these of its limits, on the same logs."""
    if len(places) == plan.count:
        return plan
    limits = tuple([plan.policy.limits[at] for at in places])
    policy = dataclasses.replace(plan.policy, limits=limits)
    return Plan(policy, plan.prefix, together=plan.together)
