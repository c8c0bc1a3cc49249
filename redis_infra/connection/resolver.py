"""Host names to addresses, without letting a slow resolver hold up a request.

``getaddrinfo`` has no deadline: with a dead name server it blocks for 5 to 30 s.
So it runs in a thread of its own, a request waits for it within its own budget,
and later ones use what was last known while a fresh answer is fetched.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from redis_infra.clock import SYSTEM_CLOCK, Clock

__all__ = ["Address", "Resolver"]

Address: TypeAlias = tuple[int, int, int, Any]
"""Family, type, protocol and socket address, as ``socket.socket`` and ``connect`` take them."""

FRESH_FOR = 30.0
"""Seconds for which an answer is used without asking anew."""


@dataclass(slots=True)
class _Lookup:
    done: threading.Event = field(default_factory=threading.Event)
    addresses: list[Address] = field(default_factory=list)
    error: OSError | None = None


class Resolver:
    """Remember addresses by name. Thread-safe; a forked child starts its own look-ups."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Forget look-ups under way: their threads are the parent's. What is known stays."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._under_way: dict[tuple[str, int], _Lookup] = {}
        if not hasattr(self, "_known"):
            self._known: dict[tuple[str, int], tuple[float, list[Address]]] = {}

    def resolve(self, host: str, port: int, *, wait: float) -> list[Address]:
        """Return addresses of ``host``, waiting ``wait`` seconds at most.

        Raises:
            OSError: the name has no address, or nobody said in time
                (``TimeoutError``) and none is known from before.
        """
        if _is_literal(host):
            return _getaddrinfo(host, port)
        if self._pid != os.getpid():
            self.after_fork()
        known = self._known.get((host, port))
        if known is not None and self._clock.monotonic() - known[0] < FRESH_FOR:
            return known[1]
        lookup = self._look_up((host, port))
        if known is not None:
            # Stale but known: use it, the next connection gets the new one.
            return known[1]
        if not lookup.done.wait(wait):
            raise TimeoutError(f"no address for {host} within {wait:.2f} s")
        if lookup.error is not None:
            raise OSError(*lookup.error.args)
        return lookup.addresses

    def known(self, host: str, port: int) -> list[Address] | None:
        """What :meth:`resolve` would return at once; None where it would have to wait for it."""
        if not _is_literal(host) and (host, port) not in self._known:
            return None
        return self.resolve(host, port, wait=0.0)

    def forget(self, host: str, port: int) -> None:
        """Ask anew at the next connection: what was known did not work."""
        known = self._known.get((host, port))
        if known is not None:
            self._known[host, port] = (float("-inf"), known[1])
            self._look_up((host, port))

    def _look_up(self, name: tuple[str, int]) -> _Lookup:
        with self._lock:
            lookup = self._under_way.get(name)
            if lookup is not None:
                return lookup
            lookup = self._under_way[name] = _Lookup()
        thread = threading.Thread(
            target=self._run, args=(name, lookup), name="redis_infra-resolver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # No more threads to be had: better late than never, without an address there is no connection.
            self._run(name, lookup)
        return lookup

    def _run(self, name: tuple[str, int], lookup: _Lookup) -> None:
        try:
            lookup.addresses = _getaddrinfo(*name)
            self._known[name] = (self._clock.monotonic(), lookup.addresses)
        except OSError as error:
            lookup.error = error
        except UnicodeError as error:  # a label of more than 63 characters
            lookup.error = OSError(f"{name[0]!r} cannot be a host name: {error}")
        finally:
            with self._lock:
                self._under_way.pop(name, None)
            lookup.done.set()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _getaddrinfo(host: str, port: int) -> list[Address]:
    return [
        (family, kind, proto, address)
        for family, kind, proto, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    ]
