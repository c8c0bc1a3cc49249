"""The names of everything Relay keeps in the cache, and for how long.

One function a key, so that the code that reads and the code that forgets
cannot disagree. Times are seconds; nothing is kept without an end.
"""

from __future__ import annotations

from hashlib import blake2b

ROOM = 180
MESSAGES = 120
DOCUMENTS = 60
PERSON = 300
STATS = 30
COUNTER = 24 * 3600

ROOM_SLUGS = "rooms"
ACTIVITY = "activity"
STATISTICS = "stats"
DOCUMENTS_EDITION = "documents:edition"


def room(slug: str) -> str:
    """Name a room's card: its topic, size and last message."""
    return f"room:{slug}"


def latest(slug: str) -> str:
    """Name the newest messages of a room."""
    return f"room:{slug}:latest"


def room_edition(slug: str) -> str:
    """Name what changes when a message of a room is edited or removed."""
    return f"room:{slug}:edition"


def before(slug: str, edition: str, message_id: int) -> str:
    """Name the page of a room's messages older than ``message_id``."""
    return f"room:{slug}:before:{edition}:{message_id}"


def views(what: str, name: str | int) -> str:
    """Name the counter of how often a page was seen."""
    return f"views:{what}:{name}"


def person(user_id: int) -> str:
    """Name what is shown of a person beside what they wrote."""
    return f"person:{user_id}"


def username(name: str) -> str:
    """Name the way from a username to a person's id."""
    return f"username:{name}"


def profile(user_id: int) -> str:
    """Name what a person's page shows: recent messages and documents."""
    return f"profile:{user_id}"


def document(pk: int) -> str:
    """Name one document."""
    return f"document:{pk}"


def documents(edition: str, query: str, page: int) -> str:
    """Name one page of a list of documents.

    ``edition`` changes whenever any document does, so that all pages of all
    searches are forgotten at once. The query is digested: people type anything.
    """
    digest = blake2b(query.casefold().encode(), digest_size=8).hexdigest() if query else "all"
    return f"documents:{edition}:{digest}:{page}"
