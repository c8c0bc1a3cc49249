"""What a request was charged: the book that middleware, decorators and the hooks of the login share.

One book a request. So a policy is charged once however many ask for it, the response tells of all of them,
and a login that succeeded gets back what it paid. Knows nothing of responses.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.utils.functional import SimpleLazyObject

from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.plans import Plan
from redis_infra.throttling.policies import Policy
from redis_infra.throttling.rates import MOST

__all__ = [
    "LOGINS",
    "Book",
    "Charge",
    "acharge",
    "arefund",
    "book_of",
    "charge",
    "decision_of",
    "is_for_logins",
    "let_forks_spend",
    "plan_of",
    "refund",
]

LOGINS: Final = "auth"
"""The policy that is for logins whatever it says."""
_ATTRIBUTE: Final = "_throttle_book"


@dataclass(slots=True, eq=False)
class Charge:
    """One decision about a request, and who made it."""

    decision: Decision
    plan: Plan
    limiter: RateLimiter


class Book:
    """What one request was charged so far. Belongs to whoever serves the request: one thread or task.

    A view may try passwords in threads of its own, so that what a charge pays for is told one at a time.
    """

    __slots__ = ("aside", "charges", "refunded", "spent")

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.refunded: list[Charge] = []
        self.spent: list[Charge] = []
        """What paid for logins that failed: a charge once for each of them."""
        self.aside: list[Charge] = []
        """Denials with which the request goes on, to prove more than it has to otherwise."""

    @property
    def told(self) -> list[Charge]:
        """What the response tells of, the one that matters first: a denial, else that with the least left.

        Of each policy the last.
        """
        if len(self.charges) == 1:  # as nearly always
            return self.charges
        last = {(each.plan.name, each.plan.policy.limits): each for each in self.charges}
        return sorted(last.values(), key=_tightness)

    @property
    def decision(self) -> Decision | None:
        """The decision that matters to the client."""
        told = self.told
        return told[0].decision if told else None

    def standing(self, policy: Policy, cost: int) -> tuple[Decision | None, int]:
        """Return what was decided by this policy already, and what is left to pay of ``cost``."""
        for each in self.aside:
            if _are_same(each.plan.policy, policy):
                return each.decision, 0
        decisions = [each.decision for each in self.charges if _are_same(each.plan.policy, policy)]
        if not decisions:
            return None, cost
        paid = sum(each.cost for each in decisions if each.allowed)
        return decisions[-1], 0 if not decisions[-1].allowed else max(0, cost - paid)

    def step_up(self, denial: Decision) -> None:
        """Set a denial aside: the request goes on, to prove more than it has to otherwise."""
        self.aside += [each for each in self.charges if each.decision is denial]
        self.charges = [each for each in self.charges if each.decision is not denial]

    def spend(self, plan: Plan) -> Charge | None:
        """Return the charge that paid for one more login that fails, None if all of them are used up."""
        with _spending:
            for each in self.charges:
                is_left = each.decision.allowed and self.spent.count(each) < each.decision.cost
                if each.plan is plan and is_left and each not in self.refunded:
                    self.spent.append(each)
                    return each
        return None

    def refundable(self, name: str | None = None) -> list[Charge]:
        """Return what may be given back, each once: of the policy ``name``, or of all that refund at all.

        What paid for a login that failed is given back only by name: the view knows why.
        """
        with _spending:
            found = [
                each
                for each in self.charges
                if each.decision.allowed and each not in self.refunded and self._is_meant(each, name)
            ]
            self.refunded += found
        return found

    def _is_meant(self, each: Charge, name: str | None) -> bool:
        if name is None:
            return each.plan.policy.refund_on is not None and each not in self.spent
        return each.plan.name == name


# One for all books, which are made with every request: it is held for a microsecond, and by logins only.
_spending = threading.Lock()
_has_fork_hook = False


def let_forks_spend() -> None:
    """See to it that no child inherits the lock while a thread of its parent holds it; again is harmless."""
    global _has_fork_hook
    if not _has_fork_hook and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _has_fork_hook = True


def _after_fork() -> None:
    global _spending
    _spending = threading.Lock()


def _are_same(one: Policy, other: Policy) -> bool:
    # Two decorators of one name and rate are two objects.
    return one is other or (one.name == other.name and one.limits == other.limits)


def is_for_logins(policy: Policy) -> bool:
    """Return whether a policy pays for guesses at passwords."""
    return policy.refund_on == "success" or policy.name == LOGINS


def _tightness(each: Charge) -> tuple[bool, int]:
    decision = each.decision
    return decision.allowed, decision.remaining if decision.numbers else MOST


def has_charges(request: Any) -> bool:
    """Return whether anything was decided about a request already; makes no book."""
    book: Book | None = getattr(getattr(request, "_request", request), _ATTRIBUTE, None)
    return book is not None and bool(book.charges)


def book_of(request: Any) -> Book:
    """Return the request's book, a new one if it has none; of a DRF request that of Django's below it."""
    request = getattr(request, "_request", request)
    book: Book | None = getattr(request, _ATTRIBUTE, None)
    if book is None:
        book = Book()
        setattr(request, _ATTRIBUTE, book)
    return book


def decision_of(request: Any) -> Decision | None:
    """Return ``request.throttle_decision``, of Django's requests and DRF's; None if nothing was decided.

    Of several decisions it is the one that matters to the client.
    """
    found = getattr(getattr(request, "_request", request), "throttle_decision", None)
    return found if isinstance(found, Decision) else None


def plan_of(decision: Decision) -> Plan | None:
    """Return the plan by which was decided."""
    return decision.terms if isinstance(decision.terms, Plan) else None


# --- charging -------------------------------------------------------------------------------------------


def charge(request: Any, limiter: RateLimiter, plan: Plan, cost: int = 1) -> Decision:
    """Charge a request by a plan of ``limiter``, and set ``request.throttle_decision``.

    A policy is charged once: who asks second pays what his ``cost`` is above what was paid, and otherwise
    gets the first one's decision.
    """
    known, owed = book_of(request).standing(plan.policy, cost)
    if known is not None and not owed:
        return known
    decision = limiter.decide(plan, plan.tags(plan.policy.identities(request)), owed)
    return _enter(request, Charge(decision, plan, limiter))


async def acharge(request: Any, limiter: RateLimiter, plan: Plan, cost: int = 1) -> Decision:
    """:func:`charge` in the running event loop."""
    known, owed = book_of(request).standing(plan.policy, cost)
    if known is not None and not owed:
        return known
    await _load(request, plan)
    decision = await limiter.adecide(plan, plan.tags(plan.policy.identities(request)), owed)
    return _enter(request, Charge(decision, plan, limiter))


def _enter(request: Any, made: Charge) -> Decision:
    book = book_of(request)
    book.charges.append(made)
    getattr(request, "_request", request).throttle_decision = book.decision
    return made.decision


@lru_cache(maxsize=1024)
def _parts_of(plan: Plan) -> frozenset[str]:
    return frozenset(part for key in plan.policy.keys for part in key.name.split("+"))


async def _load(request: Any, plan: Plan) -> None:
    """Load what the keys read: at its first use it asks the database, which Django refuses in a loop."""
    parts = _parts_of(plan)
    if "session" in parts and hasattr(request, "session"):
        await request.session.akeys()
    # Only as Django's own middleware left it: who put another user there knows him already.
    lazy = "user" in parts or "user_or_ip" in parts
    if lazy and isinstance(getattr(request, "user", None), SimpleLazyObject) and hasattr(request, "auser"):
        # Where request.user looks first (django.contrib.auth.middleware.get_user).
        request._cached_user = await request.auser()


# --- giving back ----------------------------------------------------------------------------------------


def refund(request: Any, policy: str | None = None) -> None:
    """Give back what a request was charged: by policies with ``refund_on``, or by the one that is named.

    Once each; what was denied was not charged. For what is only known by the view: a token that was right.
    Of a request in which Django saw a login fail (``user_login_failed``) that charge is given back only by
    name: a batch must not guess for free by being right once.
    """
    for each in book_of(request).refundable(policy):
        each.limiter.refund(each.decision)


async def arefund(request: Any, policy: str | None = None) -> None:
    """:func:`refund` in the running event loop."""
    for each in book_of(request).refundable(policy):
        await each.limiter.arefund(each.decision)
