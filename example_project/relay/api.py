"""Relay's API: the same things as the pages, read through the same cache.

Anybody may read; writing needs a session, as on the site, or an API key (``api_keys``).
"""

from __future__ import annotations

from typing import Any, cast

from django.contrib.auth.models import User
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_safe
from rest_framework import status
from rest_framework.exceptions import NotFound
from rest_framework.parsers import MultiPartParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from example_project.relay import reads, records
from example_project.relay.api_keys import RecordsAway
from example_project.relay.forms import SearchForm
from example_project.relay.models import Document, Room
from example_project.relay.records import ApiKey
from example_project.relay.rows import RoomCard
from example_project.relay.serializers import NewDocument, NewMessage, Upload
from redis_infra.exceptions import RedisInfraError
from redis_infra.throttling.drf import PolicyThrottle, UploadRateThrottle


class Rooms(APIView):
    """All rooms, by name."""

    def get(self, request: Request) -> Response:
        """List the rooms with their size and last message."""
        return Response(reads.room_cards())


class Messages(APIView):
    """What is said in a room. Talking is limited, together with the form on the room's page."""

    throttle_classes = [PolicyThrottle]
    throttle_policy = {"POST": "chat"}

    def get(self, request: Request, slug: str) -> Response:
        """List the newest messages with their authors."""
        card = _room(slug)
        messages = reads.latest_messages(slug)
        authors = reads.people(row["author_id"] for row in messages)
        return Response({"room": card, "messages": messages, "authors": list(authors.values())})

    def post(self, request: Request, slug: str) -> Response:
        """Say something."""
        message = NewMessage(data=request.data)
        message.is_valid(raise_exception=True)
        message.save(room=get_object_or_404(Room, slug=slug), author=request.user)
        return Response(message.data, status=status.HTTP_201_CREATED)


class SearchThrottle(PolicyThrottle):
    """Limits searching, together with the search on the page; turning pages is free."""

    policies = ("search",)

    def is_exempt(self, request: Request, view: APIView) -> bool:
        """Return whether nobody searches."""
        return request.method == "POST" or not request.query_params.get("q")


class Documents(APIView):
    """Documents, last changed first."""

    throttle_classes = [SearchThrottle]

    def get(self, request: Request) -> Response:
        """List them; ``q`` searches, ``page`` turns the pages."""
        return Response(reads.documents(*SearchForm(request.query_params).wanted()))

    def post(self, request: Request) -> Response:
        """Keep a new one."""
        document = NewDocument(data=request.data)
        document.is_valid(raise_exception=True)
        document.save(owner=request.user)
        return Response(document.data, status=status.HTTP_201_CREATED)


class Uploads(APIView):
    """Documents from files."""

    parser_classes = [MultiPartParser]
    throttle_classes = [UploadRateThrottle]

    def post(self, request: Request) -> Response:
        """Keep a text file as a document."""
        upload = Upload(data=request.data)
        upload.is_valid(raise_exception=True)
        document = NewDocument(data=upload.document())
        document.is_valid(raise_exception=True)
        document.save(owner=request.user)
        return Response(document.data, status=status.HTTP_201_CREATED)


class OneDocument(APIView):
    """One document."""

    def get(self, request: Request, pk: int) -> Response:
        """Return it with its text."""
        try:
            return Response(reads.document(pk))
        except Document.DoesNotExist as error:
            raise NotFound from error


class OnePerson(APIView):
    """One person."""

    def get(self, request: Request, username: str) -> Response:
        """Return who it is and what they wrote lately."""
        try:
            person = reads.person_named(username)
        except User.DoesNotExist as error:
            raise NotFound from error
        profile: dict[str, Any] = {**reads.profile(person["id"])}
        return Response({**person, **profile})


class Me(APIView):
    """Who asks."""

    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        """Return who it is and, where an API key says so, how that stands."""
        try:
            chosen = records.settings_of(cast(int, request.user.pk))
        except RedisInfraError as error:
            raise RecordsAway from error
        username = request.user.get_username()
        said = {"id": request.user.pk, "username": username, "name": chosen.name or username}
        return Response({**said, "key": _told(request.auth)})


def _told(key: object) -> dict[str, Any] | None:
    if not isinstance(key, ApiKey):
        return None
    return {"name": key.name, "uses": key.uses, "seconds_left": round(key.left, 3)}


@require_safe
async def statistics(request: HttpRequest) -> JsonResponse:
    """Return how large the site is; asynchronous down to the socket."""
    return JsonResponse(dict(await reads.statistics()))


def _room(slug: str) -> RoomCard:
    try:
        return reads.room(slug)
    except Room.DoesNotExist as error:
        raise NotFound from error
