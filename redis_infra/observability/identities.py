"""Whom an operator means: ``user:7``, ``ip:203.0.113.7``, ``ip=203.0.113.7,username=bob``.

Turns what a person types into the identities that a site's requests are charged to, limit by limit: a limit
is meant if all that its key asks for was typed. Values never leave this module but as digests.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redis_infra.conf import did_you_mean
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.identity import Key, parse_key
from redis_infra.throttling.plans import Tag, tag_from, tag_of

__all__ = ["Client"]

FORMS = "write such as 'user:7', 'ip:203.0.113.7', 'ip=203.0.113.7,username=bob' or 'digest:<32 digits>'"
_USER = ("user", "user_or_ip")


@dataclass(frozen=True, slots=True)
class Client:
    """One client, as a person describes it."""

    values: Mapping[str, str] = field(repr=False)
    """What is known of it, by the names of keys."""
    text: str | None = field(default=None, repr=False)
    """Or the identity as code hands it to ``limiter.hit()``."""
    digest: str | None = None
    """Or what stands for it in logs, signals and ``throttle_status``."""

    @classmethod
    def parse(cls, typed: str, keys: Iterable[Key]) -> Client:
        """Return the client that was typed; ``keys`` are those that there are.

        ``KEY=VALUE``, several joined by commas; ``KEY:VALUE``, ``text:...`` and ``digest:...`` alone; what
        ``throttle_status`` shows: a digest as it is, and ``username?unread``, which stands for unread names.

        Raises:
            SettingsError: it is none of these, or no limit asks for such a key.
        """
        parts = [part for key in keys for part in key.parts]
        if typed in {part.unread for part in parts}:
            return cls({}, text=typed)
        known = sorted({part.name for part in parts} | {"user", "ip"}, key=len, reverse=True)
        pair = rf"({'|'.join(map(re.escape, known))})="
        if re.match(pair, typed):
            pieces = re.split(rf"(?:^|,){pair}", typed)[1:]
            return cls(_checked(dict(zip(pieces[::2], pieces[1::2], strict=True))))
        kind, mark, value = typed.partition(":")
        if kind == "text" and value:
            return cls({}, text=value)
        if digest := re.fullmatch(r"(?:digest:)?([0-9a-f]{32})", typed):
            return cls({}, digest=digest[1])
        if mark and kind in known:
            return cls(_checked({kind: value}))
        # Not what was typed: somebody's name or address may be in it, and errors end in logs.
        near = did_you_mean(kind, known) if mark and kind != "digest" else ""
        raise SettingsError(f"--ident is not understood{near}; {FORMS}")

    def tag(self, key: Key | None, scope: str) -> Tag | None:
        """Return what stands for the client under a limit of ``scope``; None if it does not say enough.

        Without a ``key`` the limit is of one of DRF's classes, which have a format of their own.
        """
        if self.digest is not None:
            return tag_from(self.digest)
        identity = self.text
        if identity is None:
            identity = _identity(self.values, key) if key is not None else _cache_key(self.values, scope)
        return None if identity is None else tag_of(identity)


def _checked(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not value.strip():
            raise SettingsError(f"--ident: {name} has no value; {FORMS}")
    try:
        if "ip" in values:
            ipaddress.ip_address(values["ip"])
    except ValueError:
        raise SettingsError(f"--ident: what was given as ip is not an address; {FORMS}") from None
    return values


def _identity(values: Mapping[str, str], key: Key) -> str | None:
    """Return what a request of a client with these values is charged to, None if it takes more to know."""
    user = values.get("user", values.get("user_or_ip"))
    by_name = {**values, **(dict.fromkeys(_USER, user) if user is not None else {})}
    if user is None and key.name in _USER and "ip" in values:
        key = parse_key("ip")  # whoever is not logged in
    try:
        return key.named(by_name)
    except KeyError:
        return None


def _cache_key(values: Mapping[str, str], scope: str) -> str | None:
    """Return what ``get_cache_key`` of DRF's classes returns."""
    ident = values.get("user")
    if ident is None and "ip" in values:
        ident = parse_key("ip").named(values).removeprefix("ip:")
    return None if ident is None else f"throttle_{scope}_{ident}"
