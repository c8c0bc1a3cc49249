"""What it takes to reach one Redis: a URL and settings, read into one frozen value that shows no password.

Opens and resolves nothing and does not import redis-py. Whether the server is the right one, whoever
connects finds out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from redis_infra.conf import AliasSettings, did_you_mean, read_setting, redact_url
from redis_infra.conf.django_redis import TLS_NAMES, inert_parameter
from redis_infra.conf.readers import url as read_url
from redis_infra.exceptions import SettingsError

__all__ = ["ConnectionOptions", "inert_parameters", "unsupported"]

_SCHEMES: Final = {
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
}
_ENCODE: Final = "in user and password write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %25 for %"
_PARAMETERS: Final = {
    "socket_timeout": "COMMAND_TIMEOUT",
    "socket_connect_timeout": "CONNECT_TIMEOUT",
    "max_connections": "MAX_CONNECTIONS",
    "timeout": "POOL_WAIT",
}
_NAMES: Final = ("username", "password", "db", "client_name")
_SENTINEL_NAMES: Final = ("sentinel_username", "sentinel_password")
_CERT_REQS: Final = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """One server (or group of servers), user and database, and how long to wait for it. Seconds.

    Hashable; equal options can share connections. Its ``repr`` and ``label`` show no password, and
    ``server`` and ``database`` contain none.
    """

    scheme: str
    """``redis``, ``rediss``, ``unix``, ``embedded``, ``memory``, ``sentinel`` or ``cluster``."""
    host: str = ""
    port: int = 0
    path: str = ""
    """The socket of ``unix``; the directory or name after ``embedded://`` and ``memory://``."""
    nodes: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of ``sentinel`` and ``cluster``."""
    service: str = ""
    """What the sentinels call the primary."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    client_name: str = ""
    connect_timeout: float = 0.25
    command_timeout: float = 0.25
    max_connections: int = 50
    pool_wait: float = 0.05
    tls: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    """Names and values for redis-py's ``SSLConnection``; one of them may be a key's password."""

    @classmethod
    def from_url(cls, url: str, **defaults: Any) -> ConnectionOptions:
        """Return the options that ``url`` describes.

        ``defaults`` are fields and redis-py's ``ssl_*`` names; what the URL says itself wins over them, as
        in redis-py and django-redis. User and password are percent-decoded.

        Raises:
            SettingsError: the URL is wrong in any part, or of a kind that serves no cache; the text shows
                neither password nor what may be a piece of one.
        """
        text = read_url(url, "URL")
        parts = _split(text)
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        # The address before the query: with half a password for a port, the query is the other half.
        address = _ADDRESSES[scheme](parts, text)
        said = _defaults(defaults) | address | _parameters(parts, text) | _access(parts)
        tls = tuple(sorted((name, said.pop(name)) for name in TLS_NAMES if name in said))
        if tls and scheme in ("redis", "unix"):
            raise _wrong(text, f"{tls[0][0]} is given, but the connection is not encrypted; write rediss://")
        if scheme == "cluster" and said.get("db"):
            raise _wrong(text, "a cluster has database 0 alone; leave the number out")
        return cls(scheme=scheme, tls=tls, **said)

    @classmethod
    def from_settings(cls, settings: AliasSettings) -> ConnectionOptions:
        """Return the options of a cache alias.

        Raises:
            SettingsError: the URL is wrong (the text says where it comes from), or names something that
                cannot serve a cache yet.
        """
        if reason := unsupported(settings):
            raise SettingsError(reason)
        timing = {name: getattr(settings, name) for name in _FROM_SETTINGS}
        try:
            return cls.from_url(settings.source.url, **timing, **settings.connection)
        except SettingsError as error:
            raise SettingsError(f"{error} (from {settings.source.reason})") from None

    @property
    def server(self) -> str:
        """What tells this server from others: no user, password or database is in it."""
        return f"{self._prefix}{self._address}{self._service}"

    @property
    def database(self) -> str:
        """What tells this user's database from others: the server, user and number; no password."""
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        return f"{self._prefix}{user}{self._address}{self._service}{self._number}"

    @property
    def keyspace(self) -> str:
        """What tells these keys from others: the server and the number, whoever the user is."""
        return f"{self._prefix}{self._address}{self._service}{self._number}"

    @property
    def label(self) -> str:
        """The whole for people, its password as three stars."""
        user = quote(self.username or "", safe="") + (":***" if self.password else "")
        at = "@" if user else ""
        return f"{self._prefix}{user}{at}{self._address}{self._service}{self._number}"

    @property
    def _prefix(self) -> str:
        return f"redis+{self.scheme}://" if self.nodes else f"{self.scheme}://"

    @property
    def _address(self) -> str:
        if self.nodes:
            return ",".join(_joined(host, port) for host, port in self.nodes)
        return _joined(self.host, self.port) if self.host else self.path

    @property
    def _service(self) -> str:
        return f"/{quote(self.service, safe='')}" if self.service else ""

    @property
    def _number(self) -> str:
        if self.scheme in ("memory", "embedded", "cluster"):
            return ""
        return f"?db={self.db}" if self.scheme == "unix" else f"/{self.db}"


_FIELDS: Final = frozenset(item.name for item in fields(ConnectionOptions))
_FROM_SETTINGS: Final = ("connect_timeout", "command_timeout", "max_connections", "pool_wait")


def unsupported(settings: AliasSettings) -> str:
    """Return why these settings cannot serve a cache yet, or nothing."""
    scheme = settings.source.url.partition("://")[0].lower()
    kind = {
        "https": "a REST API",
        "file": "a file",
        "redis+sentinel": "Redis Sentinel",
        "redis+cluster": "Redis Cluster",
    }.get(scheme, "Redis Sentinel" if "SENTINELS" in settings.options and scheme != "memory" else "")
    if not kind:
        return ""
    return (
        f"{kind} is not supported yet for caches (from {settings.source.reason}); "
        "give the alias a LOCATION such as 'redis://localhost:6379/0', or 'memory://'"
    )


def inert_parameters(url: str) -> Iterable[tuple[str, str]]:
    """Yield each query parameter that redis-py takes and that changes nothing here, and what to know."""
    for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if advice := inert_parameter(name):
            yield name, advice


# --- the parts of a URL ---------------------------------------------------------------------------------


def _wrong(text: str, problem: str) -> SettingsError:
    return SettingsError(f"{redact_url(text)!r}: {problem}")


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError:  # the reason may quote the password: "Invalid IPv6 URL", "... is not an address"
        raise _wrong(text, f"not a URL; an IPv6 address goes in brackets, and {_ENCODE}") from None
    if parts.fragment:
        raise _wrong(text, f"not a URL; {_ENCODE}")
    return parts


def _access(parts: SplitResult) -> dict[str, str]:
    userinfo, at, _ = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    said = {"username": unquote(username), "password": unquote(password)} if at else {}
    return {name: value for name, value in said.items() if value}


def _defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in defaults.items():
        if name not in _FIELDS and name not in TLS_NAMES:
            raise TypeError(f"{name} is not a connection option{did_you_mean(name, _FIELDS)}")
        if value is not None or name == "ssl_cert_reqs":  # None: verify nothing
            said[name] = _parameter(name, value, name) if name in (*_NAMES, *TLS_NAMES) else value
    return said


def _parameters(parts: SplitResult, text: str) -> dict[str, Any]:
    """Return what the query says, by field or redis-py's name for TLS."""
    known = (*_PARAMETERS, *_NAMES, *TLS_NAMES, *(_SENTINEL_NAMES if "sentinel" in parts.scheme else ()))
    said: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in known:
            target = _PARAMETERS.get(name, name).lower()
            said.setdefault(target, _parameter(name, value, f"{name} in the URL"))
        elif not inert_parameter(name):
            raise _unknown_parameter(name, known, parts)
    return said


def _unknown_parameter(name: str, known: Iterable[str], parts: SplitResult) -> SettingsError:
    # What looks like no parameter may be the rest of a password with an unencoded "?" in it.
    if "@" in parts.query:
        return _wrong(parts.geturl(), f"what follows the ? is not name=value; {_ENCODE}")
    text = parts._replace(query="").geturl()
    if re.fullmatch(r"[a-z_]{1,40}", name):
        return _wrong(text, f"{name!r} is not a parameter{did_you_mean(name, known)}")
    return _wrong(text, f"what follows the ? is not name=value; {_ENCODE}")


def _parameter(name: str, value: Any, label: str) -> Any:
    if name in _PARAMETERS:
        return read_setting(_PARAMETERS[name], value, label=label)
    if name == "db":
        return _database(value, label)
    if name in TLS_NAMES:
        return _tls(name, value, label)
    if not isinstance(value, str):
        raise SettingsError(f"{label}: a {type(value).__name__} is not text; write it as text")
    if name == "client_name" and not re.fullmatch(r"[!-~]+", value):  # as CLIENT SETNAME has it
        raise SettingsError(f"{label}: {value!r} cannot name a connection; write it without spaces, in ASCII")
    return value


def _database(value: Any, label: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise SettingsError(f"{label}: the database is not a number; write one such as 0")
    return int(value)


def _tls(name: str, value: Any, label: str) -> Any:
    """Return a TLS option as redis-py takes it, and hashable."""
    if name == "ssl_cert_reqs":
        return _cert_reqs(value, label)
    if name == "ssl_min_version" and isinstance(value, str) and value.isdecimal():
        return int(value)
    if name in ("ssl_check_hostname", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled"):
        return _boolean(value, label)
    return tuple(value) if isinstance(value, list) else value


def _cert_reqs(value: Any, label: str) -> str:
    # Celery's URLs say CERT_NONE, redis-py's none, code says ssl.CERT_NONE or None.
    name = getattr(value, "name", None) or ("none" if value is None else str(value))
    name = _CERT_REQS.get(name.upper(), name.lower())
    if name not in _CERT_REQS.values():
        raise SettingsError(f"{label}: {value!r} is not a choice{did_you_mean(name, _CERT_REQS.values())}")
    return str(name)


def _boolean(value: Any, label: str) -> bool:
    if str(value).lower() in ("1", "true", "yes", "t", "y"):
        return True
    if str(value).lower() in ("0", "false", "no", "f", "n"):
        return False
    raise SettingsError(f"{label}: {value!r} is neither yes nor no; write true or false")


# --- addresses ------------------------------------------------------------------------------------------


def _tcp(parts: SplitResult, text: str) -> dict[str, Any]:
    netloc = parts.netloc.rpartition("@")[2]
    host, port = _node(netloc, 6379, text)
    return {"host": host, "port": port, **_database_in(parts.path, text)}


def _unix(parts: SplitResult, text: str) -> dict[str, Any]:
    path = unquote(parts.path)
    if parts.netloc.rpartition("@")[2] or len(path) < 2:
        raise _wrong(text, "the socket's path is missing; write unix:///path/to/redis.sock?db=0")
    return {"path": path}


def _local(parts: SplitResult, text: str) -> dict[str, Any]:
    return {"path": unquote(parts.netloc.rpartition("@")[2] + parts.path)}


def _sentinel(parts: SplitResult, text: str) -> dict[str, Any]:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise _wrong(text, "the service is missing; write redis+sentinel://host1:26379,host2:26379/service/0")
    nodes = _nodes(parts, 26379, text)
    return {"nodes": nodes, "service": unquote(service), **_database_in(database, text)}


def _cluster(parts: SplitResult, text: str) -> dict[str, Any]:
    return {"nodes": _nodes(parts, 6379, text), **_database_in(parts.path, text)}


def _other(parts: SplitResult, text: str) -> dict[str, Any]:
    raise _wrong(text, f"{parts.scheme}:// is not supported yet for caches; write redis://host:6379/0")


_ADDRESSES: Final = {
    "redis": _tcp,
    "rediss": _tcp,
    "unix": _unix,
    "memory": _local,
    "embedded": _local,
    "sentinel": _sentinel,
    "cluster": _cluster,
    "https": _other,
    "file": _other,
}


def _nodes(parts: SplitResult, port: int, text: str) -> tuple[tuple[str, int], ...]:
    netloc = parts.netloc.rpartition("@")[2]
    return tuple(_node(node, port, text) for node in netloc.split(","))


def _node(netloc: str, default_port: int, text: str) -> tuple[str, int]:
    """Read ``host``, ``host:port``, ``:port``, ``[::1]:port``; the host is localhost where there is none."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%[\w.%-]+)?\]|[\w.%-]*)(?::([0-9]*))?", netloc)
    if match is None:
        raise _wrong(text, f"host and port cannot be read; write host:6379 or [::1]:6379, and {_ENCODE}")
    port = int(match[2] or default_port)
    if not 0 < port < 65536:
        raise _wrong(text, "the port is not one; write a number from 1 to 65535")
    return unquote(match[1].strip("[]")).lower() or "localhost", port


def _database_in(path: str, text: str) -> dict[str, int]:
    number = path.strip("/")
    if number and not re.fullmatch(r"[0-9]{1,9}", number):
        raise _wrong(text, f"the database after the host is not a number; write /0, and {_ENCODE}")
    return {"db": int(number)} if number else {}


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
