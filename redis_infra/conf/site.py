"""What other settings of a site mean here: its secret, its proxies, what its users log in with.

Reads Django's settings when it is asked. Does not know what is done with the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from redis_infra.exceptions import SettingsError

__all__ = ["num_proxies", "number_of_proxies", "rest_framework_settings", "site_key", "username_field"]


def site_key(purpose: str) -> bytes:
    """Return 32 bytes that only this site knows, others for each ``purpose`` (at most 16 characters, ASCII).

    Made from SECRET_KEY, once for each value of it.

    Raises:
        SettingsError: there is no SECRET_KEY, or it is empty.
    """
    try:
        secret = django_settings.SECRET_KEY
    except ImproperlyConfigured:  # how Django says that it is empty
        secret = ""
    return _site_key(secret, purpose)


@lru_cache(maxsize=64)
def _site_key(secret: str | bytes, purpose: str) -> bytes:
    if not secret:
        raise SettingsError("SECRET_KEY is empty; set it: what identifies visitors is hashed with it")
    key = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    # Twice, because BLAKE2 takes 64 bytes of key at most and a SECRET_KEY may be longer.
    short = hashlib.blake2b(key).digest()
    return hashlib.blake2b(key=short, digest_size=32, person=purpose.encode("ascii")).digest()


def num_proxies() -> int | None:
    """Return how many proxies Django REST framework was told to be behind; None where it was not."""
    return number_of_proxies(rest_framework_settings().get("NUM_PROXIES"))


def number_of_proxies(value: object) -> int | None:
    """Return what ``NUM_PROXIES`` says; None, as if nothing were said, where it is no number of proxies.

    What is wrong is for a check to say: here each request would fail. Without a number a peer is the client,
    and nobody is believed who should not be.
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def rest_framework_settings() -> Mapping[str, object]:
    """Return ``REST_FRAMEWORK`` as it is written, without importing it."""
    said = getattr(django_settings, "REST_FRAMEWORK", None)
    return said if isinstance(said, Mapping) else {}


def username_field() -> str:
    """Return the name of the user model's field with which people log in."""
    if not apps.is_installed("django.contrib.auth"):
        return "username"
    from django.contrib.auth import get_user_model

    return str(get_user_model().USERNAME_FIELD)
