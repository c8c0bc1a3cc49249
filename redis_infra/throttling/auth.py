"""Logins: paid for before the password is looked at, given back when it was right.

Django's signals tell who logged in and who failed; nothing is guessed from a response, since the page of a
login that failed is a 200. :func:`connect` listens to them; importing this module does not.

What was paid before covers one failure. Each further one of the same request (a batch, GraphQL) is charged
when it has happened, to the name that ``authenticate()`` was given; and so is each of a login that nobody
limits (Basic authentication, another form), but to the account alone: an address may be many people's, and
one robot with an old password must not lock the others out.

A limit for the account alone, from any address, would let anybody lock anybody out. Where only that one
denies, :func:`needs_step_up` says so, and the site asks for a second factor or a captcha instead. A name that
cannot be read is an account that may be limited already: it needs a step-up always, and where a view cannot
ask for one, nobody is let by for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis_infra.conf import username_field
from redis_infra.throttling.charges import (
    LOGINS,
    arefund,
    book_of,
    is_for_logins,
    let_forks_spend,
    plan_of,
    refund,
)
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.identity import Key, Part
from redis_infra.throttling.joint import JointPlan
from redis_infra.throttling.limiter import RateLimiter, default_limiter
from redis_infra.throttling.plans import Plan, Tag, tag_of
from redis_infra.throttling.policies import Policy
from redis_infra.throttling.sent import UNREAD, text_of

__all__ = ["arefund", "connect", "needs_step_up", "refund"]


def connect() -> None:
    """Listen to ``user_logged_in`` and ``user_login_failed``; again is harmless."""
    from django.contrib.auth.signals import user_logged_in, user_login_failed

    user_logged_in.connect(_give_back, dispatch_uid="redis_infra.throttling.auth")
    user_login_failed.connect(_count_failure, dispatch_uid="redis_infra.throttling.auth")
    let_forks_spend()


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
    if not paid:
        _charge_account(request, credentials or {})
    for plan, limiter in paid.items():
        keys = _keys_said(plan.policy, credentials or {})
        tags = plan.tags(tuple([key.of(request) for key in keys]))
        cover = book.spend(plan)
        covered = cover.decision.charged[1] if cover is not None and cover.decision.charged else ()
        _charge(limiter, plan, tags, [at for at, tag in enumerate(tags) if tag not in covered[at : at + 1]])


def _charge_account(request: Any, credentials: Mapping[str, Any]) -> None:
    """Charge a failure that no decorator, no route and no throttle covers to the account that was tried.

    Not to the address: nobody is turned away there anyway, so that it would spare no guess, and who shares
    the address would be turned away where he logs in. Hence to nothing either where no account is known.
    """
    limiter = default_limiter()
    policy = limiter.policies.get(LOGINS)
    if policy is None:
        return
    plan = limiter.plan(policy)
    keys = _keys_said(policy, credentials)
    tags = plan.tags(tuple([key.of(request) for key in keys]))
    _charge(limiter, plan, tags, [at for at, key in enumerate(keys) if _names_account(key, request)])


def _names_account(key: Key, request: Any) -> bool:
    """Return whether a key asks for an account, beside other things or not, and the request names it."""
    accounts = [part for part in key.parts if _is_said_by_client(part.name)]
    # Neither the network, which stands in for a name that is not there, nor what could not be read.
    named = [part.of(request).startswith((f"{part.kind}:", f"{part.kind}#")) for part in accounts]
    return bool(named) and all(named)


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


def _keys_said(policy: Policy, credentials: Mapping[str, Any]) -> list[Key]:
    """Return whom a failure is charged to: keys that ask for a name know that which was tried."""
    return [
        dataclasses.replace(key, parts=tuple([_said(part, credentials) for part in key.parts]))
        for key in policy.keys
    ]


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

    Also true for a request that passed and whose account could not be read (a body that is too long to be
    looked into, or can be read in two ways): the limit of the account that it means may deny.
    """
    if isinstance(subject, Decision):
        return _denies_accounts_alone(subject)
    book = book_of(subject)
    decision = book.decision
    if book.aside or decision is None or not decision.allowed:
        return bool(book.aside) or (decision is not None and _denies_accounts_alone(decision))
    return any(_is_for_unread(each.decision, subject) for each in book.charges)


def lets_by(request: Any, decision: Decision) -> bool:
    """Set a denial of a login aside that a route must not insist on; return whether that was done.

    A route cannot ask for more, and the view behind it can. Not where nothing is left that limits guessing;
    and not where the name could not be read, as that of a login form can: not every view asks, and what is
    behind such a name would be guesses at an account beside those that its own limits let through.
    """
    plan = plan_of(decision)
    if plan is None or not is_for_logins(plan.policy) or not needs_step_up(decision):
        return False
    if not without_accounts(plan).count or _is_for_unread(decision, request):
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
    return all(_is_said_by_client(part) for part in key.name.split("+"))


def _is_said_by_client(part: str) -> bool:
    return part == "username" or part.startswith("field:")


def _is_for_unread(decision: Decision, request: Any) -> bool:
    """Return whether a login was charged to an account that could not be read."""
    plan = plan_of(decision)
    if plan is None or not is_for_logins(plan.policy) or decision.charged is None:
        return False
    pairs = zip(plan.policy.keys, decision.charged[1], strict=True)
    return any(_is_unread(key, tag, request) for key, tag in pairs if _is_account(key))


def _is_unread(key: Key, tag: Tag, request: Any) -> bool:
    if len(key.parts) == 1:
        return tag == tag_of(key.parts[0].unread)
    # Of several parts the others may be known. What was read when it was charged is kept by Django's request;
    # that of Django REST framework may have been parsed since.
    request = getattr(request, "_request", request)
    return any(part.read(request) is UNREAD for part in key.parts)


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
