"""The options of django-redis and redis-py, in terms of our settings.

A site changes over by changing one string, so every name that django-redis takes is taken here: those
that mean the same as a setting of ours become that setting, and those that can change nothing are known
with the advice that ``manage.py check`` gives. Does not import django-redis or redis-py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from redis_infra.conf.schema import Report, SharedSettings, mapping_in, read_into, unknown_name

__all__ = [
    "ACCEPTED",
    "TLS_NAMES",
    "connection_in",
    "inert_parameter",
    "left_over",
    "settings_in",
    "without_effect",
]

TLS_NAMES: Final = (
    *("ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname"),
    *("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_min_version", "ssl_ciphers"),
    *("ssl_include_verify_flags", "ssl_exclude_verify_flags"),
    *("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
)
"""What redis-py's TLS connections take."""

_SAME: Final = {"SOCKET_TIMEOUT": "COMMAND_TIMEOUT", "SOCKET_CONNECT_TIMEOUT": "CONNECT_TIMEOUT"}
_POOL_SAME: Final = {
    "socket_timeout": "COMMAND_TIMEOUT",
    "socket_connect_timeout": "CONNECT_TIMEOUT",
    "max_connections": "MAX_CONNECTIONS",
    "timeout": "POOL_WAIT",
}
_ACCESS: Final = ("username", "password", "db", "client_name", *TLS_NAMES)
_TRANSLATED: Final = (*_SAME, "USERNAME", "PASSWORD", "IGNORE_EXCEPTIONS", "CONNECTION_POOL_KWARGS")

_POOL: Final = "connections come from our own pool, which MAX_CONNECTIONS and POOL_WAIT bound"
_RETRY: Final = "what may safely be sent twice is sent again once, at once"
_BYTES: Final = "replies are bytes; SERIALIZER makes values of them"
_PROTOCOL: Final = "connections speak RESP2 and read with hiredis"
_SENTINEL: Final = "write the sentinels as a URL: redis+sentinel://host1:26379,host2:26379/service/0"
_ADDRESS: Final = "the address is LOCATION: redis://host:6379/0, rediss:// for TLS, unix:///path for a socket"
_CLIENT: Final = "raw clients are redis.Redis behind the guard that fails at once in an outage"

_INERT: Final[Mapping[str, str]] = {
    "CONNECTION_FACTORY": _POOL,
    "CONNECTION_POOL_CLASS": _POOL,
    "PARSER_CLASS": _PROTOCOL,
    "REDIS_CLIENT_CLASS": _CLIENT,
    "REDIS_CLIENT_KWARGS": _CLIENT,
    "REPLICA_READ_ONLY": "replicas are not read, the first server of LOCATION is",
    "SENTINELS": _SENTINEL,
    "SENTINEL_KWARGS": _SENTINEL,
    "LOG_IGNORED_EXCEPTIONS": "an outage is logged when it begins and when it ends, as it is",
    "MAX_ENTRIES": "a server has maxmemory; FALLBACK['max_entries'] bounds what a process keeps in an outage",
    "CULL_FREQUENCY": "a server has maxmemory-policy; FALLBACK bounds what a process keeps in an outage",
}
_POOL_INERT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("retry", "retry_on_timeout", "retry_on_error"), _RETRY),
    **dict.fromkeys(("host", "port", "path", "connection_class"), _ADDRESS),
    **dict.fromkeys(("decode_responses", "encoding", "encoding_errors", "encoder_class"), _BYTES),
    **dict.fromkeys(("protocol", "parser_class", "legacy_responses", "command_packer"), _PROTOCOL),
    **dict.fromkeys(("socket_keepalive", "socket_keepalive_options"), _POOL),
    **dict.fromkeys(("socket_read_size", "socket_type"), _POOL),
    **dict.fromkeys(("lib_name", "lib_version", "driver_info"), "client_name tells connections apart"),
    **dict.fromkeys(("queue_class", "cache", "cache_config", "cache_factory", "event_dispatcher"), _POOL),
    **dict.fromkeys(("maint_notifications_config", "redis_connect_func"), "the greeting is our own"),
    "credential_provider": "write USERNAME and PASSWORD",
    "health_check_interval": "a connection that broke is noticed when it is used, and the call is sent again",
}
_URL_INERT: Final = tuple(name for name in _POOL_INERT if name not in ("host", "port", "path"))
_BLOCKING_POOLS: Final = ("redis.BlockingConnectionPool", "redis.connection.BlockingConnectionPool")
_CLIENTS: Final = ("django_redis.client.DefaultClient", "django_redis.client.default.DefaultClient")

ACCEPTED: Final = frozenset(("CLIENT_CLASS", "CLOSE_CONNECTION", "PICKLE_VERSION", *_TRANSLATED, *_INERT))
"""The names in ``OPTIONS`` that are not our own."""


def settings_in(
    options: Mapping[str, Any], settings: SharedSettings, where: str, report: Report
) -> dict[str, Any]:
    """Return what ``options`` say of our settings, by field. A pool's arguments win, as in django-redis."""
    values = _on_outage(options, settings)
    for theirs, ours in _SAME.items():
        if options.get(theirs) is not None:
            read_into(values, ours, options[theirs], f"{where}[{theirs!r}]", report)
    where = f"{where}['CONNECTION_POOL_KWARGS']"
    for name, value in _pool_kwargs(options).items():
        label = f"{where}[{name!r}]"
        if name in _POOL_SAME:
            if value is not None:
                read_into(values, _POOL_SAME[name], value, label, report)
        elif name not in _ACCESS and name not in _POOL_INERT:
            report("name", unknown_name(label, name, (*_POOL_SAME, *_ACCESS)))
    return values


def connection_in(options: Mapping[str, Any], where: str, report: Report) -> dict[str, Any]:
    """Return what ``options`` say of user, password, database and TLS, by redis-py's names."""
    said = {name.lower(): options[name] for name in ("USERNAME", "PASSWORD") if options.get(name)}
    where = f"{where}['CONNECTION_POOL_KWARGS']"
    kwargs = mapping_in(options.get("CONNECTION_POOL_KWARGS") or {}, where, report)
    return said | {name: kwargs[name] for name in kwargs if name in _ACCESS}


def left_over(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``options`` that the client of django-redis is still to see; no password is among them."""
    return {name: value for name, value in options.items() if name in ACCEPTED and name not in _TRANSLATED}


def without_effect(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each option that changes nothing, and what to know instead."""
    for name, value in options.items():
        if value is not None and (advice := _advice(name, value, options)):
            yield name, advice
    for name in _pool_kwargs(options):
        if name in _POOL_INERT:
            yield f"CONNECTION_POOL_KWARGS['{name}']", _POOL_INERT[name]


def inert_parameter(name: str) -> str:
    """Return the advice for a parameter of a URL that redis-py takes and we do not need, or nothing."""
    return _POOL_INERT[name] if name in _URL_INERT else ""


def _on_outage(options: Mapping[str, Any], settings: SharedSettings) -> dict[str, Any]:
    """``IGNORE_EXCEPTIONS`` says whether to raise; what to do instead of raising, only we know."""
    ignore = options.get("IGNORE_EXCEPTIONS")
    if ignore is False:
        return {"on_outage": "raise"}
    return {"on_outage": "local"} if ignore is True and settings.on_outage == "raise" else {}


def _advice(name: str, value: object, options: Mapping[str, Any]) -> str:
    if name == "CONNECTION_POOL_CLASS" and value in _BLOCKING_POOLS:
        return ""  # ours waits too, for POOL_WAIT
    if name == "CLIENT_CLASS" and value not in _CLIENTS:
        return "cache.client is a DefaultClient over our own connections"
    if name == "KEY_PREFIX":
        return "the keys of a cache begin with CACHES[alias]['KEY_PREFIX'], beside OPTIONS"
    if name in _SAME and _SAME[name] in options:
        return f"{_SAME[name]} is given as well, and wins"
    return _INERT.get(name, "")


def _pool_kwargs(options: Mapping[str, Any]) -> Mapping[str, Any]:
    kwargs = options.get("CONNECTION_POOL_KWARGS")
    return kwargs if isinstance(kwargs, Mapping) else {}
