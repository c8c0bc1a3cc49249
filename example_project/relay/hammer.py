"""The Limits page: run into a limit, take Redis away, and run into it all the same.

Looking is for those who may look at the playground; beginning anew is for visitors of a demo.
"""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from example_project.relay import demo, limits
from example_project.relay.playground import require_looking
from redis_infra.conf import get_settings
from redis_infra.throttling.limiter import default_limiter


@require_safe
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    """Show the four limits; the script on the page sends requests and shows what becomes of them."""
    require_looking(request)
    now = limits.state(request)
    policies = default_limiter().policies
    rows = [
        {
            "endpoint": endpoint,
            "standing": now["standings"][endpoint.name],
            "limits": policies[endpoint.name].limits,
        }
        for endpoint in limits.ENDPOINTS
    ]
    context = {
        "state": now,
        "rows": rows,
        "stranger": limits.STRANGER,
        "demo_runs": demo.current() is not None,
        "command": _command(),
    }
    return render(request, "relay/limits.html", context)


def _command() -> str:
    """Return what shows the same in a terminal."""
    running, said = demo.current(), ""
    if running is not None:
        # The demo's server has no password.
        url = f"REDIS_URL={running.backing.url} " if running.backing.owned else ""
        said = f"{url}REDIS_PREFIX={get_settings().key_prefix} "
    return f"{said}python manage.py throttle_status"


@require_safe
@never_cache
def state(request: HttpRequest) -> JsonResponse:
    """Return who decides and how the visitor stands, as JSON."""
    require_looking(request)
    return JsonResponse(limits.state(request))


@require_POST
def reset(request: HttpRequest) -> HttpResponse:
    """Let the visitor begin anew with one policy."""
    if demo.current() is None:
        raise PermissionDenied("Limits are lifted in a demo only")
    name = request.POST.get("policy", "")
    if name not in {endpoint.name for endpoint in limits.ENDPOINTS}:
        return HttpResponseBadRequest("policy is one of those on the page")
    limits.forget(request, name)
    if "application/json" in request.headers.get("Accept", ""):
        return JsonResponse(limits.state(request))
    return redirect("limits")
