"""What a write makes the cache forget.

Connected to the models' signals, so the site's forms, the API and the admin all
pass here. It deletes and never updates: a deleted key cannot be older than the
database, in whatever order two requests finish.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from example_project.relay import keys
from example_project.relay.models import Document, Message, Room
from example_project.relay.trace import cache


def connect() -> None:
    """Forget what a saved or deleted object was shown in."""
    for model in (Room, Message, Document, User):
        for signal in (post_save, post_delete):
            signal.connect(forget, sender=model, dispatch_uid=f"relay.{model.__name__}")


def forget(sender: type[Model], instance: Model, *, created: bool = False, **_: object) -> None:
    """Delete, once the write is committed, every key that shows ``instance``."""
    names = [*_keys_of(instance, created=created), keys.STATISTICS]
    transaction.on_commit(partial(cache.delete_many, names))


def _keys_of(instance: Model, *, created: bool) -> Iterable[str]:
    match instance:
        case Message():
            return _message(instance, created=created)
        case Document():
            return [keys.document(instance.pk), keys.DOCUMENTS_EDITION, keys.profile(instance.owner_id)]
        case User():
            return [keys.person(instance.pk), keys.username(instance.username), keys.profile(instance.pk)]
        case Room():
            return [keys.ROOM_SLUGS, keys.room(instance.slug)]
    return []


def _message(message: Message, *, created: bool) -> list[str]:
    slug = message.room.slug
    names = [keys.room(slug), keys.latest(slug), keys.ACTIVITY, keys.profile(message.author_id)]
    # A new message changes no page of older ones; an edited or removed one may be on any of them.
    return names if created else [*names, keys.room_edition(slug)]
