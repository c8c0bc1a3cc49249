"""Everything Relay's pages and API show, read through the cache.

A page that finds all of it there asks the database nothing. What a value looks
like and how it is computed is in ``rows``, what a write forgets in ``invalidation``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from uuid import uuid4

from django.contrib.auth.models import User

from example_project.relay import keys
from example_project.relay.models import Document, Message, Room
from example_project.relay.rows import (
    DocumentList,
    DocumentPage,
    MessageRow,
    Person,
    Profile,
    RoomCard,
    Statistics,
    cards_of,
    document_row,
    message_row,
    page_of_messages,
    person_row,
    search_documents,
)
from example_project.relay.trace import cache, from_database

LATELY = 8
"""Messages that the home page shows."""

Name = TypeVar("Name")
Value = TypeVar("Value")


def room_cards() -> list[RoomCard]:
    """Return every room, by name: one read for the list, one for all the cards."""
    slugs: list[str] = cache.get_or_set(
        keys.ROOM_SLUGS, lambda: list(Room.objects.values_list("slug", flat=True)), keys.ROOM
    )

    def load(missing: list[str]) -> dict[str, RoomCard]:
        return {card["slug"]: card for card in cards_of(Room.objects.filter(slug__in=missing))}

    cards = _many(slugs, keys.room, load, "rooms", keys.ROOM)
    return [cards[slug] for slug in slugs if slug in cards]


def room(slug: str) -> RoomCard:
    """Return one room.

    Raises:
        Room.DoesNotExist: there is none of that name; nothing is cached then.
    """
    card: RoomCard = cache.get_or_set(
        keys.room(slug), lambda: cards_of([Room.objects.get(slug=slug)])[0], keys.ROOM
    )
    return card


def latest_messages(slug: str) -> list[MessageRow]:
    """Return the newest messages of a room, newest first."""
    rows: list[MessageRow] = cache.get_or_set(
        keys.latest(slug), lambda: page_of_messages(Message.objects.filter(room__slug=slug)), keys.MESSAGES
    )
    return rows


def older_messages(slug: str, before: int) -> list[MessageRow]:
    """Return the messages of a room just before the one with id ``before``, newest first."""
    edition: str = cache.get_or_set(keys.room_edition(slug), _new_edition, keys.COUNTER)
    rows: list[MessageRow] = cache.get_or_set(
        keys.before(slug, edition, before),
        lambda: page_of_messages(Message.objects.filter(room__slug=slug, id__lt=before)),
        keys.MESSAGES,
    )
    return rows


def activity() -> list[MessageRow]:
    """Return what was said last, anywhere, newest first."""
    rows: list[MessageRow] = cache.get_or_set(
        keys.ACTIVITY,
        lambda: [message_row(row) for row in Message.objects.select_related("room")[:LATELY]],
        keys.MESSAGES,
    )
    return rows


def people(ids: Iterable[int]) -> dict[int, Person]:
    """Return who these ids are: one read for all, one query for those the cache lacks."""

    def load(missing: list[int]) -> dict[int, Person]:
        return {user.pk: person_row(user) for user in User.objects.filter(pk__in=missing)}

    return _many(sorted(set(ids)), keys.person, load, "people", keys.PERSON)


def person_named(username: str) -> Person:
    """Return one person.

    Raises:
        User.DoesNotExist: there is none of that name.
    """
    pk: int = cache.get_or_set(
        keys.username(username), lambda: User.objects.only("pk").get(username=username).pk, keys.PERSON
    )
    who = people([pk])
    if pk not in who:
        raise User.DoesNotExist
    return who[pk]


def profile(user_id: int) -> Profile:
    """Return what a person wrote lately."""

    def load() -> Profile:
        said = Message.objects.filter(author_id=user_id)
        return Profile(
            messages=[message_row(row) for row in said.select_related("room")[:12]],
            message_count=said.count(),
            documents=[document_row(row) for row in Document.objects.filter(owner_id=user_id)[:12]],
        )

    result: Profile = cache.get_or_set(keys.profile(user_id), load, keys.MESSAGES)
    return result


def documents(query: str = "", page: int = 1) -> DocumentList:
    """Return one page of the documents that contain every word of ``query``, last changed first."""
    edition: str = cache.get_or_set(keys.DOCUMENTS_EDITION, _new_edition, keys.COUNTER)
    result: DocumentList = cache.get_or_set(
        keys.documents(edition, query, page), lambda: search_documents(query, page), keys.DOCUMENTS
    )
    return result


def document(pk: int) -> DocumentPage:
    """Return one document with its text.

    Raises:
        Document.DoesNotExist: there is none with that id.
    """
    result: DocumentPage = cache.get_or_set(keys.document(pk), lambda: load_document(pk), keys.DOCUMENTS)
    return result


def load_document(pk: int) -> DocumentPage:
    """Return what the database says of a document, past the cache."""
    row = Document.objects.get(pk=pk)
    return DocumentPage(**document_row(row), body=row.body, revision=row.revision)


def seen(what: str, name: str | int) -> int:
    """Count one more view of a page and return how many that makes."""
    key = keys.views(what, name)
    try:
        return cache.incr(key)
    except ValueError:
        # Two first visitors may both come here: `add` lets one of them begin the count, and both count.
        cache.add(key, 0, keys.COUNTER)
        return _counted(key)


def _counted(key: str) -> int:
    try:
        return cache.incr(key)
    except ValueError:
        # The counter went between the two steps (evicted, or Redis just left): a view is not worth a third.
        return 1


async def statistics() -> Statistics:
    """Return how large the site is, without a thread: cache and database are both asked asynchronously."""
    known: Statistics | None = await cache.aget(keys.STATISTICS)
    if known is not None:
        return known
    with from_database(keys.STATISTICS):
        counted = Statistics(
            people=await User.objects.acount(),
            rooms=await Room.objects.acount(),
            messages=await Message.objects.acount(),
            documents=await Document.objects.acount(),
        )
    await cache.aset(keys.STATISTICS, counted, keys.STATS)
    return counted


def _new_edition() -> str:
    return uuid4().hex[:12]


def _many(
    wanted: list[Name],
    key: Callable[[Name], str],
    load: Callable[[list[Name]], Mapping[Name, Value]],
    what: str,
    timeout: float,
) -> dict[Name, Value]:
    """Return many values of one kind: what the cache has, and what ``load`` knows of the rest."""
    if not wanted:
        return {}
    cached = cache.get_many(key(name) for name in wanted)
    found: dict[Name, Value] = {name: cached[key(name)] for name in wanted if key(name) in cached}
    missing = [name for name in wanted if name not in found]
    if missing:
        with from_database(f"{len(missing)} {what}"):
            loaded = load(missing)
        cache.set_many({key(name): value for name, value in loaded.items()}, timeout)
        found |= loaded
    return found
