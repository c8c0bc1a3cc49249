"""What the API takes, checked. What it gives are the dicts of ``reads``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.files.uploadedfile import UploadedFile
from rest_framework import serializers

from example_project.relay.models import Document, Message

if TYPE_CHECKING:
    MessageBase = serializers.ModelSerializer[Message]
    DocumentBase = serializers.ModelSerializer[Document]
    UploadBase = serializers.Serializer[Any]
else:
    MessageBase = DocumentBase = serializers.ModelSerializer
    UploadBase = serializers.Serializer


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


class Upload(UploadBase):
    """A text file to keep as a document."""

    LARGEST = 64 * 1024

    file = serializers.FileField(max_length=100)

    def validate_file(self, file: UploadedFile[Any]) -> dict[str, str]:
        """Return title and text of the document."""
        if (file.size or 0) > self.LARGEST:
            raise serializers.ValidationError(f"The file is larger than {self.LARGEST // 1024} KB.")
        try:
            text = file.read().decode()
        except UnicodeDecodeError as error:
            raise serializers.ValidationError("This is not text in UTF-8.") from error
        return {"title": str(file.name), "body": text}

    def document(self) -> dict[str, str]:
        """Return what the document is made of."""
        made: dict[str, str] = self.validated_data["file"]
        return made
