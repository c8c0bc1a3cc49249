"""What a response of Django REST framework tells of throttles, and what a login that succeeded gets back.

Knows the book of a request and the headers of a view, and nothing of how was decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rest_framework.exceptions import APIException
from rest_framework.status import HTTP_503_SERVICE_UNAVAILABLE, is_success

from redis_infra.throttling.charges import Book, Charge, arefund, book_of, refund
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.headers import headers_for, retry_after_seconds
from redis_infra.throttling.joint import JointPlan
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.plans import Plan

__all__ = [
    "RefundOnSuccess",
    "ServiceUnavailable",
    "ViewCharge",
    "can_carry_guess",
    "enter",
    "keep_out_of_caches",
    "paid_before",
]

_SAFE: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_CARRIERS: Final = ("HTTP_AUTHORIZATION", "QUERY_STRING", "HTTP_TRANSFER_ENCODING")


class ServiceUnavailable(APIException):
    """Nobody can count, and the policy says that nobody passes then: 503 with ``Retry-After``."""

    status_code = HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "Requests cannot be counted at the moment. Try again later."
    default_code = "service_unavailable"

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        self.decision = decision
        self.wait = retry_after_seconds(decision)


@dataclass(slots=True, eq=False)
class ViewCharge(Charge):
    """A decision of a throttle, for one call of a view."""

    view: Any = None
    by: type | None = None
    """The class of the throttle."""

    def is_for(self, view: Any, by: type) -> bool:
        """Whether a throttle of another class has asked about this call, on the logs that all share."""
        return self.view is view and self.by is not by and not self.plan.policy.group


def enter(decision: Decision, plan: Plan, limiter: RateLimiter, request: Any, view: Any, by: type) -> bool:
    """Put a decision into the request's book, let the view's response tell of it, and return what it says.

    Raises:
        ServiceUnavailable: nobody could be asked, and that is a no.
    """
    if not decision.allowed:
        keep_out_of_caches(view)
        if decision.unavailable:
            raise ServiceUnavailable(decision)
    django_request = getattr(request, "_request", request)
    book = book_of(django_request)
    book.charges.append(ViewCharge(decision, plan, limiter, view, by))
    headers = getattr(view, "headers", None)
    if len(book.charges) == 1:
        django_request.throttle_decision = decision
        if isinstance(headers, dict):  # DRF copies them to the response, whatever becomes of it
            said = headers_for(decision, shown=plan.policy.headers, style=limiter.throttle.headers)
            said.pop("Retry-After", None)
            headers.update(said)
        return decision.allowed
    shown = _of_view(book, view)
    django_request.throttle_decision = shown[0].decision
    if isinstance(headers, dict):
        headers.update(_headers(shown))
    return decision.allowed


def keep_out_of_caches(view: Any) -> None:
    """Have the response to who is turned away say what Django's own says, before the throttle raises."""
    headers = getattr(view, "headers", None)
    if isinstance(headers, dict):
        headers.setdefault("Cache-Control", "no-store")


def can_carry_guess(request: Any, view: Any) -> bool:
    """Return whether a request could try a password or a token, wherever the view looks for one.

    By what arrived, and not by whether a login was seen to fail: a view may compare codes by itself. A view
    that is asked by a method that it does not have runs nothing.
    """
    method = request.method or "GET"
    served = getattr(view, "allowed_methods", ())
    # APIView itself answers OPTIONS and no more: it stands in for a view where a throttle is asked by hand.
    if method not in served and list(served) not in ([], ["OPTIONS"]):
        return False
    if method not in _SAFE:
        return True
    meta = request.META
    has_body = meta.get("CONTENT_LENGTH") not in (None, "", "0")
    return has_body or bool(getattr(view, "kwargs", None)) or any(meta.get(name) for name in _CARRIERS)


def _of_view(book: Book, view: Any) -> list[Charge]:
    """Return what was decided about this call of the view, the one that matters first.

    A test may call views with one request again and again; its book has the other calls too.
    """
    if len(book.charges) == 1:
        return book.charges
    call = Book()
    call.charges = [each for each in book.charges if not isinstance(each, ViewCharge) or each.view is view]
    return call.told


def _headers(shown: list[Charge]) -> dict[str, str]:
    """Return the headers of all decisions: what is left of the tightest, and the policies of all."""
    found: dict[str, str] = {}
    policies = []
    for each in shown:
        style = each.limiter.throttle.headers
        headers = headers_for(each.decision, shown=each.plan.policy.headers, style=style)
        if policy := headers.get("RateLimit-Policy"):
            policies.append(policy)
        found = {**headers, **found}
    if policies:
        found["RateLimit-Policy"] = ", ".join(policies)
    found.pop("Retry-After", None)  # DRF says that, after the longest wait of all its throttles
    return found


def paid_before(
    request: Any, plan: Plan, cost: int, view: Any, by: type
) -> tuple[Decision | None, Plan | None, int]:
    """Return what others decided by a plan's policies, and what is left to be asked.

    Others are middleware, decorators, and throttles of this view of another class than ``by``.
    """
    before = Book()
    book = book_of(request)
    before.charges = [
        each for each in book.charges if not isinstance(each, ViewCharge) or each.is_for(view, by)
    ]
    before.aside = book.aside
    known: Decision | None = None
    owed: list[Plan] = []
    most = 0
    for part in plan.parts if isinstance(plan, JointPlan) else (plan,):
        decision, rest = before.standing(part.policy, cost)
        if decision is None or rest:
            owed.append(part)
            most = max(most, rest)
        elif known is None or not decision.allowed:
            known = decision
    if known is not None and (not owed or not known.allowed):
        return known, None, 0
    if known is None:
        return None, plan, most
    return known, owed[0] if len(owed) == 1 else JointPlan(owed), most


class RefundOnSuccess:
    """Mixin for views whose policies say ``refund_on``: a response of 200 to 299 gives back what was charged.

    Before ``APIView`` among the bases, adrf's too. For views that answer nobody 2xx who failed; others call
    ``refund(request)`` where they know that all was right.
    """

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)  # type: ignore[misc]
        if is_success(response.status_code) and not getattr(self, "view_is_async", False):
            refund(request)
        return response

    async def async_dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        response = await super().async_dispatch(request, *args, **kwargs)  # type: ignore[misc]
        if is_success(response.status_code):
            await arefund(request)
        return response
