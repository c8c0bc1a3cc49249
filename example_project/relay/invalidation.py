"""What a write makes the cache forget: by the rules of ``queries``, and by hand what is kept by hand.

Both hang on the models' signals, so the site's forms, the API and the admin all pass here, and both delete
and never update: a deleted key cannot be older than the database, in whatever order two requests finish.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models.signals import post_delete, post_save

from example_project.relay import keys, queries
from example_project.relay.content import BOARD_TITLE
from example_project.relay.models import Document
from example_project.relay.trace import cache


def connect() -> None:
    """Forget what a saved or deleted object was shown in."""
    queries.connect()
    for signal in (post_save, post_delete):
        signal.connect(forget_board, sender=Document, dispatch_uid="relay.board")


def forget_board(instance: Document, **_: object) -> None:
    """Delete the notice board's copy, once the write is committed."""
    if instance.title == BOARD_TITLE:
        transaction.on_commit(lambda: cache.delete(keys.BOARD))
