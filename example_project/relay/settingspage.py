"""The Settings page: how somebody likes to see the site, and the keys they give to programs.

For who has signed in. Everything on it is in the key-value store and nowhere else. While that does not answer
the page says so, with 503, and the rest of the site goes on: nobody's settings are needed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any, Final, cast

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from example_project.relay import demo, records, trace
from example_project.relay.forms import KeyForm, SettingsForm
from redis_infra.exceptions import RedisInfraError, StoreIndeterminate, StoreQuotaExceeded
from redis_infra.kv import StoreHealth, get_store

View = Callable[[HttpRequest], HttpResponse]

RETRY_AFTER: Final = 1
"""Seconds after which who was told 503 may ask again."""
KEY_IDS: Final = "key_%s"
"""Both forms on the page have a name."""
KEEPERS: Final = {
    "redis": "Redis keeps your settings",
    "upstash": "Upstash keeps your settings, over REST",
    "file": "A file keeps your settings",
    "memory": "This process keeps your settings",
}


def _needs_records(view: View) -> View:
    """Answer 503 where the store does not: a page for people, JSON for scripts."""

    @wraps(view)
    def answered(request: HttpRequest) -> HttpResponse:
        try:
            return view(request)
        except RedisInfraError as error:
            response = _away(request, error)
            response.headers["Retry-After"] = str(_wait(error))
            return response

    return answered


@require_safe
@login_required
@never_cache
@_needs_records
def page(request: HttpRequest) -> HttpResponse:
    """Show what somebody has chosen and the API keys they have."""
    return _page(request)


@require_safe
@login_required
@never_cache
@_needs_records
def state(request: HttpRequest) -> JsonResponse:
    """Return the same as JSON, with who keeps it and why."""
    shown = {"settings": asdict(records.settings_of(_id(request))), "keys": _keys(request)}
    return JsonResponse({**_told(), **shown})


@require_POST
@login_required
@never_cache
@_needs_records
def keep(request: HttpRequest) -> HttpResponse:
    """Keep what was chosen; the next page shows it."""
    form = SettingsForm(request.POST)
    if not form.is_valid():
        return _page(request, settings_form=form, status=400)
    records.keep_settings(_id(request), form.settings())
    return redirect("settings")


@require_POST
@login_required
@never_cache
@_needs_records
def keys(request: HttpRequest) -> HttpResponse:
    """Make an API key, and show it this once, or revoke one: ``action`` is ``make`` or ``revoke:ID``."""
    action, _, key_id = request.POST.get("action", "").partition(":")
    match action:
        case "make":
            return _make(request)
        case "revoke":
            records.revoke_key(_id(request), key_id)
            return redirect("settings")
    return HttpResponseBadRequest("action is make or revoke:ID", content_type="text/plain")


def _make(request: HttpRequest) -> HttpResponse:
    form = KeyForm(request.POST, auto_id=KEY_IDS)
    if not form.is_valid():
        return _page(request, key_form=form, status=400)
    try:
        made = records.make_key(_id(request), form.cleaned_data["name"], form.lifetime_wanted())
    except records.TooManyKeys:
        form.add_error(None, f"You have {records.MOST_KEYS} keys, which is the most. Revoke one first.")
        return _page(request, key_form=form, status=400)
    # Not after a redirect: on its way to the next request it would have to be kept somewhere.
    return _page(request, made=made)


def _page(
    request: HttpRequest,
    *,
    settings_form: SettingsForm | None = None,
    key_form: KeyForm | None = None,
    made: str = "",
    status: int = 200,
) -> HttpResponse:
    settings_form = settings_form or SettingsForm(asdict(records.settings_of(_id(request))))
    context = {
        **_context(),
        "settings_form": settings_form,
        "key_form": key_form or KeyForm(auto_id=KEY_IDS),
        "keys": _keys(request),
        "most_keys": records.MOST_KEYS,
        "made": made,
        "api": request.build_absolute_uri(reverse("api-me")),
    }
    return render(request, "relay/settings.html", context, status=status)


def _away(request: HttpRequest, error: RedisInfraError) -> HttpResponse:
    if request.path.endswith(".json"):
        return JsonResponse(_told(), status=503)
    context = {**_context(), "problem": str(error).rstrip("."), "done": _done(request, error)}
    return render(request, "relay/settings.html", context, status=503)


def _done(request: HttpRequest, error: RedisInfraError) -> str:
    """Return what became of what was asked for."""
    if request.method != "POST":
        return ""
    if isinstance(error, StoreIndeterminate):
        return "It was sent, and no answer came. Look here again before you repeat it."
    return "Nothing was changed."


def _wait(error: RedisInfraError) -> int:
    told = error.retry_after if isinstance(error, StoreQuotaExceeded) else None
    return max(RETRY_AFTER, round(told or 0))


def _context() -> dict[str, Any]:
    return {"keeper": _told(), "demo_runs": demo.current() is not None}


def _told() -> dict[str, Any]:
    """Return who keeps it, how the cache is, and what may be done to Redis."""
    running = demo.current()
    return {
        **_keeper(),
        "cache": trace.status()["state"],
        "power": running.backing.power if running else "none",
        "owned": bool(running and running.backing.owned),
    }


def _keeper() -> dict[str, str]:
    """Return who keeps it and why; asks whether it is there."""
    try:
        found = get_store().health()
    except RedisInfraError as error:  # it is configured wrongly, which `check` says, too
        found = StoreHealth(provider="nobody", status="down", where="", problem=str(error))
    headline = "Your settings cannot be read" if found.status == "down" else KEEPERS.get(found.provider)
    return {
        **asdict(found),
        "headline": headline or f"{found.provider} keeps your settings",
        "detail": _detail(found),
        "state": _state(found),
    }


def _detail(found: StoreHealth) -> str:
    problem = found.problem.rstrip(".")
    if found.status == "down":
        return f"{problem}. The rest of the site goes on without them."
    if found.status == "degraded":
        return f"{problem}. This process remembers what you change meanwhile, and nobody else."
    if found.provider == "memory":
        return f"Why it is this one: {found.why}. What it keeps ends with it, and no other process has it."
    return f"Why it is this one: {found.why}. There is no copy: while it is away, this page is, too."


def _state(found: StoreHealth) -> str:
    """Return what it is like, in the words of the cache's states, for the same colours."""
    if found.status != "ok":
        return "open"
    return "memory" if found.provider == "memory" else "closed"


def _keys(request: HttpRequest) -> list[dict[str, Any]]:
    return [{**asdict(each), "lasts": _words(each.left)} for each in records.keys_of(_id(request))]


def _words(seconds: float) -> str:
    """Return a time that is left, as people say it: "42 s", "9 min", "23 h", "29 days"."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _id(request: HttpRequest) -> int:
    return cast(int, request.user.pk)
