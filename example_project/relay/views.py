"""Relay's pages. What they show comes from ``reads``; what they change goes to the models."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from example_project.relay import reads
from example_project.relay.forms import DocumentForm, MessageForm, SearchForm
from example_project.relay.models import Document, Room
from example_project.relay.rows import PAGE_OF_MESSAGES, MessageRow, Person, RoomCard
from redis_infra.throttling.decorators import ratelimit


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Show every room, and what was said last."""
    activity = reads.activity()
    context = {"rooms": reads.room_cards(), "activity": activity, "people": _authors(activity)}
    return render(request, "relay/home.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@ratelimit("chat", methods=["POST"])
def room(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a room's messages, or say something in it."""
    try:
        card = reads.room(slug)
    except Room.DoesNotExist as error:
        raise Http404("There is no such room") from error
    form = MessageForm(request.POST if request.method == "POST" else None)
    if request.method == "POST":
        if not request.user.is_authenticated:
            return redirect_to_login(request.path)
        if form.is_valid():
            form.instance.room = get_object_or_404(Room, slug=slug)
            form.instance.author = request.user
            form.save()
            return redirect("room", slug=slug)
    return render(request, "relay/room.html", _room_context(request, card, form))


def _room_context(request: HttpRequest, card: RoomCard, form: MessageForm) -> dict[str, object]:
    before = request.GET.get("before", "")
    older = before.isascii() and before.isdigit() and len(before) < 19
    messages = (
        reads.older_messages(card["slug"], int(before)) if older else reads.latest_messages(card["slug"])
    )
    return {
        "room": card,
        "messages_shown": messages,
        "people": _authors(messages),
        "form": form,
        "older": older,
        "has_older": len(messages) == PAGE_OF_MESSAGES,
        "views": reads.seen("room", card["slug"]),
    }


def _searches(request: HttpRequest) -> int:
    """Return what a request counts: turning pages is free."""
    return 1 if request.GET.get("q") else 0


@require_safe
@ratelimit("search", cost=_searches)
def documents(request: HttpRequest) -> HttpResponse:
    """List the documents, or those that contain some words."""
    query, page = SearchForm(request.GET).wanted()
    found = reads.documents(query, page)
    context = {
        # Django's templates read `found.items` as the key, but a reader of them would not.
        "found": found,
        "rows": found["items"],
        "query": query,
        "people": reads.people(row["owner_id"] for row in found["items"]),
        "previous_page": found["page"] - 1,
        "next_page": found["page"] + 1,
    }
    return render(request, "relay/documents.html", context)


@require_safe
def document(request: HttpRequest, pk: int) -> HttpResponse:
    """Show one document."""
    try:
        row = reads.document(pk)
    except Document.DoesNotExist as error:
        raise Http404("There is no such document") from error
    context = {
        "document": row,
        "views": reads.seen("document", pk),
        "owner": reads.people([row["owner_id"]]).get(row["owner_id"]),
    }
    return render(request, "relay/document.html", context)


@login_required
def new_document(request: HttpRequest) -> HttpResponse:
    """Write a document."""
    form = DocumentForm(request.POST or None)
    if request.user.is_authenticated and request.method == "POST" and form.is_valid():
        form.instance.owner = request.user
        return redirect(form.save())
    return render(request, "relay/new_document.html", {"form": form})


@require_safe
def person(request: HttpRequest, username: str) -> HttpResponse:
    """Show somebody, and what they wrote lately."""
    try:
        who = reads.person_named(username)
    except User.DoesNotExist as error:
        raise Http404("There is nobody of that name") from error
    return render(request, "relay/person.html", {"person": who, "profile": reads.profile(who["id"])})


def _authors(messages: list[MessageRow]) -> dict[int, Person]:
    return reads.people(row["author_id"] for row in messages)
