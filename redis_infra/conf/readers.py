"""One reader for each kind of value that a setting can have, and the words that refuse a wrong one.

A reader takes the value and the name by which the user knows it, and returns what the code works with.
Does not know which settings there are.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from redis_infra.durations import parse_duration, parse_size
from redis_infra.exceptions import SettingsError

__all__ = [
    "DEFAULT_RATES",
    "SCHEMES",
    "Peer",
    "count",
    "did_you_mean",
    "directory",
    "format_name",
    "headers",
    "ipv6_prefix",
    "on_outage",
    "optional_alias",
    "optional_format",
    "optional_path",
    "optional_store_url",
    "optional_token",
    "optional_url",
    "peers",
    "policies",
    "prefix",
    "rates",
    "redact_url",
    "response",
    "rest_url",
    "room",
    "routes",
    "signed",
    "size",
    "store_fallback",
    "store_provider",
    "switch",
    "throttle_on_outage",
    "timeout",
    "url",
    "wait",
]

SCHEMES: Final = (
    *("redis", "rediss", "valkey", "valkeys", "unix", "redis+sentinel", "redis+cluster"),
    *("memory", "embedded", "https", "file"),
)
"""What a URL may begin with."""

DEFAULT_RATES: Final[Mapping[str, str | None]] = MappingProxyType(
    {"chat": "20/min", "auth": "5/15min", "upload": "5/min", "search": "30/min"}
)
"""The rates that there are where a site says nothing."""

Peer: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]
"""Who may be on the other end of a connection: a network, or whoever may open the Unix socket."""

STORE_PROVIDERS: Final = ("redis", "upstash", "memory", "file")
"""What can keep a key-value store; or the dotted path of a site's own."""

_DAY: Final = 86400.0
_ON_OUTAGE: Final = ("local", "miss", "raise")
_THROTTLE_ON_OUTAGE: Final = ("host", "deny", "allow")

_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_SCHEME: Final = re.compile(r"[\w+.-]+://")
# What follows the first colon of an address where it is no port: "redis://:secret", the host forgotten.
_NO_PORT: Final = re.compile(r"(?s)^((?>\[[^\]]*\]|[^:/?#,]*)):(?!\d+(?:[/?#,]|$)).*")
_SECRET: Final = re.compile(r"(?i)(\w*(?:pass|pwd|secret|token|auth)\w*=)[^&#\s]*")


def wait(value: Any, name: str) -> float:
    """Read seconds that may be none. At most a day: ``settimeout`` overflows, and nobody waits longer."""
    seconds = parse_duration(value, name=name)
    if seconds > _DAY:
        raise SettingsError(f"{name}: {value!r} is longer than a day; write a duration such as '250ms'")
    return seconds


def timeout(value: Any, name: str) -> float:
    """Read seconds, more than none."""
    seconds = wait(value, name)
    if seconds == 0:
        raise SettingsError(f"{name}: {value!r} leaves no time; write a duration above zero such as '250ms'")
    return seconds


def count(value: Any, name: str) -> int:
    """Read a whole number above zero, also as text (environment variables are)."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise SettingsError(f"{name}: {value!r} is not a whole number above zero; write one such as 50")
    return number


def size(value: Any, name: str) -> int:
    """Read bytes that may be none."""
    return parse_size(value, name=name)


def room(value: Any, name: str) -> int:
    """Read bytes, more than none."""
    number = parse_size(value, name=name)
    if number == 0:
        raise SettingsError(f"{name}: {value!r} leaves no room; write a size above zero such as '16mb'")
    return number


def on_outage(value: Any, name: str) -> str:
    return _choice(value, name, _ON_OUTAGE)


def throttle_on_outage(value: Any, name: str) -> str:
    return _choice(value, name, _THROTTLE_ON_OUTAGE)


def _choice(value: Any, name: str, choices: Iterable[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise SettingsError(f"{name}: {value!r} is not a choice{did_you_mean(value, choices)}")


def signed(value: Any, name: str) -> bool | Literal["migrate"]:
    if isinstance(value, bool):
        return value
    if value == "migrate":
        return "migrate"
    raise SettingsError(f"{name}: {value!r} is not a choice; write True, False or 'migrate'")


def format_name(value: Any, name: str) -> str:
    """Read the name of a serializer. Which there are, the codec knows; it refuses a wrong one."""
    if isinstance(value, str) and value:
        return value
    raise SettingsError(f"{name}: {value!r} is not a name; write a short name or a dotted path, as text")


def optional_format(value: Any, name: str) -> str | None:
    """Read the name of a compressor, or None."""
    return None if value is None or value == "" else format_name(value, name)


def prefix(value: Any, name: str) -> str:
    """Read what leads keys. Braces are hash tags to Redis Cluster: they would put every key on one node."""
    if isinstance(value, str) and re.fullmatch(r"[^\s{}]{1,64}", value):
        return value
    raise SettingsError(f"{name}: {value!r} cannot lead a key; write 1 to 64 characters, no space, no brace")


def directory(value: Any, name: str) -> str | None:
    """Read an absolute path, ``"auto"``, or None."""
    if value is None or value == "auto":
        return value  # type: ignore[no-any-return]
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if isinstance(path, str) and os.path.isabs(path):
        return path
    raise SettingsError(f"{name}: {value!r} is not an absolute path; write one, 'auto', or None for memory")


def url(value: Any, name: str) -> str:
    """Read a URL of one of the ``SCHEMES``; what follows the scheme is ``connection.options``' to judge."""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise SettingsError(f"{name}: a {kind} is not a URL; write text such as 'redis://localhost:6379/0'")
    scheme, mark, _ = value.strip().partition("://")
    if mark and scheme.lower() in SCHEMES:
        return value.strip()
    remedy = did_you_mean(scheme, SCHEMES) if mark else "; write one such as 'redis://localhost:6379/0'"
    raise SettingsError(f"{name}: {redact_url(value)!r} is not a URL of a known scheme{remedy}")


def optional_url(value: Any, name: str) -> str | None:
    return None if value is None or value == "" else url(value, name)


def rest_url(value: Any, name: str) -> str:
    """Read where a REST API is: the token goes there with every request, so not in the clear."""
    text = value.strip().rstrip("/") if isinstance(value, str) else ""
    shown = redact_url(text) if text else f"a {type(value).__name__}"
    if problem := _problem_of_rest_url(text):
        value = text = ""  # a token may be in it, and reports of errors show variables
        raise SettingsError(f"{name}: {shown!r} {problem}")
    return text


def _problem_of_rest_url(text: str) -> str:
    host = re.fullmatch(r"(?i)https?://(?:[^@/]*@)?(\[[^\]]+\]|[^:/?#@]+)(:[0-9]{1,5})?(/[^?#]*)?", text)
    if host is None:
        return "is not the URL of a REST API; write https://host"
    if text[:6].lower() != "https:" and not _is_loopback(host[1].strip("[]")):
        return "would send the token in the clear; write https:// (http:// is for a server on this machine)"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def optional_store_url(value: Any, name: str) -> str | None:
    """Read where a key-value store is: a URL, or the http:// of a REST API on this machine."""
    if isinstance(value, str) and value.strip().lower().startswith(("http://", "https://")):
        return rest_url(value, name)
    return optional_url(value, name)


def store_provider(value: Any, name: str) -> str | None:
    """Read what keeps a key-value store: a provider's name, a dotted path, or None."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and (value in STORE_PROVIDERS or _DOTTED.fullmatch(value)):
        return value
    remedy = f"{did_you_mean(value, STORE_PROVIDERS)} (or the dotted path of a KVStore)"
    raise SettingsError(f"{name}: {value!r} is not a provider{remedy}")


def store_fallback(value: Any, name: str) -> str | None:
    return None if value is None or value == "" else _choice(value, name, ("memory",))


def optional_path(value: Any, name: str) -> str | None:
    """Read an absolute path, or None."""
    if value is None or value == "":
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if isinstance(path, str) and os.path.isabs(path):
        return path
    raise SettingsError(f"{name}: {value!r} is not an absolute path; write one such as '/var/lib/site/kv.db'")


def optional_token(value: Any, name: str) -> str | None:
    """Read a token. Spaces and line ends around it come from copying, and would make it another one."""
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    raise SettingsError(f"{name}: a {type(value).__name__} is not a token; write it as text")


def optional_alias(value: Any, name: str) -> str | None:
    """Read the name of a cache alias, or None. Whether there is such an alias, who uses it finds out."""
    if value is None or isinstance(value, str):
        return value or None
    raise SettingsError(f"{name}: {value!r} is not the name of a cache alias; write a key of CACHES, or None")


def rates(value: Any, name: str) -> Mapping[str, str | None]:
    """Read rates by scope, and lay them over the default ones. What a rate means, throttling knows."""
    said = _names(value, name, '{"chat": "20/min"}')
    for scope, rate in said.items():
        if rate is not None and not isinstance(rate, str):
            label = f"{name}[{scope!r}]"
            raise SettingsError(f"{label}: {rate!r} is not a rate; write text such as '20/min', or None")
    return MappingProxyType({**DEFAULT_RATES, **said})


def policies(value: Any, name: str) -> Mapping[str, str | list[Any] | Mapping[str, Any]]:
    """Read policies by name. What is in one, throttling knows."""
    said = _names(value, name, '{"chat": "20/min"}')
    for policy, content in said.items():
        if not isinstance(content, str | list | tuple | Mapping):
            raise SettingsError(
                f"{name}[{policy!r}]: {content!r} is not a policy; write a rate, a list of limits, "
                "or {'limits': [('5/15min', 'ip')], 'on_outage': 'deny'}"
            )
    return MappingProxyType(dict(said))


def _names(value: Any, name: str, example: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name}: a {type(value).__name__} is not a dictionary; write {example}")
    for each in value:
        if not _is_text(each):
            raise SettingsError(f"{name}: {each!r} is not a name; write text, as in {example}")
    return value


def routes(value: Any, name: str) -> tuple[tuple[str, str | None], ...]:
    """Read an ordered table from routes to policies: a list of pairs, or a dictionary. None exempts."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    example = '[("POST /api/auth/", "auth")]'
    if not isinstance(pairs, list | tuple):
        raise SettingsError(f"{name}: a {type(value).__name__} is not a list of pairs; write {example}")
    return tuple(_route(pair, name, example) for pair in pairs)


def _route(pair: Any, name: str, example: str) -> tuple[str, str | None]:
    route, policy = pair if isinstance(pair, list | tuple) and len(pair) == 2 else ("", None)
    if not (_is_text(route) and (policy is None or _is_text(policy))):
        raise SettingsError(f"{name}: {pair!r} is not a route and a policy; write {example}")
    return route, policy


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def peers(value: Any, name: str) -> tuple[Peer, ...]:
    """Read addresses and networks, as a list or as text with commas; ``"unix"`` is the peer of a socket."""
    items = [text for text in value.split(",") if text.strip()] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset):
        kind = type(value).__name__
        raise SettingsError(f"{name}: a {kind} is not a list of addresses; write ['10.0.0.0/8', 'unix']")
    return tuple(dict.fromkeys(_peer(item, name) for item in items))


def _peer(item: Any, name: str) -> Peer:
    text = str(item).strip() if not isinstance(item, bool | int | bytes) else ""
    if text.lower() == "unix":
        return "unix"
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SettingsError(
            f"{name}: {item!r} is neither an address nor a network; write '10.0.0.7', '10.0.0.0/8' or 'unix'"
        ) from None
    if "/" in text and ipaddress.ip_interface(text).ip != network.network_address:
        raise SettingsError(
            f"{name}: {item!r} is an address within a network; write '{network}' for all of it"
        )
    if network.prefixlen == 0:
        # Behind nothing but trusted proxies the first address of the header counts, which its sender wrote.
        raise SettingsError(
            f"{name}: {item!r} trusts everybody, and with that whatever anybody writes into X-Forwarded-For; "
            "write the networks of your proxies, or count the proxies: REST_FRAMEWORK['NUM_PROXIES']"
        )
    return network


def ipv6_prefix(value: Any, name: str) -> int:
    """Read how many bits of an IPv6 address say whose it is: what a provider gives to one customer."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value) else value
    if isinstance(number, int) and not isinstance(number, bool) and 32 <= number <= 128:
        return number
    raise SettingsError(
        f"{name}: {value!r} is not the length of a prefix; write one from 32 to 128, such as 64"
    )


def headers(value: Any, name: str) -> bool | Literal["legacy"]:
    if isinstance(value, bool):
        return value
    if value == "legacy":
        return "legacy"
    raise SettingsError(f"{name}: {value!r} is not a choice; write True, False or 'legacy'")


def switch(value: Any, name: str) -> bool:
    """Read True or False."""
    if isinstance(value, bool):
        return value
    raise SettingsError(f"{name}: {value!r} is not a choice; write True or False")


def response(value: Any, name: str) -> str | None:
    """Read what answers who is refused: the path of a callable, the name of a template, or None."""
    if value is None or value == "":
        return None
    # No code but these ends in them: everything else has to be a path that can be imported.
    if isinstance(value, str) and (value.endswith((".html", ".json")) or _DOTTED.fullmatch(value)):
        return value
    raise SettingsError(
        f"{name}: {value!r} is neither a callable's dotted path nor a template's name; "
        "write 'shop.views.too_many', '429.html', '429.json' or None"
    )


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error's sentence: the nearest of the ``known`` names, or all of them, or none."""
    names = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), names, n=1)
    if near:
        return f"; did you mean {names[near[0]]!r}?"
    return f"; there are {', '.join(sorted(names.values())) or 'none'}"


def redact_url(text: str) -> str:
    """Return a URL for people, without whatever may be a password; also of text that is not quite a URL.

    Hides more rather than less: a password that should have been percent-encoded may hold any character.
    """
    text = text.strip()
    match = _SCHEME.match(text)
    scheme = match.group() if match else ""
    rest = text[len(scheme) :]
    _, at, tail = rest.rpartition("@")
    shown = f"***@{tail}" if at else _NO_PORT.sub(r"\1:***", rest)
    return _SECRET.sub(r"\1***", f"{scheme}{shown}")
