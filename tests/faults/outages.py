"""The ways in which Redis goes away and comes back with all that it had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer, TcpProxy

__all__ = ["KINDS", "Outage"]


@dataclass
class Outage:
    """One server behind one proxy, and how to take it away and bring it back."""

    server: RedisServer
    proxy: TcpProxy
    kind: str

    @property
    def url(self) -> str:
        return self.proxy.url

    def begin(self) -> None:
        _BEGIN[self.kind](self)

    def end(self) -> None:
        """Bring Redis back; it answers when this returns."""
        _END[self.kind](self)
        self.server.command("PING")


def _killed_and_started(outage: Outage) -> None:
    outage.server.start()
    outage.proxy.heal()


_BEGIN: dict[str, Callable[[Outage], Any]] = {
    "frozen": lambda outage: outage.server.freeze(),
    "killed": lambda outage: outage.server.kill(),
    "refused": lambda outage: outage.proxy.refuse(),
    "swallowed": lambda outage: outage.proxy.drop(),
    "held": lambda outage: outage.proxy.hold(),
}
_END: dict[str, Callable[[Outage], Any]] = {
    "frozen": lambda outage: outage.server.thaw(),
    "killed": _killed_and_started,
    "refused": lambda outage: outage.proxy.heal(),
    "swallowed": lambda outage: outage.proxy.heal(),
    "held": lambda outage: outage.proxy.heal(),
}
KINDS = tuple(_BEGIN)
"""``killed``: the process dies, its data is on disk. ``held``: all that was sent arrives at the end."""
