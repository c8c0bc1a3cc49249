"""The Query cache page: what each query's answer came from, and what makes the cache forget it.

Looking is for those who may look at the playground; acting is for visitors of a demo only.
"""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from example_project.relay import bench as benches
from example_project.relay import demo
from example_project.relay.bench import Unknown, bench
from example_project.relay.playground import require_looking
from example_project.relay.watched import ROOM


@require_safe
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    """Show the queries; the script on the page then follows them."""
    require_looking(request)
    context = {
        "state": bench.state(),
        "writes": benches.WRITES,
        "crowd_size": benches.CROWD,
        "room": ROOM,
        "demo_runs": demo.current() is not None,
    }
    return render(request, "relay/queries.html", context)


@require_safe
@never_cache
def state(request: HttpRequest) -> JsonResponse:
    """Return the state as JSON. Reads no query."""
    require_looking(request)
    return JsonResponse(bench.state())


@require_POST
def act(request: HttpRequest) -> HttpResponse:
    """Do what the button says; answer the script with the new state, and a plain form with the page.

    ``action`` is ``read:NAME``, ``expire:NAME``, ``write:WHAT``, ``forget:pattern``, ``forget:tag`` or
    ``crowd``.
    """
    if demo.current() is None:
        raise PermissionDenied("Queries are read and written here in a demo only")
    try:
        _act(request)
    except Unknown as error:
        return HttpResponseBadRequest(str(error), content_type="text/plain")
    if "application/json" in request.headers.get("Accept", ""):
        return JsonResponse(bench.state())
    return redirect("queries")


def _act(request: HttpRequest) -> None:
    said = request.POST
    action, _, what = said.get("action", "").partition(":")
    match action:
        case "read":
            bench.read(what, database_away="database_away" in said)
        case "expire":
            bench.expire(what)
        case "write":
            bench.write(what, roll_back="roll_back" in said)
        case "forget" if what == "pattern":
            bench.forget(pattern=said.get("pattern", "").strip())
        case "forget" if what == "tag":
            bench.forget(tag=said.get("tag", "").strip())
        case "crowd":
            bench.crowd()
        case _:
            raise Unknown(f"{said.get('action', '')!r} is no action; try read:all")
