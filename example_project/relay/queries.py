"""What the query cache keeps of Relay's database: one function a query, and what forgets it beside it.

The five data types say how long each is kept. What a value looks like is in ``rows``; pages ask by ``reads``,
which notes who answered. A change of a row forgets by ``invalidate_on``, after commit: by pattern where the
key says what it is about, by tag where many keys hang on one thing.
"""

from __future__ import annotations

from django.contrib.auth.models import User

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
    document_page,
    document_row,
    message_row,
    page_of_messages,
    person_row,
    search_documents,
)
from redis_infra.querycache import cached, cached_many, invalidate_on

LATELY = 8
"""Messages that the home page shows."""


@cached("rooms", ttl="chat")
def room_slugs() -> list[str]:
    """Find the names of all rooms, in the order of the home page."""
    return list(Room.objects.values_list("slug", flat=True))


@cached_many("chat:{slug}:card", ttl="chat", tags=["room:{slug}"])
def room_cards(slugs: list[str]) -> dict[str, RoomCard]:
    """Make the cards of some rooms, in one go."""
    return {card["slug"]: card for card in cards_of(Room.objects.filter(slug__in=slugs))}


@cached("chat:{slug}:card", ttl="chat", tags=["room:{slug}"])
def room_card(slug: str) -> RoomCard:
    """Make the card of one room, the same entry as above. Raises Room.DoesNotExist and keeps nothing then."""
    return cards_of([Room.objects.get(slug=slug)])[0]


@cached("chat:{slug}:messages", ttl="messages", tags=["room:{slug}"], stale="10min")
def latest_messages(slug: str) -> list[MessageRow]:
    """Find the newest messages of a room, newest first."""
    return page_of_messages(Message.objects.filter(room__slug=slug))


@cached("chat:{slug}:messages:{before}", ttl="messages", tags=["room:{slug}"], stale="10min")
def older_messages(slug: str, before: int) -> list[MessageRow]:
    """Find the messages of a room just before the one with id ``before``, newest first."""
    return page_of_messages(Message.objects.filter(room__slug=slug, id__lt=before))


@cached("activity", ttl="messages", stale="10min")
def activity() -> list[MessageRow]:
    """Find what was said last, anywhere, newest first."""
    return [message_row(row) for row in Message.objects.select_related("room")[:LATELY]]


@cached_many("user:{user_id}", ttl="user")
def people(user_ids: list[int]) -> dict[int, Person]:
    """Find who some ids are, in one query."""
    return {user.pk: person_row(user) for user in User.objects.filter(pk__in=user_ids)}


@cached("username:{username}", ttl="user")
def user_id(username: str) -> int:
    """Find whose name that is. Raises User.DoesNotExist, and keeps nothing then."""
    return User.objects.only("pk").get(username=username).pk


@cached("user:{user_id}:profile", ttl="user")
def profile(user_id: int) -> Profile:
    """Find what a person wrote lately."""
    said = Message.objects.filter(author_id=user_id)
    return Profile(
        messages=[message_row(row) for row in said.select_related("room")[:12]],
        message_count=said.count(),
        documents=[document_row(row) for row in Document.objects.filter(owner_id=user_id)[:12]],
    )


@cached("document:{pk}", ttl="documents")
def document(pk: int) -> DocumentPage:
    """Find one document. Raises Document.DoesNotExist, and keeps nothing then."""
    return document_page(Document.objects.get(pk=pk))


@cached("documents:{page}:{query}", ttl="documents", tags=["documents"], stale="10min")
def documents(query: str, page: int) -> DocumentList:
    """Search the documents, last changed first."""
    return search_documents(query, page)


@cached("stats", ttl="stats", stale="5min")
async def statistics() -> Statistics:
    """Count everything, without a thread of its own for waiting."""
    return Statistics(
        people=await User.objects.acount(),
        rooms=await Room.objects.acount(),
        messages=await Message.objects.acount(),
        documents=await Document.objects.acount(),
    )


def connect() -> None:
    """Say what a saved or deleted row was shown in. Called once, when the app is ready."""
    invalidate_on(
        Message,
        "chat:{instance.room.slug}:*",
        "activity",
        "user:{instance.author_id}:profile",
        "stats",
    )
    # Messages show the name of their room: on its own pages, on the home page, on their authors' pages.
    invalidate_on(Room, "rooms", "activity", "user:*:profile", "stats", tags=["room:{instance.slug}"])
    invalidate_on(
        Document,
        "document:{instance.pk}",
        "user:{instance.owner_id}:profile",
        "stats",
        tags=["documents"],
    )
    invalidate_on(User, "user:{instance.pk}", "user:{instance.pk}:*", "username:{instance.username}", "stats")
