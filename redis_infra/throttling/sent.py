"""What a client sent: the fields of its body, and the name in its Authorization, as a view may see them.

A body can often be read in more ways than one: Django takes a form for a form, Django REST framework takes
``*/*`` for whatever its first parser takes, a view may give any body to json. Which of them the view will use
is not known here. So a value is known where all readings agree; where they do not, or where a body is there
that nothing here reads, it is :data:`UNREAD`, which is not the same as not sent.

Reads requests of Django and of Django REST framework, takes nothing from the view, is bounded in bytes and
time, and raises for nothing that a client can send.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from typing import Any, Final, Literal, TypeAlias

__all__ = ["LARGEST_BODY", "MOST_PARTS", "UNREAD", "Unread", "basic_name", "text_of", "text_sent"]

LARGEST_BODY: Final = 128 * 1024
"""Bytes of a body that is looked into. Who has been denied makes us look, too: the worst body of this length
(``a=%41%41...``, ``[1e9,1e9,...]``) takes 8 ms, and 28 where type and charset ask for four readings; one of a
megabyte took 98 in one reading."""
MOST_PARTS: Final = 32
"""Parts of a multipart body that is looked into. The worst 32 (headers of nothing but parameters) take 18 ms;
without this bound 128 KB took 50, and a megabyte 564. A file is one part, and costs next to nothing."""


class _Unread(Enum):
    UNREAD = "unread"

    def __repr__(self) -> str:
        return "UNREAD"


Unread: TypeAlias = Literal[_Unread.UNREAD]
UNREAD: Final = _Unread.UNREAD
"""In place of a value: there may be one, and the view may read another than we would."""


def text_of(value: object) -> str | None:
    """Return a value of a form or of JSON as text; None if it is no single value."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else None


def text_sent(request: Any, *names: str) -> str | Unread | None:
    """Return the value of the fields ``names`` of a form or of a JSON object; None where none is sent.

    ``UNREAD`` where they differ, where the ways to read the body do, where a value is a list, an object or a
    file (whose name a database takes for its text), and where the body cannot be read. Leaves the request as
    the view expects it: the body can be read again, and nobody has parsed it.
    """
    sent = _sent(request)
    values = [value for reading in sent.readings for name in names for value in _values(reading, name)]
    texts = {text_of(value) for value in values if value is not None and value != ""}
    if not sent.certain or None in texts or len(texts) > 1:
        return UNREAD
    return texts.pop() if texts else None


def _values(reading: Mapping[str, Any], name: str) -> Iterable[Any]:
    """Return all values of a field: Django has the last of a form, and a view may ask for the first."""
    getlist = getattr(reading, "getlist", None)
    return [reading.get(name)] if getlist is None else getlist(name)


def basic_name(request: Any) -> str | Unread | None:
    """Return the name in ``Authorization: Basic``, as Django REST framework reads it; None without one."""
    try:
        scheme, *rest = request.META.get("HTTP_AUTHORIZATION", "").encode("iso-8859-1").split() or [b""]
        if scheme.lower() != b"basic":
            return None
        (credentials,) = rest
        name, colon, _ = _decoded(base64.b64decode(credentials)).partition(":")
    except ValueError:  # of characters, of words, of base64
        return UNREAD
    return name if colon else UNREAD


def _decoded(credentials: bytes) -> str:
    try:
        return credentials.decode("utf-8")
    except UnicodeDecodeError:
        return credentials.decode("iso-8859-1")


# --- the ways to read a body ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sent:
    readings: tuple[Mapping[str, Any], ...] = ()
    certain: bool = True
    """Whether a view sees one of the readings, or nothing that has fields."""


_NOTHING: Final = _Sent()
_UNREADABLE: Final = _Sent(certain=False)
_KEPT: Final = "_redis_infra_sent"


def _sent(request: Any) -> _Sent:
    parsed = getattr(request, "__dict__", {}).get("_full_data")
    if parsed is not None and not isinstance(parsed, type):  # a class stands for "not yet"
        # Django REST framework has parsed it, and that is what the view reads.
        return _Sent((parsed,)) if isinstance(parsed, Mapping) else _NOTHING
    request = getattr(request, "_request", request)
    kept = vars(request)
    known: _Sent | None = kept.get(_KEPT)
    if known is None:
        try:
            known = _read(request)
        except Exception:
            # Servers, Django and parsers have a dozen errors for what clients can send. Whether it is one is
            # for the view to say, which meets it again.
            known = _UNREADABLE
        kept[_KEPT] = known
    return known


def _read(request: Any) -> _Sent:
    kept = vars(request)
    post = kept.get("_post")
    if "_body" not in kept:
        size = _size(request)
        if getattr(request, "_read_started", False):
            # As a stream: by Django, into a form, or by somebody else, into we do not know what.
            files = kept.get("_files")
            if post or files:
                return _Sent((post or {}, files or {}))
            return _UNREADABLE if size else _NOTHING
        if size == 0:
            return _Sent((post,)) if post else _NOTHING
        if size > LARGEST_BODY:
            return _UNREADABLE
    body: bytes = request.body
    if not body:
        return _NOTHING
    return _looked_into(request, body, post) if len(body) <= LARGEST_BODY else _UNREADABLE


def _size(request: Any) -> int:
    """Return how long a body is that is not in memory: what it says, or what ASGI has received."""
    size = int(request.META.get("CONTENT_LENGTH") or 0)
    stream = getattr(request, "_stream", None)
    if stream is not None and stream.seekable():
        place = stream.tell()
        size = max(size, stream.seek(0, os.SEEK_END))
        stream.seek(place)
    return size


def _looked_into(request: Any, body: bytes, post: Mapping[str, Any] | None) -> _Sent:
    charset = _charset(request)
    if charset is None or request.META.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        return _UNREADABLE
    kind = (request.content_type or "").lower()
    values = list(_json_values(body, charset))
    objects = [value for value in values if isinstance(value, Mapping)]
    # Where Django has parsed the form, or the site has put something in its place, that is what a view sees.
    forms = [post, vars(request).get("_files", {})] if post else list(_forms(request, body, kind, charset))
    # Another type than these may be read by a parser that we do not have; a JSON object is one whatever its
    # type says.
    certain = bool(objects or (values and _is_json(kind)) or (forms and (post or kind in _FORM_TYPES)))
    return _Sent((*objects, *forms), certain)


_FORM: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"
_FORM_TYPES: Final = (_FORM, _MULTIPART)
_SLOW: Final = ("punycode", "idna")
"""Charsets that take time with the square of the length: 256 KB of the first 150 ms."""


def _is_json(kind: str) -> bool:
    return kind.endswith(("/json", "+json"))


def _charset(request: Any) -> str | None:
    """Return the charset by which Django REST framework decodes; None if it is none of text, or too slow."""
    from django.conf import settings

    charset: str = request.encoding or settings.DEFAULT_CHARSET
    try:
        # Unlike a stream reader, this refuses codecs from bytes to bytes: base64, zlib, which would inflate.
        "".encode(charset)
    except (LookupError, UnicodeError):
        return None
    return None if codecs.lookup(charset).name in _SLOW else charset


def _json_values(body: bytes, charset: str) -> Iterator[Any]:
    """Yield what json takes the body for by itself, and by the charset, as Django REST framework does.

    Raises:
        RecursionError: it is nested too deep, here; a view may stand elsewhere.
    """
    is_read = False
    with suppress(ValueError):
        yield json.loads(body)
        is_read = True
    if not is_read or codecs.lookup(charset).name != "utf-8":
        # A reader and not decode(), which minds half a character at the end.
        with suppress(ValueError):
            yield json.loads(codecs.getreader(charset)(BytesIO(body)).read())


def _forms(request: Any, body: bytes, kind: str, charset: str) -> Iterator[Mapping[str, Any]]:
    from django.http import QueryDict

    if _is_like(kind, _FORM):
        # Django reads by UTF-8 whatever is said, and Django REST framework by the charset.
        for encoding in dict.fromkeys(("utf-8", charset)):
            yield QueryDict(body, encoding=encoding)
    elif _is_like(kind, _MULTIPART) and kind.startswith("multipart/"):
        yield from _parts(request, body, charset)


def _parts(request: Any, body: bytes, charset: str) -> Iterator[Mapping[str, Any]]:
    from django.http.multipartparser import MultiPartParser, MultiPartParserError

    boundary = str((request.content_params or {}).get("boundary", ""))
    count = body.count(b"--" + boundary.encode())
    if not 0 < count <= MOST_PARTS + 1:
        raise ValueError("no part, or more than are looked into")
    files = _FileNames()
    with suppress(MultiPartParserError):
        yield MultiPartParser(request.META, BytesIO(body), [files], charset).parse()[0]
        yield files.seen


class _FileNames:
    """Handles uploads for Django's parser: notes which fields are files, and keeps none of them."""

    chunk_size: Final = 64 * 1024

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}

    def new_file(self, field_name: str, *_: object) -> None:
        from django.core.files.uploadhandler import SkipFile

        self.seen[field_name] = self
        raise SkipFile

    def handle_raw_input(self, *_: object) -> None:
        """Leave it to the parser."""

    def upload_interrupted(self) -> None: ...

    def upload_complete(self) -> None: ...


def _is_like(kind: str, form: str) -> bool:
    """Whether Django REST framework takes a type, which may have asterisks, for that of a form."""
    pairs = zip(kind.partition("/"), form.partition("/"), strict=True)
    return all(said in ("*", known) for said, known in pairs)
