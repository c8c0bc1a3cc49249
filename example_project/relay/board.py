"""The notice board: one document that is edited while Redis is away, and compared.

The comparison is the point of the playground: what the cache shows is read
beside what the database says, and it must never be older. It is kept by hand,
with Django's cache API, as the rest of the site is not.
"""

from __future__ import annotations

import threading
from typing import TypedDict

from django.utils import timezone

from example_project.relay import keys
from example_project.relay.content import BOARD_TEXT, BOARD_TITLE
from example_project.relay.models import Document
from example_project.relay.rows import DocumentPage, document_page
from example_project.relay.trace import cache, watching


class Comparison(TypedDict):
    """What the cache shows of the board beside what the database says."""

    id: int
    database: int
    """Revision in the database."""
    cached: int
    """Revision that a reader gets through the cache."""
    source: str
    ms: float
    compared: int
    """How often the two were compared since the process started."""
    stale: int
    """How often the cache was behind. Must be 0."""


class Board:
    """Edits the board and compares. Thread-safe: an edit is never seen half done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._compared = self._stale = 0

    def write(self) -> None:
        """Save the next revision and put it into the cache."""
        with self._lock:
            pk = _edit()
            cache.set(keys.BOARD, _load(pk), keys.BOARD_TIME)

    def delete(self) -> None:
        """Save the next revision; saving deletes the copy in the cache (``invalidation``)."""
        with self._lock:
            _edit()

    def compare(self) -> Comparison | None:
        """Read the board through the cache and past it; None where no demo has seeded one."""
        with self._lock:
            truth = Document.objects.filter(title=BOARD_TITLE).order_by("pk").only("pk", "revision").first()
            if truth is None:
                return None
            with watching("playground") as operations:
                page = cache.get_or_set(keys.BOARD, lambda: _load(truth.pk), keys.BOARD_TIME)
                cached = page["revision"]
            self._compared += 1
            self._stale += cached < truth.revision
            return Comparison(
                id=truth.pk,
                database=truth.revision,
                cached=cached,
                source=operations[-1].source.value,
                ms=round(operations[-1].seconds * 1000, 3),
                compared=self._compared,
                stale=self._stale,
            )


def _load(pk: int) -> DocumentPage:
    """Return what the database says, past the cache."""
    return document_page(Document.objects.get(pk=pk))


def _edit() -> int:
    document = Document.objects.filter(title=BOARD_TITLE).order_by("pk").get()
    document.revision += 1
    document.updated_at = timezone.now()
    document.body = (
        f"Revision {document.revision}, written at {document.updated_at:%H:%M:%S} UTC.\n\n{BOARD_TEXT}"
    )
    document.save()
    return document.pk


board = Board()
