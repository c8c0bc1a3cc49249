"""The playground: take Redis away and watch the site not mind.

Looking is for those who may: while a demo runs, while DEBUG is on, and staff.
Acting is for visitors of a demo only, and only on a server that the demo started.
"""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from example_project.relay import demo, live
from example_project.relay.board import board as notice_board
from example_project.relay.trace import Source


@require_safe
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    """Show the state of the cache; the script on the page then follows it."""
    require_looking(request)
    shown = live.snapshot()
    local = Source.MEMORY if shown["state"] == "memory" else Source.FALLBACK
    context = {"live": shown, "local": local.value, "demo_runs": demo.current() is not None}
    return render(request, "relay/playground.html", context)


@require_safe
@never_cache
def state(request: HttpRequest) -> JsonResponse:
    """Return the state as JSON; with ``visit=1`` a visitor opens a page first."""
    require_looking(request)
    if request.GET.get("visit") == "1" and demo.current():
        live.visit()
    return JsonResponse(live.snapshot())


@require_POST
def power(request: HttpRequest) -> HttpResponse:
    """Stop, freeze or start the demo's own Redis."""
    running = demo.current()
    if running is None or not running.backing.owned:
        raise PermissionDenied("Only a server that the demo started may be stopped here")
    actions: dict[str, tuple[Callable[[], None], str]] = {
        "stop": (running.backing.stop, "Redis was killed."),
        "freeze": (running.backing.freeze, "Redis was frozen: it keeps its connections and says nothing."),
        "start": (running.backing.start, "Redis was started."),
    }
    return _act(request, actions)


@require_POST
def board(request: HttpRequest) -> HttpResponse:
    """Edit the notice board: with its copy in the cache written, or deleted."""
    if demo.current() is None:
        raise PermissionDenied("The notice board is edited in a demo only")
    actions: dict[str, tuple[Callable[[], None], str]] = {
        "write": (notice_board.write, "The notice board was edited, its cached copy written."),
        "delete": (notice_board.delete, "The notice board was edited, its cached copy deleted."),
    }
    return _act(request, actions)


def _act(request: HttpRequest, actions: dict[str, tuple[Callable[[], None], str]]) -> HttpResponse:
    """Do what the button says; answer the script with the new state, and a plain form with the page."""
    chosen = actions.get(request.POST.get("action", ""))
    if chosen is None:
        return HttpResponseBadRequest(f"action is one of: {', '.join(actions)}")
    act, said = chosen
    act()
    live.note(said)
    if "application/json" in request.headers.get("Accept", ""):
        return JsonResponse(live.snapshot())
    return redirect("playground")


def require_looking(request: HttpRequest) -> None:
    """Answer 404 to those who may not look."""
    # `is_staff` asks the database for the session; a demo and DEBUG answer without it.
    if not (demo.current() or settings.DEBUG or getattr(request.user, "is_staff", False)):
        raise Http404
