"""The one thing that Relay's templates do and Django's language does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from django import template

register = template.Library()

Key = TypeVar("Key")
Value = TypeVar("Value")


@register.filter
def of(mapping: Mapping[Key, Value], key: Key) -> Value | None:
    """Return what ``mapping`` has under ``key``: ``{{ people|of:message.author_id }}``."""
    return mapping.get(key)
