"""Three headers: what a page may load, where what it shows came from, and how a limit decided."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from example_project.relay import demo, limits, trace

GetResponse = Callable[[HttpRequest], HttpResponse]

POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
)


class ContentSecurityPolicy:
    """Allow nothing but the site's own files: no inline script or style anywhere."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response


class TellsDecision:
    """Say in ``X-Relay-Decision`` what a limit decided, and who did: for the Limits page and the tour.

    Only while a demo runs or DEBUG is on. A site tells less: ``RateLimit``, and of logins nothing.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        decision = getattr(request, "throttle_decision", None)
        if decision is not None and (demo.current() or settings.DEBUG):
            response.headers["X-Relay-Decision"] = json.dumps(limits.told(decision))
        return response


class ServedFrom:
    """Say in ``Server-Timing`` which operations Redis, the process and the database answered.

    Browsers show that header in their network panel; ``demo --check`` reads it.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with trace.watching(request.path) as operations:
            request.cache_operations = operations  # type: ignore[attr-defined]
            response = self.get_response(request)
        if operations:
            response.headers["Server-Timing"] = server_timing(operations)
        return response


def server_timing(operations: Iterable[trace.Operation]) -> str:
    """Write operations as a Server-Timing header: milliseconds and their number for each source."""
    by_source: dict[trace.Source, list[float]] = defaultdict(list)
    for operation in operations:
        by_source[operation.source].append(operation.seconds * 1000)
    return ", ".join(
        f'{source};dur={sum(times):.2f};desc="{len(times)}"' for source, times in sorted(by_source.items())
    )
