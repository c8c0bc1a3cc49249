"""Everything Relay's pages and API show, read through the query cache, each read noted.

A page that finds all of it there asks the database nothing. What is kept, how long and until when is in
``queries``; who answered, in ``trace``.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.contrib.auth.models import User

from example_project.relay import keys, queries
from example_project.relay.rows import (
    DocumentList,
    DocumentPage,
    MessageRow,
    Person,
    Profile,
    RoomCard,
    Statistics,
)
from example_project.relay.trace import aasked, asked, cache


def room_cards() -> list[RoomCard]:
    """Return every room, by name: one read for the list, one for all the cards."""
    slugs = asked(queries.room_slugs)
    cards = asked(queries.room_cards, slugs)
    return [cards[slug] for slug in slugs if slug in cards]


def room(slug: str) -> RoomCard:
    """Return one room.

    Raises:
        Room.DoesNotExist: there is none of that name.
    """
    return asked(queries.room_card, slug)


def latest_messages(slug: str) -> list[MessageRow]:
    """Return the newest messages of a room, newest first."""
    return asked(queries.latest_messages, slug)


def older_messages(slug: str, before: int) -> list[MessageRow]:
    """Return the messages of a room just before the one with id ``before``, newest first."""
    return asked(queries.older_messages, slug, before)


def activity() -> list[MessageRow]:
    """Return what was said last, anywhere, newest first."""
    return asked(queries.activity)


def people(ids: Iterable[int]) -> dict[int, Person]:
    """Return who these ids are: one read for all, one query for those that are not kept."""
    wanted = sorted(set(ids))
    return asked(queries.people, wanted) if wanted else {}


def person_named(username: str) -> Person:
    """Return one person.

    Raises:
        User.DoesNotExist: there is none of that name.
    """
    pk = asked(queries.user_id, username)
    who = people([pk])
    if pk not in who:
        raise User.DoesNotExist
    return who[pk]


def profile(user_id: int) -> Profile:
    """Return what a person wrote lately."""
    return asked(queries.profile, user_id)


def documents(query: str = "", page: int = 1) -> DocumentList:
    """Return one page of the documents that contain every word of ``query``, last changed first."""
    return asked(queries.documents, query.casefold(), page)


def document(pk: int) -> DocumentPage:
    """Return one document with its text.

    Raises:
        Document.DoesNotExist: there is none with that id.
    """
    return asked(queries.document, pk)


async def statistics() -> Statistics:
    """Return how large the site is: cache and database are both asked asynchronously."""
    return await aasked(queries.statistics)


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
