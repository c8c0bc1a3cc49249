"""What a client sent: the fields of a form or of a JSON body, without taking anything from the view.

Reads requests of Django and of Django REST framework; bounded, and raises for nothing that a client can send.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

__all__ = ["LARGEST_BODY", "fields_of", "text_of"]

LARGEST_BODY: Final = 1024 * 1024
"""Bytes of a body that is looked into."""


def text_of(value: object) -> str | None:
    """Return a value of a form or of JSON as text; None if it is no single value."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else None


def fields_of(request: Any) -> Mapping[str, Any]:
    """Return the fields of a form or of a JSON object; none of what cannot be read.

    Leaves the request as the view expects it: the body can be read again, and nobody has parsed it.
    """
    parsed = getattr(request, "__dict__", {}).get("_full_data")  # Django REST framework has parsed it already
    if isinstance(parsed, Mapping):
        return parsed
    request = getattr(request, "_request", request)
    if "_post" in vars(request) and request._post:
        return request._post  # type: ignore[no-any-return]
    known = vars(request).get(_SENT)
    if known is None:
        known = vars(request)[_SENT] = _read(request)
    return known  # type: ignore[no-any-return]


_SENT: Final = "_redis_infra_sent"


def _read(request: Any) -> Mapping[str, Any]:
    kind = (getattr(request, "content_type", None) or "").lower()
    parse = _form if kind in _FORM_TYPES else _json if kind.endswith(("/json", "+json")) else None
    if parse is None:
        return {}
    try:
        body = _body(request)
        found = parse(request, body) if body else {}
    except Exception:
        # Servers, Django and parsers have a dozen errors for what clients can send. Whether it is one is for
        # the view to say, which meets it again.
        return {}
    return found if isinstance(found, Mapping) else {}


_FORM_TYPES: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


def _form(request: Any, body: bytes) -> Any:
    from django.http import QueryDict
    from django.http.multipartparser import MultiPartParser

    if request.content_type == _FORM_TYPES[0]:
        return QueryDict(body, encoding="utf-8")
    # Without handlers, so that files are left out.
    return MultiPartParser(request.META, BytesIO(body), [], request.encoding).parse()[0]


def _json(request: Any, body: bytes) -> Any:
    encoding = request.encoding
    if encoding is not None and encoding.lower() not in ("utf-8", "utf8"):
        # Django REST framework goes by the charset; views that do not ask json, which looks for itself.
        with suppress(ValueError, LookupError):
            return json.loads(body.decode(encoding))
    return json.loads(body)


def _body(request: Any) -> bytes | None:
    """Return the body, if it is small enough to look into."""
    if "_body" not in vars(request) and _size(request) > LARGEST_BODY:
        return None
    body: bytes = request.body
    return body if len(body) <= LARGEST_BODY else None


def _size(request: Any) -> int:
    """Return how long a body is that has not been read: what it says, or what ASGI has received."""
    size = int(request.META.get("CONTENT_LENGTH") or 0)
    stream = getattr(request, "_stream", None)
    if stream is not None and not request._read_started and stream.seekable():
        size = max(size, stream.seek(0, os.SEEK_END))
        stream.seek(0)
    return size
