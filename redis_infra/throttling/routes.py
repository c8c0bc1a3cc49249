"""Routes: which requests a policy is for, told by method and path or by the view that answers.

::

    "POST /api/auth/": "auth"         # method and path prefix
    "GET,POST =/search/": "30/min"    # several methods, this path exactly, a rate
    "^/api/(a|b)/": "api"             # a regular expression
    "view:shop:checkout": "checkout"  # what reverse() takes, wherever the URLconf puts it
    "/health/": None                  # exempt

A path is taken with a format suffix of Django REST framework too, ``/search.json``; by a regular expression
only if that says so. The first that matches decides. Paths are ``request.path_info``: without the script's
prefix, decoded, as Django's resolver sees them. Knows nothing of limits or responses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.urls import Resolver404, get_resolver
from django.urls.resolvers import URLPattern, URLResolver

from redis_infra.conf import Report, ThrottleSettings, did_you_mean
from redis_infra.conf.schema import raise_error
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.policies import Policy, make_policy
from redis_infra.throttling.rates import Rate

__all__ = ["Route", "check_views", "find_route", "parse_methods", "parse_routes", "view_name_of"]

_WHERE: Final = "REDIS_INFRA['THROTTLE']['ROUTES']"
_METHODS: Final = frozenset(
    # RFC 9110, PATCH, QUERY; and WebDAV, which few serve.
    "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT QUERY "
    "PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK REPORT SEARCH".split()
)
_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]+/?")
"""What DRF's routers and ``format_suffix_patterns`` let follow a path."""
_SPELLING: Final = re.compile(r"(?:([A-Za-z]+(?:,[A-Za-z]+)*)\s+)?(\S.*)", re.DOTALL)
_FORMS: Final = (
    "write '/prefix/', '=/exactly/this', '^/a/regular/(expression|one)' or 'view:app:name', "
    "with 'POST ' or 'GET,POST ' before it or not"
)


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table: requests, and the policy for them; None exempts them."""

    text: str
    methods: frozenset[str] | None
    """None is every method. ``GET`` has ``HEAD`` with it, which runs the same view."""
    target: str
    regex: re.Pattern[str] | None
    policy: Policy | None

    @property
    def view(self) -> str | None:
        """The name of the view, where the route is for one."""
        return self.target[5:] if self.target.startswith("view:") else None

    def takes(self, method: str | None) -> bool:
        return self.methods is None or method in self.methods

    def leads(self, path: str) -> bool:
        """Return whether the route is for this path."""
        target = self.target
        if self.regex is not None:
            return self.regex.search(path) is not None
        if target[0] == "=":
            return path == target[1:] or _is_suffixed(path, target[1:])
        # "/login/" is meant to be "/login" too, where a pattern makes the slash optional.
        return (
            path.startswith(target)
            or (target[-1] == "/" and path == target[:-1])
            or _is_suffixed(path, target)
        )

    def covers(self, later: Route) -> bool:
        """Return whether every request for ``later`` would have been for this one, as far as can be told."""
        if self.methods is not None and not (later.methods and later.methods <= self.methods):
            return False
        if self.target == later.target:
            return True
        if self.target[0] not in "/=":
            return False
        if later.target[0] == "=":
            return self.leads(later.target[1:])
        return self.target[0] == "/" and later.target.startswith(self.target)


def _is_suffixed(path: str, target: str) -> bool:
    """Return whether a path is a target and a format suffix: ``/things.json``, ``/things/.json``."""
    if "." not in path[path.rfind("/", 0, -1) :]:
        return False  # as nearly always
    stem = target.removesuffix("/")
    if not path.startswith(stem):
        return False
    return any(_SUFFIX.fullmatch(path, len(each)) for each in {stem, target} if path.startswith(each))


def find_route(
    routes: Iterable[Route], method: str | None, path: str, view_name: Callable[[], str | None]
) -> Route | None:
    """Return the first route for a request; ``view_name`` is called when it comes to a view, once at most."""
    resolved: list[str | None] = []
    for route in routes:
        if not route.takes(method):
            continue
        if route.view is None:
            if route.leads(path):
                return route
            continue
        if not resolved:
            resolved.append(view_name())
        if resolved[0] == route.view:
            return route
    return None


def view_name_of(request: Any) -> str | None:
    """Return the name of the view that Django is going to call, None if it will not find any."""
    try:
        match = get_resolver(getattr(request, "urlconf", None)).resolve(request.path_info)
    except Resolver404:
        return None
    return match.view_name


# --- reading --------------------------------------------------------------------------------------------


def parse_routes(
    throttle: ThrottleSettings, policies: Mapping[str, Policy], report: Report = raise_error
) -> tuple[Route, ...]:
    """Return ``REDIS_INFRA["THROTTLE"]["ROUTES"]`` in its order.

    Raises:
        SettingsError: a route, a policy or a rate is wrong, or a route can never be reached; the text names
            it. With a ``report`` that returns, the route is left out.
    """
    found: list[Route] = []
    for text, policy in throttle.routes:
        try:
            route = _parse(text, policy, throttle, policies)
            _expect_reachable(route, found)
        except SettingsError as error:
            report("value", SettingsError(f"{_WHERE}[{text!r}]: {error}"))
        else:
            found.append(route)
    return tuple(found)


def _parse(
    text: str, policy: str | None, throttle: ThrottleSettings, policies: Mapping[str, Policy]
) -> Route:
    spelled = _SPELLING.fullmatch(text.strip())
    if spelled is None:
        raise SettingsError(f"{text!r} is not a route; {_FORMS}")
    methods, target = spelled.groups()
    return Route(
        text,
        None if methods is None else parse_methods(methods),
        target,
        _regex(target),
        _policy(text, policy, throttle, policies),
    )


def _regex(target: str) -> re.Pattern[str] | None:
    """Return the compiled expression of a route that is one.

    Raises:
        SettingsError: the target is of no kind that there is.
    """
    if target.startswith("^"):
        if re.match(r"\^[\w.-]", target):
            raise SettingsError(
                f"{target!r} matches nothing, as paths begin with '/'; write '^/{target[1:]}'"
            )
        try:
            return re.compile(target)
        except re.error as error:
            raise SettingsError(f"{target!r} is not a regular expression: {error}") from error
    if not re.match(r"=?/|view:.", target):
        raise SettingsError(f"{target!r} is not a path; {_FORMS}")
    return None


def _policy(
    text: str, policy: str | None, throttle: ThrottleSettings, policies: Mapping[str, Policy]
) -> Policy | None:
    if policy is None:
        return None
    if policy in policies:
        return policies[policy]
    try:
        # Named by its route, so that two routes of the same rate count apart.
        return make_policy(text, Rate.parse(policy), on_outage=throttle.on_outage)
    except SettingsError as error:
        near = did_you_mean(policy, policies)
        raise SettingsError(f"{policy!r} is neither a policy{near} nor a rate: {error}") from None


def _expect_reachable(route: Route, before: Sequence[Route]) -> None:
    for earlier in before:
        if earlier.covers(route):
            raise SettingsError(f"is never reached: {earlier.text!r} above it takes its requests; move it up")


def parse_methods(methods: str | Iterable[str]) -> frozenset[str]:
    """Return the methods of ``"GET,POST"`` or ``["GET", "POST"]``; ``GET`` has ``HEAD`` with it.

    Raises:
        SettingsError: there is none, or one is none that HTTP has.
    """
    parts = methods.split(",") if isinstance(methods, str) else methods
    found = {str(part).strip().upper() for part in parts}
    if not found or not all(re.fullmatch(r"[A-Z]+", each) for each in found):
        raise SettingsError(f"{methods!r} is not a list of methods; write such as ['GET', 'POST']")
    for unknown in sorted(found - _METHODS):
        raise SettingsError(f"{unknown!r} is not a method of HTTP{did_you_mean(unknown, _METHODS)}")
    return frozenset(found | {"HEAD"}) if "GET" in found else frozenset(found)


# --- checking -------------------------------------------------------------------------------------------


def check_views(routes: Iterable[Route], report: Report) -> None:
    """Report routes for views that the site's URLconf does not have. Imports the URLconf."""
    named = [route for route in routes if route.view is not None]
    if not named:
        return
    known = frozenset(_view_names(get_resolver(), ()))
    for route in named:
        if route.view not in known:
            near = did_you_mean(route.view, known)
            text = f"{_WHERE}[{route.text!r}]: there is no such view{near}"
            report("value", SettingsError(text))


def _view_names(resolver: URLResolver, namespaces: tuple[str, ...]) -> Iterator[str]:
    """Yield every name of a view as :func:`view_name_of` would return it."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield ":".join((*namespaces, pattern.name or pattern.lookup_str))
        else:
            inner = (pattern.namespace,) if pattern.namespace else ()
            yield from _view_names(pattern, (*namespaces, *inner))
