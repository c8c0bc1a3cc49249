"""The queries that the Query cache page watches: one for each way to use it, and a call of each.

Asks the cache what is kept by its plain API: an entry is one string key, ``qc:`` and the rendered template.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.cache import caches

from example_project.relay import queries
from example_project.relay.content import BOARD_TITLE
from example_project.relay.models import Document, Room
from example_project.relay.trace import aasked, asked
from redis_infra.querycache.entries import STAMP, new_token, now_ms, pack_entry, read_entry
from redis_infra.querycache.loading import Tally
from redis_infra.querycache.space import space_for

ROOM = "engineering"
WORDS = "runbook"
PEOPLE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The rows that the page reads."""

    room: Room
    document: Document
    users: list[User]

    @property
    def author(self) -> User:
        """Who writes on the page."""
        return self.users[0]


def sample() -> Sample | None:
    """Return rows to read; None where the database has no content yet."""
    rooms = Room.objects.order_by("pk")
    room = rooms.filter(slug=ROOM).first() or rooms.first()
    document = Document.objects.exclude(title=BOARD_TITLE).order_by("pk").first()
    users = list(User.objects.order_by("pk")[:PEOPLE])
    if room is None or document is None or not users:
        return None
    return Sample(room=room, document=document, users=users)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One call of a cached function."""

    name: str
    kind: str
    """Its data type."""
    title: str
    query: Any
    """The function."""
    args: tuple[Any, ...] = ()
    tags: tuple[str, ...] = ()
    says: Callable[[Any], str]
    """Puts what it returns into a few words."""

    @property
    def tally(self) -> Tally:
        """What the function's callers got in this process, whatever they asked it for."""
        tally: Tally = self.query.tally
        return tally

    @property
    def keys(self) -> list[str]:
        """What it is kept under."""
        if hasattr(self.query, "keys"):
            return list(self.query.keys(*self.args).values())
        return [self.query.key(*self.args)]

    @property
    def label(self) -> str:
        """Its key, for people."""
        first, *more = self.keys
        return f"{first} and {len(more)} more" if more else first

    @property
    def code(self) -> str:
        """How the function is declared, as it stands in ``queries``."""
        found = re.match(r"(?:@.*\n)+(?:async )?def .*", inspect.getsource(self.query.uncached))
        return found[0] if found else ""

    def read(self) -> str:
        """Call it, and say what came."""
        if inspect.iscoroutinefunction(self.query.uncached):
            return self.says(async_to_sync(_awaited)(self.query, *self.args))
        return self.says(asked(self.query, *self.args))

    def expire(self) -> None:
        """Make it as old as it may get, as if time had passed: what may be stale stays, the rest goes."""
        for key in self.keys:
            _expire(key, self.tags)


async def _awaited(query: Any, *args: Any) -> Any:
    return await aasked(query, *args)


def kept(watched: list[Watched]) -> set[str]:
    """Return the keys that are there now."""
    cache = caches["default"]
    return {key for each in watched for key in each.keys if cache.has_key(f"qc:{key}")}


def _expire(key: str, tags: tuple[str, ...]) -> None:
    """Store an entry again as it was, good until now.

    A site has no use for this, so the query cache has no name for it: it is done as a computation would.
    """
    space = space_for("default")
    if space is None:
        return
    place, now = space.place(key, tags), now_ms()
    raw = space.engine.fetch(place.name)
    entry = read_entry(raw) if raw is not None else None
    if entry is None or entry.fresh <= now:
        return
    answer, token = space.engine.run(space.acquire(place, new_token(), entry.filled_by, entry.dead - now))
    if answer != b"granted":
        return  # somebody computes it just now
    stamps = [entry.stamps[at : at + STAMP] for at in range(0, len(entry.stamps), STAMP)]
    dead = now + entry.dead - entry.fresh
    expired = pack_entry(
        token,
        fresh=now,
        dead=dead,
        cost=entry.cost / 1e6,
        version=entry.version,
        stamps=stamps,
        payload=entry.payload,
    )
    space.engine.run(space.fill(place, token, expired, max(1, dead - now)))


def watched(rows: Sample) -> list[Watched]:
    """Return the calls that the page shows, of all five data types."""
    slug = rows.room.slug
    return [
        Watched(
            name="people",
            kind="user",
            title="Who people are",
            query=queries.people,
            args=([user.pk for user in rows.users],),
            says=lambda found: f"{len(found)} people",
        ),
        Watched(
            name="profile",
            kind="user",
            title="What somebody wrote",
            query=queries.profile,
            args=(rows.author.pk,),
            says=lambda profile: f"{profile['message_count']} messages of {rows.author.username}",
        ),
        Watched(
            name="room",
            kind="chat",
            title="A room's card",
            query=queries.room_card,
            args=(slug,),
            tags=(f"room:{slug}",),
            says=lambda card: f"{card['name']}: {card['topic']}",
        ),
        Watched(
            name="messages",
            kind="messages",
            title="A room's newest messages",
            query=queries.latest_messages,
            args=(slug,),
            tags=(f"room:{slug}",),
            says=lambda found: f"“{found[0]['body']}”" if found else "nothing said yet",
        ),
        Watched(
            name="document",
            kind="documents",
            title="A document",
            query=queries.document,
            args=(rows.document.pk,),
            says=lambda document: f"{document['title']}, revision {document['revision']}",
        ),
        Watched(
            name="search",
            kind="documents",
            title="A search",
            query=queries.documents,
            args=(WORDS, 1),
            tags=("documents",),
            says=lambda found: f"{found['total']} documents with “{WORDS}”",
        ),
        Watched(
            name="stats",
            kind="stats",
            title="How large the site is",
            query=queries.statistics,
            says=lambda counted: f"{counted['messages']:,} messages in {counted['rooms']} rooms",
        ),
    ]
