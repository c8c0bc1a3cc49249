"""Identity: whom a request is charged to, as one text that nobody can write for somebody else.

A :class:`Key` says what tells clients apart (``"user"``, ``"ip"``, ``"ip+username"``); :func:`digest` is what
of all this leaves the process.

::

    user:7    ip:203.0.113.7    ip:2001:db8::/64    username:bob    [ip:203.0.113.7+username:bob]

Where a value is missing, the client's network stands in for it, under its own kind. Where one may be there
and cannot be told (:data:`~redis_infra.throttling.sent.UNREAD`), all such requests are one,
``username?unread``: with the network in its place, a limit for an account would hold for nobody who writes
his guesses illegibly. A value that is too long, or of a kind whose case matters, is there as a hash:
``api_key#5d41...``.

Reads requests of Django and of Django REST framework, and imports neither. Knows nothing of limits.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from redis_infra.conf import did_you_mean, site_key, username_field
from redis_infra.exceptions import SettingsError
from redis_infra.keys import digest as short_digest
from redis_infra.throttling.addresses import client_ip, network_named, network_of
from redis_infra.throttling.sent import UNREAD, Unread, basic_name, text_of, text_sent

__all__ = ["Key", "digest", "normalise", "parse_key"]

LONGEST: Final = 512
"""Characters of a text that is normalised, which takes time with the square of its accents. The hash of a
longer one stands for it. A user name has 150 at most, an e-mail address 254."""
LONGEST_VALUE: Final = 200
"""Characters of a value that stands in an identity as it is."""
MOST_PARTS: Final = 4


# --- texts ----------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Return a text as it counts: without spaces around it, case, and width. Twice is as good as once.

    A text of more than ``LONGEST`` characters becomes a hash of itself.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return f"#{_hash(text)}"
    if text.isascii():
        return text.lower()
    # Folding before composing would miss what composing makes; after it, it leaves some decomposed.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    return text if len(text) <= LONGEST else f"#{_hash(text)}"


def digest(identity: str) -> str:
    """Return 32 hexadecimal digits for an identity; without SECRET_KEY nobody can tell whose it is.

    Raises:
        SettingsError: SECRET_KEY is empty.
    """
    return _digest(identity, site_key("ri-throttle"))


@lru_cache(maxsize=8192)
def _digest(identity: str, key: bytes) -> str:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16, key=key).hexdigest()


def _hash(text: str) -> str:
    return short_digest(text, 16)


def _named(kind: str, value: str, *, exact: bool) -> str:
    """Return the identity of a value; empty if nothing is left of it."""
    return _cached_name(kind, value, exact) if len(value) <= LONGEST else _name(kind, value, exact)


def _name(kind: str, value: str, exact: bool) -> str:
    value = value.strip()
    plain = value if len(value) > LONGEST else normalise(value)
    if not plain:
        return ""
    if len(plain) > LONGEST_VALUE or (exact and plain != value):
        return f"{kind}#{_hash(value if exact else plain)}"
    return f"{kind}:{plain}"


_cached_name = lru_cache(maxsize=4096)(_name)


def _joined(identities: Sequence[str]) -> str:
    """Return several identities as one, from which each could be told again."""
    text = "+".join(each.replace(_SLASH, _SLASH * 2).replace("+", _PLUS) for each in identities)
    return f"[{text}]" if len(text) < LONGEST - 1 else f"[#{_hash(text)}]"


_SLASH: Final = "\\"
_PLUS: Final = "\\+"


# --- keys -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """What tells clients apart. Made by :func:`parse_key`; hashable."""

    name: str
    """As it is written: ``"ip+username"``; of a function, its module and name."""
    parts: tuple[Part, ...] = field(repr=False)

    def of(self, request: Any) -> str:
        """Return whom a request is charged to.

        Reads ``request.user``, the session or the body only for keys that are about them. In an event loop
        user and session have to have been loaded before.
        """
        parts = self.parts
        if len(parts) == 1:
            return parts[0].of(request)
        return _joined([part.of(request) for part in parts])

    def named(self, values: str | Mapping[str, str]) -> str:
        """Return what :meth:`of` returns for a client with these values, by the names of the parts.

        A text is the value of the only part. Of an address it is the network that counts.

        Raises:
            KeyError: a part has no value.
        """
        if isinstance(values, str):
            values = {self.name: values}
        identities = [part.named(values[part.name]) for part in self.parts]
        return identities[0] if len(identities) == 1 else _joined(identities)

    def load(self) -> None:
        """Import what a dotted path names, as its first use does.

        Raises:
            SettingsError: there is no such thing, or it cannot be called.
        """
        for part in self.parts:
            if isinstance(part, _Dotted):
                _imported(part.name)


@dataclass(frozen=True, slots=True)
class Part:
    """One value of a request, or the client's network where it has none."""

    name: str
    kind: str
    """What an identity begins with."""
    exact: bool = False
    """Whether case and width of the value matter: two users may be ``aB3`` and ``ab3``."""

    def of(self, request: Any) -> str:
        value = self.read(request)
        if value is UNREAD:
            return self.unread
        return (value and self.named(value)) or _network_identity(request)

    @property
    def unread(self) -> str:
        """The identity of all requests whose value cannot be told."""
        # Not a colon or a hash, one of which is there before everything that a client can write.
        return f"{self.kind}?unread"

    def read(self, request: Any) -> str | Unread | None:
        """Return the value as the request has it; None or empty if it has none."""
        raise NotImplementedError

    def named(self, value: str) -> str:
        """Return the identity of a value; empty if nothing is left of it."""
        return _named(self.kind, value, exact=self.exact)


def _network_identity(request: Any) -> str:
    # Of Django's request: attributes that DRF's only hands on take a microsecond each.
    return f"ip:{network_of(client_ip(getattr(request, '_request', request)))}"


class _Ip(Part):
    __slots__ = ()

    def of(self, request: Any) -> str:
        return _network_identity(request)

    def named(self, value: str) -> str:
        return f"ip:{network_named(value)}"


class _Global(Part):
    __slots__ = ()

    def of(self, request: Any) -> str:
        return "global:all"

    def named(self, value: str) -> str:
        return "global:all"


class _User(Part):
    __slots__ = ()

    def of(self, request: Any) -> str:
        user = getattr(request, "user", None)
        pk = user.pk if user is not None and getattr(user, "is_authenticated", False) else None
        if pk is None:
            return _network_identity(request)
        return f"user:{pk}" if type(pk) is int else self.named(str(pk)) or _network_identity(request)


class _ApiKey(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        meta = request.META
        if own := meta.get("HTTP_X_API_KEY"):
            return str(own)
        scheme, _, credentials = meta.get("HTTP_AUTHORIZATION", "").partition(" ")
        return str(credentials) if scheme.lower() == "api-key" else None


class _Tenant(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        # What the site found out, and no header: who may write his tenant has as many budgets as he likes.
        tenant = getattr(request, "tenant", None)
        pk = getattr(tenant, "pk", None)
        return None if tenant is None else str(tenant if pk is None else pk)


class _Session(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        session = getattr(request, "session", None)
        if session is None:
            return None
        # Loaded, because a client can make up a key and each would be a new budget: there is nothing in it.
        return text_of(session.session_key) if session.keys() else None


class _Header(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        return text_of(request.META.get(_variable(self.name)))


class _Field(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | Unread | None:
        return text_sent(request, self.name.partition(":")[2])


class _Username(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | Unread | None:
        # Django's own form calls it username, whatever the model does.
        # The body first: in front of many a site stands a gate with HTTP Basic of its own, whose name is not
        # that of who logs in. Where it is the header that the view reads, a failure is charged to its name.
        return text_sent(request, username_field(), "username") or basic_name(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function(Part):
    call: Callable[[Any], Any]

    def read(self, request: Any) -> str | None:
        value = self.call(request)
        return None if value is None else str(value)


class _Dotted(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        # Not when the key is parsed: decorators are, while the module that they name is being imported.
        value = _imported(self.name)(request)
        return None if value is None else str(value)


@lru_cache(maxsize=256)
def _imported(path: str) -> Callable[[Any], Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{path!r} is not a key: it cannot be imported ({error}); {_FORMS}") from error
    if not callable(found):
        kind = type(found).__name__
        raise SettingsError(f"{path!r} is not a key: a {kind} cannot be called with a request; {_FORMS}")
    return found  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _variable(name: str) -> str:
    """Return where WSGI has the header of a key ``header:X-Name``."""
    header = name.partition(":")[2].upper().replace("-", "_")
    return header if header in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{header}"


# --- reading keys ---------------------------------------------------------------------------------------


def parse_key(key: object) -> Key:
    """Return the key that a text, or a function of the request, describes.

    ``ip``, ``user`` or ``user_or_ip`` (the network of who is not logged in), ``username`` (what a login
    sends, in its body or by HTTP Basic), ``api_key``, ``tenant`` (``request.tenant``, never a header),
    ``session``, ``global`` (one for all), ``header:X-Name``, ``field:email`` (of a form or a JSON body), the
    dotted path of a function from a request to text or None; or several joined by ``+``. A path is imported
    at its first use, or by :meth:`Key.load`.

    Raises:
        SettingsError: it is none of these; the text names it.
    """
    if isinstance(key, Key):
        return key
    if isinstance(key, str):
        return _parse(key)
    if callable(key):
        name = f"{getattr(key, '__module__', '')}.{getattr(key, '__qualname__', type(key).__qualname__)}"
        return Key(name, (_Function(name, _kind(name), call=key),))
    raise SettingsError(f"{key!r} is not a key; {_FORMS}")


@lru_cache(maxsize=1024)
def _parse(text: str) -> Key:
    parts = tuple(_part(each.strip(), text) for each in text.split("+"))
    if len({part.kind for part in parts}) < len(parts):
        raise SettingsError(f"{text!r} is not a key: two parts are the same; leave one out")
    if len(parts) > MOST_PARTS:
        raise SettingsError(f"{text!r} is not a key: it has more than {MOST_PARTS} parts; leave some out")
    return Key("+".join(part.name for part in parts), parts)


def _part(text: str, whole: str) -> Part:
    if text in _PARTS:
        return _PARTS[text]
    name = re.fullmatch(r"(header|field):([^\s:+]{1,64})", text)
    if name and name[1] == "field":
        return _Field(text, _kind(text))
    if name and re.fullmatch(r"[A-Za-z0-9-]+", name[2]):
        return _Header(text, _kind(text))
    if len(text) <= 200 and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text):
        return _Dotted(text, _kind(text))
    near = did_you_mean(text, _PARTS) if re.fullmatch(r"\w+", text) else f"; {_FORMS}"
    said = f"{text!r} of {whole!r}" if text != whole else f"{text!r}"
    raise SettingsError(f"{said} is not a key{near}")


def _kind(name: str) -> str:
    """Return what identities of a part begin with: a name that stays as it is when it is normalised."""
    kind = normalise(name)
    return kind if len(kind) <= 100 else f".{short_digest(kind)}"


_PARTS: Final[Mapping[str, Part]] = {
    "ip": _Ip("ip", "ip"),
    "user": _User("user", "user", exact=True),
    "user_or_ip": _User("user_or_ip", "user", exact=True),
    "username": _Username("username", "username"),
    "api_key": _ApiKey("api_key", "api_key", exact=True),
    "tenant": _Tenant("tenant", "tenant", exact=True),
    "session": _Session("session", "session", exact=True),
    "global": _Global("global", "global"),
}
_FORMS: Final = (
    "write 'ip', 'user', 'user_or_ip', 'username', 'api_key', 'tenant', 'session', 'global', "
    "'header:X-Name', 'field:email', the dotted path of a function of the request, or several such as "
    "'ip+username'"
)
