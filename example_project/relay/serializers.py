"""What the API takes, checked. What it gives are the dicts of ``reads``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework import serializers

from example_project.relay.models import Document, Message

if TYPE_CHECKING:
    MessageBase = serializers.ModelSerializer[Message]
    DocumentBase = serializers.ModelSerializer[Document]
else:
    MessageBase = DocumentBase = serializers.ModelSerializer


class NewMessage(MessageBase):
    """Something to say in a room."""

    class Meta:
        model = Message
        fields = ["id", "body", "created_at"]
        read_only_fields = ["id", "created_at"]


class NewDocument(DocumentBase):
    """A document to keep."""

    class Meta:
        model = Document
        fields = ["id", "title", "kind", "body", "created_at"]
        read_only_fields = ["id", "created_at"]
