"""What is cached of Relay's models: plain dicts, and how they are made from rows of the database.

Never model instances: what is cached must survive a deploy that changes a class.
Nothing here knows the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypedDict

from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db.models import Count, Q, QuerySet

from example_project.relay.models import Document, Message, Room

PAGE_OF_MESSAGES = 50
PAGE_OF_DOCUMENTS = 20
SHORT = 220
"""Characters of a document that a list shows."""


class MessageRow(TypedDict):
    """One message, as pages show it; its author is looked up beside it."""

    id: int
    room: str
    room_name: str
    author_id: int
    body: str
    at: datetime


class RoomCard(TypedDict):
    """A room as the home page shows it."""

    id: int
    slug: str
    name: str
    topic: str
    messages: int
    last: MessageRow | None


class Person(TypedDict):
    """What is shown of somebody beside what they wrote."""

    id: int
    username: str
    name: str
    initials: str
    tint: int
    joined: datetime


class DocumentRow(TypedDict):
    """One document in a list."""

    id: int
    title: str
    kind: str
    owner_id: int
    updated_at: datetime
    excerpt: str


class DocumentPage(DocumentRow):
    """One document with its text."""

    body: str
    revision: int


class DocumentList(TypedDict):
    """One page of a list of documents."""

    items: list[DocumentRow]
    page: int
    pages: int
    total: int


class Profile(TypedDict):
    """What a person's page shows."""

    messages: list[MessageRow]
    message_count: int
    documents: list[DocumentRow]


class Statistics(TypedDict):
    """How large the site is."""

    people: int
    rooms: int
    messages: int
    documents: int


def cards_of(rooms: Iterable[Room]) -> list[RoomCard]:
    """Make the cards of some rooms; one query counts the messages of all of them."""
    rooms = list(rooms)
    counts = Message.objects.filter(room__in=rooms).order_by().values_list("room_id").annotate(Count("id"))
    tally = dict(counts)
    return [_card(room, tally.get(room.pk, 0)) for room in rooms]


def _card(room: Room, count: int) -> RoomCard:
    last = Message.objects.filter(room=room).select_related("room").first()
    return RoomCard(
        id=room.pk,
        slug=room.slug,
        name=room.name,
        topic=room.topic,
        messages=count,
        last=message_row(last) if last else None,
    )


def page_of_messages(messages: QuerySet[Message]) -> list[MessageRow]:
    """Make the newest rows of some messages, newest first."""
    return [message_row(row) for row in messages.select_related("room").order_by("-id")[:PAGE_OF_MESSAGES]]


def message_row(row: Message) -> MessageRow:
    """Make a message's row; its room must have been fetched with it."""
    return MessageRow(
        id=row.pk,
        room=row.room.slug,
        room_name=row.room.name,
        author_id=row.author_id,
        body=row.body,
        at=row.created_at,
    )


def person_row(user: User) -> Person:
    """Make what is shown of somebody."""
    name = user.get_full_name() or user.username
    initials = "".join(word[0] for word in name.split()[:2]).upper()
    return Person(
        id=user.pk,
        username=user.username,
        name=name,
        initials=initials,
        tint=user.pk % 6,
        joined=user.date_joined,
    )


def document_row(row: Document) -> DocumentRow:
    """Make a document's row, with the beginning of its text."""
    excerpt = " ".join(row.body.split())
    return DocumentRow(
        id=row.pk,
        title=row.title,
        kind=row.get_kind_display(),
        owner_id=row.owner_id,
        updated_at=row.updated_at,
        excerpt=excerpt[:SHORT] + ("..." if len(excerpt) > SHORT else ""),
    )


def document_page(row: Document) -> DocumentPage:
    """Make what a document's own page shows."""
    return DocumentPage(**document_row(row), body=row.body, revision=row.revision)


def search_documents(query: str, page: int) -> DocumentList:
    """Find the documents that contain every word of a query; a page past the end is the last one."""
    rows = Document.objects.all()
    for word in query.split():
        rows = rows.filter(Q(title__icontains=word) | Q(body__icontains=word))
    paginator = Paginator(rows, PAGE_OF_DOCUMENTS)
    shown = paginator.get_page(page)
    return DocumentList(
        items=[document_row(row) for row in shown],
        page=shown.number,
        pages=paginator.num_pages,
        total=paginator.count,
    )
