"""Where a request came from: the client's address, believing proxies that are trusted and nobody else.

Reads requests of Django and of Django REST framework, and imports neither. What a client made up is never
returned.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Final, Literal

from redis_infra.conf import Peer, get_settings, ipv6_prefix, number_of_proxies
from redis_infra.conf import num_proxies as proxies_of_site

__all__ = ["UNKNOWN", "client_ip", "network_named", "network_of"]

UNKNOWN: Final = "unknown"
"""The address of a client without one: the peer of a Unix socket that nobody vouches for."""

MOST_HOPS: Final = 32
"""Trusted proxies in a row; more of them are not looked at."""


class _FromSettings(Enum):
    FROM_SETTINGS = "from settings"

    def __repr__(self) -> str:
        return "FROM_SETTINGS"


FROM_SETTINGS: Final = _FromSettings.FROM_SETTINGS


def client_ip(
    request: Any,
    trusted: Sequence[Peer] | Literal[_FromSettings.FROM_SETTINGS] = FROM_SETTINGS,
    num_proxies: int | Literal[_FromSettings.FROM_SETTINGS] | None = FROM_SETTINGS,
) -> str:
    """Return the address of the client: that of the peer, unless a proxy may speak for another.

    X-Forwarded-For is walked from the right over ``trusted`` peers (TRUSTED_PROXIES); or, with Django REST
    framework's NUM_PROXIES, that many addresses are counted from the right; a value that is no number of
    proxies counts for nothing. With both, the peer has to be trusted first. What is no address ends the walk
    at the last one that was: a text that a client made up is never returned. Ports, brackets and zones are
    stripped, IPv4 in IPv6 is IPv4.
    """
    meta = request.META
    peer = meta.get("REMOTE_ADDR") or ""
    forwarded = meta.get("HTTP_X_FORWARDED_FOR")
    if not forwarded:
        return _address(peer) or UNKNOWN
    if trusted is FROM_SETTINGS:
        trusted = get_settings().throttle.trusted_proxies
    number = proxies_of_site() if num_proxies is FROM_SETTINGS else number_of_proxies(num_proxies)
    if number is None:
        return _walk(peer, forwarded, _trust(trusted)) or UNKNOWN
    if number == 0 or (trusted and not _trust(trusted).has_peer(peer)):
        return _address(peer) or UNKNOWN
    return _counted(peer, forwarded, number) or UNKNOWN


def network_of(address: str) -> str:
    """Return whom an address belongs to: itself, but in IPv6 a network, of which a client has all addresses.

    The /64, or what ``THROTTLE["IPV6_PREFIX"]`` says.
    """
    return _network(address, ipv6_prefix()) if ":" in address else address


def network_named(text: str) -> str:
    """Return :func:`network_of` an address that a person wrote, or of its network."""
    return network_of(_address(text.partition("/")[0]) or UNKNOWN)


@lru_cache(maxsize=4096)
def _network(address: str, prefix: int) -> str:
    return str(ipaddress.ip_network((address, prefix), strict=False))


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
