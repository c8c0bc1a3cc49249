"""Who asks the API with a key in place of a session: ``Authorization: Api-Key relay_...``.

While the store of keys does not answer, nobody is let in by one, and nobody is told that theirs is wrong:
the answer is 503, and whoever has no key does not notice.
"""

from __future__ import annotations

from django.contrib.auth.models import User
from rest_framework import status
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import APIException, AuthenticationFailed
from rest_framework.request import Request

from example_project.relay import records
from example_project.relay.records import ApiKey
from redis_infra.exceptions import RedisInfraError

WORD = "Api-Key"


class RecordsAway(APIException):
    """What is kept in the store cannot be had now."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "What Relay keeps of its users cannot be read now; try again."
    default_code = "unavailable"
    wait = 1
    """Seconds, which become ``Retry-After``."""


class ApiKeyAuthentication(BaseAuthentication):
    """Signs in the owner of the key; ``request.auth`` is the :class:`ApiKey`."""

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        """Return who it is; None where there is no such header, for others to look."""
        key = _shown(request)
        if key is None:
            return None
        try:
            used = records.use_key(key)
        except RedisInfraError as error:
            raise RecordsAway from error
        owner = User.objects.filter(pk=used.owner, is_active=True).first() if used else None
        if used is None or owner is None:
            raise AuthenticationFailed("This API key is unknown, expired or revoked.")
        return owner, used

    def authenticate_header(self, request: Request) -> str | None:
        """Ask for a key, 401, who has shown one; of anybody else a session is wanted, 403."""
        return None if _shown(request) is None else WORD


def _shown(request: Request) -> str | None:
    word, _, key = get_authorization_header(request).decode("latin-1").partition(" ")
    return key.strip() if word.lower() == WORD.lower() else None
