"""ThrottleMiddleware: limits by route, before anything of a request costs anything.

What DRF's throttles never see is limited too: DRF authenticates first, so requests with a wrong token end
as a 401 before they are counted. Sync and async; under ASGI without a thread.

A route locks nobody out of his account: what only a login's limit for the account denies goes on to the view,
which asks :func:`~redis_infra.throttling.auth.needs_step_up`.

Reads ``REDIS_INFRA["THROTTLE"]["ROUTES"]``; :mod:`redis_infra.throttling.routes` says how they are written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from redis_infra.throttling import auth
from redis_infra.throttling.charges import acharge, charge
from redis_infra.throttling.limiter import RateLimiter, default_limiter
from redis_infra.throttling.plans import Plan
from redis_infra.throttling.responses import Responder, afinish, finish, load_responder, refuse
from redis_infra.throttling.routes import Route, find_route, parse_routes, view_name_of

__all__ = ["ThrottleMiddleware"]

GetResponse: TypeAlias = Callable[[HttpRequest], Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The routes of the site's settings, ready."""

    limiter: RateLimiter
    routes: tuple[Route, ...]
    plans: Mapping[str, Plan]
    """By the text of their routes; those that are exempt have none."""
    respond: Responder

    @classmethod
    def of(cls, limiter: RateLimiter) -> Table:
        throttle = limiter.throttle
        routes = parse_routes(throttle, limiter.policies)
        respond = load_responder(throttle.response, "REDIS_INFRA['THROTTLE']['RESPONSE']")
        plans = {each.text: limiter.plan(each.policy) for each in routes if each.policy is not None}
        return cls(limiter, routes, plans, respond)

    def plan(self, request: Any, view_name: Callable[[], str | None]) -> Plan | None:
        """Return what a request is to be charged by, None if by nothing."""
        route = find_route(self.routes, request.method, request.path_info, view_name)
        return None if route is None else self.plans.get(route.text)


class ThrottleMiddleware:
    """Charge each request to the first route that matches, and turn away what does not fit.

    Put it as far up as what must also see a 429 allows: below SecurityMiddleware and CORS, above sessions.
    A route's policy that goes by user has to be below AuthenticationMiddleware, or it goes by address.

    Raises:
        SettingsError: the settings are wrong; when the site starts.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._table = Table.of(default_limiter())
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        # One of both: Django would run a plain one in a thread.
        self.process_view: Callable[..., Any] = self._aprocess_view if self._is_async else self._process_view
        auth.connect()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._acall(request)
        response = self._enter(request, self._asked(request)) or self.get_response(request)
        finish(request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        response = await self._aenter(request, self._asked(request)) or await self.get_response(request)
        await afinish(request, response)
        return response

    def _process_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        return self._enter(request, self._asked_again(request))

    async def _aprocess_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        return await self._aenter(request, self._asked_again(request))

    def _asked(self, request: Any) -> Plan | None:
        return self._current().plan(request, lambda: view_name_of(request))

    def _asked_again(self, request: Any) -> Plan | None:
        """Look again when Django has found the view, by what it found.

        A middleware in between may have chosen another URLconf, path or method. A policy that was charged
        is not charged again.
        """
        return self._current().plan(request, lambda: request.resolver_match.view_name)

    def _current(self) -> Table:
        limiter = default_limiter()
        if self._table.limiter is not limiter:  # settings have changed (tests)
            self._table = Table.of(limiter)
        return self._table

    def _enter(self, request: Any, plan: Plan | None) -> HttpResponse | None:
        """Return None if the request may go on, else the response."""
        if plan is None:
            return None
        limiter = self._table.limiter
        decision = charge(request, limiter, plan)
        if not decision and auth.lets_by(request, decision):
            decision = charge(request, limiter, auth.without_accounts(plan))
        return None if decision else refuse(request, decision, self._table.respond)

    async def _aenter(self, request: Any, plan: Plan | None) -> HttpResponse | None:
        if plan is None:
            return None
        limiter = self._table.limiter
        decision = await acharge(request, limiter, plan)
        if not decision and auth.lets_by(request, decision):
            decision = await acharge(request, limiter, auth.without_accounts(plan))
        return None if decision else refuse(request, decision, self._table.respond)
