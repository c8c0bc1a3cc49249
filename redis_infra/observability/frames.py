"""What one look of the monitor comes to, in plain values. Knows neither Redis nor terminals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from redis_infra.observability.health import AliasHealth, Status

__all__ = ["Event", "Frame", "LimitLoad", "ServerLoad", "TypeRate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """What one alias' server says of itself; None where it does not."""

    alias: str
    ops: int | None = None
    """Commands a second."""
    memory: int | None = None
    max_memory: int | None = None
    """None where there is no bound."""
    keys_evicted: int | None = None
    clients: int | None = None
    uptime: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeRate:
    """One data type over the last one to two minutes. Rates are a second."""

    name: str
    hits: float
    misses: float
    hit_rate: float | None
    mean: float | None
    """Seconds of one load."""
    p95: float | None
    history: tuple[float | None, ...]
    """Hit rate by minute, the last one at the end; None for a minute in which nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitLoad:
    """One policy."""

    name: str
    group: str
    identities: int | None
    """Who has been charged something; None where that was not looked at."""
    blocked: int | None
    denied: float | None
    """A second; None where nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, to a process of the site or before the eyes of this one."""

    time: float
    text: str
    who: str
    """Host and process id; ``monitor`` for this one."""
    is_bad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One look."""

    time: float
    status: Status
    aliases: tuple[AliasHealth, ...]
    servers: tuple[ServerLoad, ...]
    total: TypeRate
    types: tuple[TypeRate, ...]
    counts_from: float | None
    """Unix seconds of when the counts could be read last; None if they never could."""
    decided_by: str
    """Who decides about limits: ``redis``, ``host``, ``process``, or "" if nobody knows."""
    limits: tuple[LimitLoad, ...]
    events: tuple[Event, ...]
    notes: tuple[str, ...]
    """What could not be shown, and why."""

    @property
    def is_current(self) -> bool:
        """Whether the counts are of this very look."""
        return self.counts_from == self.time

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: stable names; seconds, bytes, rates a second."""
        plain = asdict(self)
        plain["aliases"] = {each.pop("alias"): each for each in plain["aliases"]}
        plain["servers"] = {each.pop("alias"): each for each in plain["servers"]}
        return {"schema": "redis_infra.cache_monitor/1", **plain}
