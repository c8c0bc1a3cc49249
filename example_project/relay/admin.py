"""Relay's models in Django's admin.

A change made here reaches the cache as one made on the site does: what is to be
forgotten hangs on the models' signals (``invalidation``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.http import HttpRequest

from example_project.relay.models import Document, Message, Room

if TYPE_CHECKING:
    RoomBase = admin.ModelAdmin[Room]
    MessageBase = admin.ModelAdmin[Message]
    DocumentBase = admin.ModelAdmin[Document]
else:
    RoomBase = MessageBase = DocumentBase = admin.ModelAdmin


@admin.register(Room)
class RoomAdmin(RoomBase):
    """Rooms, by name."""

    list_display = ["name", "slug", "topic"]
    search_fields = ["name", "topic"]

    def get_readonly_fields(self, request: HttpRequest, obj: Room | None = None) -> list[str]:
        """Keep the slug of a room that exists: links and cache keys are made of it."""
        return ["slug"] if obj else []


@admin.register(Message)
class MessageAdmin(MessageBase):
    """Messages, newest first."""

    list_display = ["room", "author", "created_at", "__str__"]
    list_select_related = ["room", "author"]
    raw_id_fields = ["author"]
    search_fields = ["body"]


@admin.register(Document)
class DocumentAdmin(DocumentBase):
    """Documents, last changed first."""

    list_display = ["title", "kind", "owner", "updated_at"]
    list_filter = ["kind"]
    list_select_related = ["owner"]
    raw_id_fields = ["owner"]
    search_fields = ["title"]
