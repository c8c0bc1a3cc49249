"""What a client gets that was turned away, and the headers that tell how it stands.

Problem details (RFC 9457), or a page where a browser asks; or what the site's ``RESPONSE`` or a decorator's
``response`` makes. None of it says who was limited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template import TemplateDoesNotExist
from django.template.loader import get_template, render_to_string
from django.utils.html import format_html
from django.utils.module_loading import import_string

from redis_infra.exceptions import SettingsError
from redis_infra.throttling.charges import Book, Charge, arefund, book_of, plan_of, refund
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.headers import headers_for, retry_after_seconds

__all__ = ["Responder", "afinish", "finish", "load_responder", "problem_response", "refuse"]

Responder: TypeAlias = Callable[[HttpRequest, Decision], HttpResponse]
"""Makes the response to a request that was turned away."""

_REGISTRY: Final = "https://iana.org/assignments/http-problem-types"
_PROBLEMS: Final = {
    429: ("quota-exceeded", "Quota Exceeded"),
    503: ("temporary-reduced-capacity", "Temporary Reduced Capacity"),
}
"""Status -> the type and title that draft-ietf-httpapi-ratelimit-headers registers."""
_HEADINGS: Final = {429: "Too many requests", 503: "Not available for the moment"}
# Without style or script: there is no Content-Security-Policy that it could break.
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{heading}</title></head>
<body><h1>{heading}</h1><p>{detail}</p></body>
</html>
"""
_FORMS: Final = "write a function(request, decision), its dotted path, or a template (.html or .json)"
_TEMPLATES: Final = {".html": "text/html", ".json": "application/json"}


# --- who was turned away --------------------------------------------------------------------------------


def refuse(request: HttpRequest, decision: Decision, respond: Responder) -> HttpResponse:
    """Return the response to a request that was turned away; caches are told not to keep it."""
    response = respond(request, decision)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def problem_response(request: HttpRequest, decision: Decision) -> HttpResponse:
    """Return a page where the client prefers HTML, else problem details as JSON.

    The page is the site's template ``429.html`` (``503.html`` while nobody can count), if there is one.
    """
    if _prefers_html(request):
        return HttpResponse(_page(request, decision), status=_status(decision))
    body = json.dumps(_problem(decision))
    return HttpResponse(body, status=_status(decision), content_type="application/problem+json")


def load_responder(spec: object, label: str) -> Responder:
    """Return what makes the response: ``spec`` is a callable, its dotted path, a template, or None.

    Raises:
        SettingsError: it is none of these, or there is no such thing; the text begins with ``label``.
    """
    if spec is None:
        return problem_response
    if callable(spec):
        return _checked(spec, label)
    if not isinstance(spec, str):
        raise SettingsError(f"{label}: {spec!r} is not a response; {_FORMS}")
    for ending, content_type in _TEMPLATES.items():
        if spec.endswith(ending):
            return _template(spec, content_type, label)
    try:
        return _checked(import_string(spec), label)
    except ImportError as error:
        raise SettingsError(f"{label}: {spec!r} cannot be imported ({error}); {_FORMS}") from error


def _checked(respond: Any, label: str) -> Responder:
    if not callable(respond) or iscoroutinefunction(respond):
        # Sync views need it too, and it has nothing to wait for.
        raise SettingsError(f"{label}: {respond!r} is not a plain function of (request, decision); {_FORMS}")
    return respond  # type: ignore[no-any-return]


def _template(name: str, content_type: str, label: str) -> Responder:
    try:
        get_template(name)
    except TemplateDoesNotExist as error:
        raise SettingsError(f"{label}: there is no template {name!r}") from error

    def respond(request: HttpRequest, decision: Decision) -> HttpResponse:
        body = render_to_string(name, _context(request, decision))
        return HttpResponse(body, status=_status(decision), content_type=content_type)

    return respond


def _page(request: HttpRequest, decision: Decision) -> str:
    status = _status(decision)
    try:
        return render_to_string(f"{status}.html", _context(request, decision))
    except TemplateDoesNotExist:
        return format_html(_PAGE, heading=_HEADINGS[status], detail=_detail(decision))


def _context(request: HttpRequest, decision: Decision) -> dict[str, Any]:
    # As a variable, so that no context processor runs: they ask the database, of which a flood is to be kept
    # away, and expect request.user, which is not there yet in front of AuthenticationMiddleware.
    return {
        "request": request,
        "decision": decision,
        "status": _status(decision),
        "detail": _detail(decision),
        "retry_after": retry_after_seconds(decision),
    }


def _problem(decision: Decision) -> dict[str, Any]:
    status = _status(decision)
    kind, title = _PROBLEMS[status]
    problem = {"type": f"{_REGISTRY}#{kind}", "title": title, "status": status, "detail": _detail(decision)}
    plan = plan_of(decision)
    if plan is not None and plan.policy.headers:
        violated = [state.name for state in decision.limits if state.retry_after != 0]
        problem["violated-policies"] = violated or [decision.policy]
    return problem


def _status(decision: Decision) -> int:
    return 503 if decision.unavailable else 429


def _detail(decision: Decision) -> str:
    seconds = retry_after_seconds(decision)
    if seconds is None:
        return "This request asks for more than is ever allowed at once."
    why = "Requests cannot be counted at the moment. " if decision.unavailable else ""
    return f"{why}Try again in {_wait(seconds)}."


def _wait(seconds: int) -> str:
    """Return a wait as people say it, rounded up."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{math.ceil(seconds / length)} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def _prefers_html(request: HttpRequest) -> bool:
    try:
        # JSON first: it is what a client gets that takes anything.
        preferred = request.get_preferred_type(["application/problem+json", "application/json", "text/html"])
    except ValueError:  # Django cannot read that header
        return False
    return preferred == "text/html"


# --- every response -------------------------------------------------------------------------------------


def finish(request: HttpRequest, response: Any) -> None:
    """Give back what the response says is to be given back, and let it tell how the client stands."""
    book = book_of(request)
    if _is_success(response):
        for name in _refunds_by_status(book):
            refund(request, name)
    _tell(book, response)


async def afinish(request: HttpRequest, response: Any) -> None:
    """:func:`finish` in the running event loop."""
    book = book_of(request)
    if _is_success(response):
        for name in _refunds_by_status(book):
            await arefund(request, name)
    _tell(book, response)


def _is_success(response: Any) -> bool:
    return 200 <= getattr(response, "status_code", 0) < 300


def _refunds_by_status(book: Book) -> Iterable[str]:
    # "success" is not among them: the page of a login that failed is a 200 (django.contrib.auth's is).
    return [
        each.plan.name
        for each in book.charges
        if each.plan.policy.refund_on == "2xx" and each not in book.spent
    ]


def _tell(book: Book, response: Any) -> None:
    """Set the headers of all decisions: what is left of the tightest, and the policies of all."""
    if not isinstance(response, HttpResponseBase):
        return  # Django says better what is wrong with it
    there = response.headers.get("RateLimit")
    if there is not None and all(_headers(each).get("RateLimit") != there for each in book.charges):
        return  # the view's own
    policies: list[str] = []
    found: dict[str, str] = {}
    for each in book.told:
        headers = _headers(each)
        if policy := headers.pop("RateLimit-Policy", ""):
            policies.append(policy)
        found = {**headers, **found}
    if policies:
        found["RateLimit-Policy"] = ", ".join(policies)
    if "Retry-After" in response.headers:
        found.pop("Retry-After", None)
    for name, value in found.items():
        response.headers[name] = value


def _headers(each: Charge) -> dict[str, str]:
    return headers_for(each.decision, shown=each.plan.policy.headers, style=each.limiter.throttle.headers)
