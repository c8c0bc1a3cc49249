"""Identity: whom a request is charged to, as one text that nobody can write for somebody else.

A :class:`Key` says what tells clients apart (``"user"``, ``"ip"``, ``"ip+username"``); :func:`client_ip`
says where a request came from, believing proxies that are trusted and nobody else; :func:`digest` is what
of all this leaves the process.

::

    user:7    ip:203.0.113.7    ip:2001:db8::/64    username:bob    [ip:203.0.113.7+username:bob]

Where a value is missing, the client's network stands in for it, under its own kind. A value that is too long,
or of a kind whose case matters, is there as a hash: ``api_key#5d41...``.

Reads requests of Django and of Django REST framework, and imports neither. Knows nothing of limits.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from importlib import import_module
from io import BytesIO
from typing import Any, Final, Literal

from redis_infra.conf import Peer, did_you_mean, get_settings, site_key, username_field
from redis_infra.conf import num_proxies as proxies_of_site
from redis_infra.exceptions import SettingsError
from redis_infra.keys import digest as short_digest

__all__ = ["UNKNOWN", "Key", "client_ip", "digest", "network_of", "normalise", "parse_key"]

UNKNOWN: Final = "unknown"
"""The address of a client without one: the peer of a Unix socket that nobody vouches for."""

LONGEST: Final = 512
"""Characters of a text that is normalised, which takes time with the square of its accents. The hash of a
longer one stands for it. A user name has 150 at most, an e-mail address 254."""
LONGEST_VALUE: Final = 200
"""Characters of a value that stands in an identity as it is."""
LARGEST_BODY: Final = 1024 * 1024
"""Bytes of a body that is looked into."""
MOST_PARTS: Final = 4
MOST_HOPS: Final = 32
"""Trusted proxies in a row; more of them are not looked at."""


class _FromSettings(Enum):
    FROM_SETTINGS = "from settings"

    def __repr__(self) -> str:
        return "FROM_SETTINGS"


FROM_SETTINGS: Final = _FromSettings.FROM_SETTINGS


# --- where a request came from --------------------------------------------------------------------------


def client_ip(
    request: Any,
    trusted: Sequence[Peer] | Literal[_FromSettings.FROM_SETTINGS] = FROM_SETTINGS,
    num_proxies: int | Literal[_FromSettings.FROM_SETTINGS] | None = FROM_SETTINGS,
) -> str:
    """Return the address of the client: that of the peer, unless a proxy may speak for another.

    X-Forwarded-For is walked from the right over ``trusted`` peers (TRUSTED_PROXIES); or, with Django REST
    framework's NUM_PROXIES, that many addresses are counted from the right. With both, the peer has to be
    trusted first. What is no address ends the walk at the last one that was: a text that a client made up
    is never returned. Ports, brackets and zones are stripped, IPv4 in IPv6 is IPv4.
    """
    meta = request.META
    peer = meta.get("REMOTE_ADDR") or ""
    forwarded = meta.get("HTTP_X_FORWARDED_FOR")
    if not forwarded:
        return _address(peer) or UNKNOWN
    if trusted is FROM_SETTINGS:
        trusted = get_settings().throttle.trusted_proxies
    if num_proxies is FROM_SETTINGS:
        num_proxies = proxies_of_site()
    if num_proxies is None:
        return _walk(peer, forwarded, _trust(trusted)) or UNKNOWN
    if num_proxies <= 0 or (trusted and not _trust(trusted).has_peer(peer)):
        return _address(peer) or UNKNOWN
    return _counted(peer, forwarded, num_proxies) or UNKNOWN


def network_of(address: str) -> str:
    """Return whom an address belongs to: itself, but the /64 in IPv6, of which a client has all addresses."""
    return _network(address) if ":" in address else address


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    return str(ipaddress.ip_network((address, 64), strict=False))


def _walk(peer: str, forwarded: str, trust: _Trust) -> str | None:
    """Return the first address from the right that is not trusted."""
    found = _address(peer)
    if not trust.has_peer(peer):
        return found
    for entry in reversed(forwarded.rsplit(",", MOST_HOPS)):
        address = _address(entry)
        if address is None:
            return found
        if not trust.has(address):
            return address
        found = address
    return found


def _counted(peer: str, forwarded: str, number: int) -> str | None:
    """Return the ``number``-th address from the right, or the first where there are fewer."""
    entries = forwarded.rsplit(",", number)[-number:]
    counted = _address(entries[0])
    if counted is not None:
        return counted
    found = _address(peer)
    for entry in reversed(entries):
        address = _address(entry)
        if address is None:
            break
        found = address
    return found


class _Trust:
    """Who may speak for others; remembers what it was asked."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = peers
        self._networks = [peer for peer in peers if peer != "unix"]
        self._unix = "unix" in peers
        self._known: dict[str, bool] = {}

    def has_peer(self, peer: str) -> bool:
        """Whether the other end of the connection is trusted, which in a Unix socket has no address."""
        address = _address(peer)
        if address is not None:
            return self.has(address)
        # nginx calls it "unix:", most servers say nothing.
        return self._unix and peer.strip() in ("", "unix:")

    def has(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            parsed = ipaddress.ip_address(address)
            known = any(parsed in network for network in self._networks)
            if len(self._known) >= 4096:
                self._known = {}
            self._known[address] = known
        return known


_last_trust = _Trust(())


def _trust(peers: Sequence[Peer]) -> _Trust:
    """Return the one for these peers: settings hand out the same tuple until they change."""
    global _last_trust  # replaced whole, so that it needs no lock
    trust = _last_trust
    if trust.peers is not peers:
        trust = _last_trust = _Trust(peers)
    return trust


def _address(text: str) -> str | None:
    """Return the address that a text is, in its shortest form, or None."""
    return _parsed(text) if len(text) <= 100 else None


_PORT: Final = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?|([^:\[\]]*):[0-9]{1,5}")


@lru_cache(maxsize=8192)
def _parsed(text: str) -> str | None:
    text = text.strip().strip('"')
    if split := _PORT.fullmatch(text):
        text = split[1] or split[2] or ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


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
        return (value and self.named(value)) or _network_identity(request)

    def read(self, request: Any) -> str | None:
        """Return the value as the request has it; None or empty if it has none."""
        raise NotImplementedError

    def named(self, value: str) -> str:
        """Return the identity of a value; empty if nothing is left of it."""
        return _named(self.kind, value, exact=self.exact)


def _network_identity(request: Any) -> str:
    return f"ip:{network_of(client_ip(request))}"


class _Ip(Part):
    __slots__ = ()

    def of(self, request: Any) -> str:
        return _network_identity(request)

    def named(self, value: str) -> str:
        return f"ip:{network_of(_address(value.partition('/')[0]) or UNKNOWN)}"


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
        tenant = getattr(request, "tenant", None)
        if tenant is None:
            return _text(request.META.get("HTTP_X_TENANT_ID"))
        pk = getattr(tenant, "pk", None)
        return str(tenant if pk is None else pk)


class _Session(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        session = getattr(request, "session", None)
        if session is None:
            return None
        # Loaded, because a client can make up a key and each would be a new budget: there is nothing in it.
        return _text(session.session_key) if session.keys() else None


class _Header(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        return _text(request.META.get(_variable(self.name)))


class _Field(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        return _text(_sent(request).get(self.name.partition(":")[2]))


class _Username(Part):
    __slots__ = ()

    def read(self, request: Any) -> str | None:
        sent = _sent(request)
        # Django's own form calls it username, whatever the model does.
        said = {text for name in (username_field(), "username") if (text := _text(sent.get(name)))}
        # Where they differ, one is there to lead astray, and which one the view reads is not known here.
        return said.pop() if len(said) == 1 else None


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
    sends), ``api_key``, ``tenant``, ``session``, ``global`` (one for all), ``header:X-Name``, ``field:email``
    (of a form or a JSON body), the dotted path of a function from a request to text or None; or several
    joined by ``+``. A path is imported at its first use, or by :meth:`Key.load`.

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


# --- what a client sent ---------------------------------------------------------------------------------


def _text(value: object) -> str | None:
    """Return a value of a form or of JSON as text; None if it is no single value."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else None


def _sent(request: Any) -> Mapping[str, Any]:
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
