"""What Relay keeps in its database: rooms, what is said in them, and documents.

People are Django's own users.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone


class Room(models.Model):
    """A place where a team talks."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=60)
    topic = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Return the address of the room's page."""
        return reverse("room", args=[self.slug])


class Message(models.Model):
    """One thing that somebody said in a room."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="messages")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="messages")
    body = models.TextField(max_length=2000)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-id"]
        # A room's page asks for the newest messages before an id, a person's for their latest.
        indexes = [models.Index(fields=["room", "-id"]), models.Index(fields=["author", "-id"])]

    def __str__(self) -> str:
        return self.body[:60]


class Document(models.Model):
    """Something worth keeping that somebody wrote."""

    class Kind(models.TextChoices):
        """What sort of document it is."""

        DESIGN = "design", "Design"
        GUIDE = "guide", "Guide"
        MINUTES = "minutes", "Minutes"
        REVIEW = "review", "Incident review"
        RUNBOOK = "runbook", "Runbook"

    title = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.GUIDE)
    body = models.TextField()
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="documents")
    revision = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-updated_at", "-id"]
        indexes = [models.Index(fields=["-updated_at", "-id"])]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        """Return the address of the document's page."""
        return reverse("document", args=[self.pk])
