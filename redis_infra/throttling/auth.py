"""Logins: paid for before the password is looked at, given back when it was right.

Django's signals tell who logged in and who failed; nothing is guessed from a response, since the page of a
login that failed is a 200. :func:`connect` listens to them; importing this module does not.

A limit for the account alone, from any address, would let anybody lock anybody out. Where only that one
denies, :func:`needs_step_up` says so, and the site asks for a second factor or a captcha instead.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, Final

from redis_infra.throttling.charges import arefund, book_of, charge, plan_of, refund
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.identity import Key
from redis_infra.throttling.limiter import default_limiter
from redis_infra.throttling.plans import Plan

__all__ = ["arefund", "needs_step_up", "refund"]

POLICY: Final = "auth"
"""What failed logins are charged to that no decorator and no route covers."""


def connect() -> None:
    """Listen to ``user_logged_in`` and ``user_login_failed``; again is harmless."""
    from django.contrib.auth.signals import user_logged_in, user_login_failed

    user_logged_in.connect(_give_back, dispatch_uid="redis_infra.throttling.auth")
    user_login_failed.connect(_charge_failure, dispatch_uid="redis_infra.throttling.auth")


def _give_back(*, request: Any = None, **_: Any) -> None:
    # What this request paid and no more: who has an account must not be able to clear what he was charged
    # for guessing at others'.
    if request is not None:
        refund(request)


def _charge_failure(*, request: Any = None, **_: Any) -> None:
    """Charge a login that nobody did charge, so that it counts where the policy is asked next."""
    if request is None or _is_covered(request):
        return
    limiter = default_limiter()
    policy = limiter.policies.get(POLICY)
    if policy is not None:
        charge(request, limiter, limiter.plan(policy), told=False)


def _is_covered(request: Any) -> bool:
    policies = [each.plan.policy for each in book_of(request).charges]
    return any(policy.refund_on is not None or policy.name == POLICY for policy in policies)


# --- step-up --------------------------------------------------------------------------------------------


def needs_step_up(subject: Any) -> bool:
    """Return whether only limits for the account alone deny: ask for more than the password.

    ``subject`` is a decision, or a request: one that was let through with ``@ratelimit(..., step_up=...)``,
    or one that is being turned away (in a ``response`` of the site's).
    """
    if isinstance(subject, Decision):
        return _denies_accounts_alone(subject)
    book = book_of(subject)
    return book.needs_step_up or (book.decision is not None and _denies_accounts_alone(book.decision))


def _denies_accounts_alone(decision: Decision) -> bool:
    plan = plan_of(decision)
    if decision.allowed or plan is None or not decision.numbers:
        return False
    states = zip(decision.limits, plan.policy.limits, strict=True)
    return all(_is_account(limit.key) for state, limit in states if state.retry_after != 0)


def _is_account(key: Key) -> bool:
    """Return whether a key is what the client says of himself, and nothing of where he is."""
    return all(part == "username" or part.startswith("field:") for part in key.name.split("+"))


@lru_cache(maxsize=64)
def without_accounts(plan: Plan) -> Plan:
    """Return the plan without its limits for the account alone, on the same logs.

    Who is let through to a second factor pays these: otherwise he could try that as often as he likes.
    """
    limits = tuple(limit for limit in plan.policy.limits if not _is_account(limit.key))
    policy = dataclasses.replace(plan.policy, limits=limits)
    return Plan(policy, plan.prefix, together=plan.together)
