"""Logs in Redis, and who keeps them when Redis is away.

One EVALSHA a decision, never sent again after a timeout: it may have counted. Then, for policies that say
``host``, the processes of the host decide together until Redis has been told of everything.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis_infra.conf import AliasSettings, ThrottleSettings
from redis_infra.connection.bulk import unlink_matching
from redis_infra.connection.scripts import Script, is_unknown_script
from redis_infra.exceptions import StoreUnavailable
from redis_infra.instrumentation import notify_used
from redis_infra.keys import escape
from redis_infra.resilience.failover import Effect, ImpatientEffect, Kind
from redis_infra.throttling.host import ERA, FORGOTTEN, RESTARTED, Said, monotonic_ms
from redis_infra.throttling.host_file import HostBusy
from redis_infra.throttling.host_limits import HostLimits
from redis_infra.throttling.plans import FORGET, HIT, MERGE, REFUND, Entry, Plan, Tag

__all__ = ["RemoteStore", "Reply", "open_remote"]

logger = logging.getLogger(__name__)

Reply = tuple[Sequence[int] | None, str]
"""The script's reply and who gave it; None where a policy does not count in an outage."""

CHARGE: Final = ImpatientEffect(Kind.FILL, stores=True, repeatable=False)
"""What a lost decision leaves behind is no business of the journal: the host's logs have it."""
TURNS: Final = 3
"""How often a decision may find that it came to the wrong side, before the host decides whatever is said."""
_DIGEST: Final = 32 * "?"
_NOT_ASKED: Final = ()
BUSY_RETRY: Final = 1000
"""Milliseconds after which to come again where not even the host's logs could be had."""


def open_remote(alias: AliasSettings, throttle: ThrottleSettings, prefix: str = "") -> RemoteStore | None:
    """Return the store of the Redis that settings name; None where they name none. Opens no connection."""
    # redis-py is imported with the first decision, not with the settings.
    from redis_infra.connection.lifecycle import running
    from redis_infra.connection.options import ConnectionOptions

    options = ConnectionOptions.from_settings(alias)
    if options.scheme == "memory":
        return None
    return RemoteStore(running(options), alias, throttle, prefix)


class RemoteStore:
    """Ask Redis; or the host, while Redis is away.

    Thread-safe and shared by event loops: :meth:`hit` and :meth:`ahit` differ by ``await`` only.
    """

    def __init__(
        self, options: Any, alias: AliasSettings, throttle: ThrottleSettings, prefix: str = ""
    ) -> None:
        from redis_infra.connection.lifecycle import open_database

        self.database = open_database(options, alias)
        quick = dataclasses.replace(
            options,
            command_timeout=min(options.command_timeout, throttle.timeout),
            connect_timeout=min(options.connect_timeout, throttle.timeout),
            pool_wait=min(options.pool_wait, throttle.timeout),
        )
        connections = self.database.connections(quick)
        self._call: Callable[[bytes], Any] = connections.call
        self._acall: Callable[[bytes], Awaitable[Any]] = connections.acall
        self._connections = self.database.connections(options)
        """For what takes longer than a decision may."""
        failover = self.database.failover
        self._run, self._arun = failover.run, failover.arun
        self._attempt, self._aattempt = failover.attempt, failover.aattempt
        self.limits: HostLimits = self.database.companion(
            f"limits of {prefix}",  # sites that share a database have logs of their own, in an outage too
            lambda: HostLimits(
                self.database.state_dir, options.keyspace, throttle.hosts, failover.prober, prefix
            ),
        )
        self._hosts = throttle.hosts
        self._forgotten_by_hand = self.limits.host.words[FORGOTTEN]
        notify_used()

    # Decisions

    def hit(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Reply:
        """Charge ``cost`` to all logs of a request or to none; at most ``TIMEOUT``."""
        host = self.limits.host
        words, counts = host.words, plan.counts_locally
        needed = False
        for _ in range(TURNS):
            era, restarted = words[ERA], words[RESTARTED]
            if era & 1 and not counts and host.is_needed:
                return None, "none"  # somebody has just waited in vain
            if not (era & 1 and counts):
                knows = True
                if restarted and cost and 0 <= monotonic_ms() - restarted <= plan.longest:
                    knows = self._remind(plan, tags, restarted)
                reply = self._ask(plan, tags, cost) if knows else None
                if reply is not None:
                    if not (reply[0] and cost):
                        return reply, "redis"
                    if words[RESTARTED] != restarted:
                        # The connection was new and the server another run: it was asked too early.
                        self._whole(REFUND, plan.keys(tags), plan.refund_arguments(cost, reply[1]))
                        continue
                    host.table.note(plan.pages, tags, reply, restarted)
                    if host.words[ERA] == era or not counts:
                        return reply, "redis"
                    # Somebody of this host found Redis away meanwhile, and may not know of this one yet.
                needed = reply is None
                if not counts:
                    self.limits.take_over()
                    return None, "none"
            found = self._locally(plan, tags, cost, needed=needed or not self._is_well)
            if found is not None:
                return found
            needed = False
        return self._locally(plan, tags, cost, needed=True) or self._turned_away(plan)

    async def ahit(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Reply:
        """:meth:`hit` in the running event loop; the host's logs are a file, and take 0.1 ms."""
        host = self.limits.host
        words, counts = host.words, plan.counts_locally
        needed = False
        for _ in range(TURNS):
            era, restarted = words[ERA], words[RESTARTED]
            if era & 1 and not counts and host.is_needed:
                return None, "none"  # somebody has just waited in vain
            if not (era & 1 and counts):
                knows = True
                if restarted and cost and 0 <= monotonic_ms() - restarted <= plan.longest:
                    knows = await self._aremind(plan, tags, restarted)
                reply = await self._aask(plan, tags, cost) if knows else None
                if reply is not None:
                    if not (reply[0] and cost):
                        return reply, "redis"
                    if words[RESTARTED] != restarted:
                        await self._awhole(REFUND, plan.keys(tags), plan.refund_arguments(cost, reply[1]))
                        continue
                    host.table.note(plan.pages, tags, reply, restarted)
                    if host.words[ERA] == era or not counts:
                        return reply, "redis"
                needed = reply is None
                if not counts:
                    self.limits.take_over()
                    return None, "none"
            found = self._locally(plan, tags, cost, needed=needed or not self._is_well)
            if found is not None:
                return found
            needed = False
        return self._locally(plan, tags, cost, needed=True) or self._turned_away(plan)

    def _ask(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Sequence[int] | None:
        """Return Redis' reply; None if there was none."""
        packed = plan.packed(tags, cost)
        try:
            reply: Sequence[int] | None = self._attempt(self._call, packed, CHARGE)
        except Exception as error:
            # NOSCRIPT: nothing was executed, so it may be sent whole.
            if not is_unknown_script(error):
                return self._refused(error)
            reply = self._whole(HIT, plan.keys(tags), plan.arguments(cost))
        return reply

    async def _aask(self, plan: Plan, tags: tuple[Tag, ...], cost: int) -> Sequence[int] | None:
        packed = plan.packed(tags, cost)
        try:
            reply: Sequence[int] | None = await self._aattempt(self._acall, packed, CHARGE)
        except Exception as error:
            if not is_unknown_script(error):
                return self._refused(error)
            reply = await self._awhole(HIT, plan.keys(tags), plan.arguments(cost))
        return reply

    def _locally(self, plan: Plan, tags: tuple[Tag, ...], cost: int, *, needed: bool) -> Reply | None:
        """Let the host decide; None if Redis decides by now."""
        if needed:
            self.limits.take_over()
        if self.limits.host.decides:
            self.limits.look_after()
        try:
            return self.limits.hit(plan.entries(tags), cost, needed=needed, hosts=self._hosts)
        except HostBusy:
            logger.debug("redis_infra.limits_busy")
            return self._turned_away(plan)

    @staticmethod
    def _turned_away(plan: Plan) -> Reply:
        """A no for now: a yes that nobody could write down would be one too many."""
        reply = [0, 0]
        for _ in plan.terms:
            reply += (0, BUSY_RETRY, BUSY_RETRY)
        return reply, "host"

    @property
    def _is_well(self) -> bool:
        """Whether Redis would be asked, as far as this process knows."""
        failover = self.database.failover
        return failover.reach.closed and failover.access.closed and failover.writes.closed

    # After a restart of the server

    def _remind(self, plan: Plan, tags: tuple[Tag, ...], restarted: int) -> bool:
        """Tell a server that may have forgotten what it once said of these identities, once each.

        Returns whether it knows by now: if it did not answer once, it is not asked again, nor for a decision.
        """
        said, reply = Said(), _NOT_ASKED
        for entry, arguments in self._forgotten(plan, tags, restarted):
            reply = self._whole(MERGE, (entry.key, f"{entry.key}:+"), arguments)
            if reply is None:
                break
            said.add(entry.spot, entry.page, reply[1], reply[0])
        self.limits.host.note_said(said, restarted)
        return reply is not None

    async def _aremind(self, plan: Plan, tags: tuple[Tag, ...], restarted: int) -> bool:
        said, reply = Said(), _NOT_ASKED
        for entry, arguments in self._forgotten(plan, tags, restarted):
            reply = await self._awhole(MERGE, (entry.key, f"{entry.key}:+"), arguments)
            if reply is None:
                break
            said.add(entry.spot, entry.page, reply[1], reply[0])
        self.limits.host.note_said(said, restarted)
        return reply is not None

    def _forgotten(
        self, plan: Plan, tags: tuple[Tag, ...], restarted: int
    ) -> list[tuple[Entry, tuple[int, ...]]]:
        """Return the logs that were last heard of before the restart, each with ARGV of ``merge.lua``."""
        entries, host = plan.entries(tags), self.limits.host
        known = [host.known(entry.spot) for entry in entries]
        if any(each is not None and each.restarted != restarted for each in known):
            known = self.limits.still_known(entries)  # but for what was forgotten by hand: that is in a file
        return [
            (entry, (entry.terms.window, entry.terms.grain, each.used, each.at))
            for entry, each in zip(entries, known, strict=True)
            if each is not None and each.restarted != restarted
        ]

    # Logs by hand

    def forget(self, plan: Plan, tags: tuple[Tag, ...]) -> bool:
        """Drop the logs of an identity, here and there; return whether there were any.

        In an outage what Redis holds is journalled, and dropped on return.
        """
        keys, restarted = plan.keys(tags), self.limits.host.words[RESTARTED]
        here = self.limits.forget(plan.entries(tags))
        reply = self._whole(FORGET, keys, (), ImpatientEffect(Kind.CHANGE, keys))
        return self._has_forgotten(plan, tags, reply, here, restarted)

    async def aforget(self, plan: Plan, tags: tuple[Tag, ...]) -> bool:
        """:meth:`forget` in the running event loop."""
        keys, restarted = plan.keys(tags), self.limits.host.words[RESTARTED]
        here = self.limits.forget(plan.entries(tags))
        reply = await self._awhole(FORGET, keys, (), ImpatientEffect(Kind.CHANGE, keys))
        return self._has_forgotten(plan, tags, reply, here, restarted)

    def _has_forgotten(
        self, plan: Plan, tags: tuple[Tag, ...], reply: Any, here: int, restarted: int
    ) -> bool:
        host, there = self.limits.host, 0
        if reply is not None:
            host.note_used(plan.pages, tags, [0] * plan.count, reply[0], restarted)
            there = reply[1]
        else:
            host.unlearn(plan.pages, tags)
        host.has_forgotten()
        return bool(here or there)

    def was_forgotten(self) -> bool:
        """Whether a process of this host has dropped logs by hand since the last look."""
        count = self.limits.host.words[FORGOTTEN]
        changed, self._forgotten_by_hand = count != self._forgotten_by_hand, count
        return changed

    def forget_labels(self, prefix: str, starts: Sequence[str]) -> int:
        """Drop all logs of limits whose label begins so, here and there; return how many there were."""
        count = sum(self.limits.forget_where(start) for start in starts)
        for pattern in _patterns(prefix, starts):
            effect = ImpatientEffect(Kind.CHANGE, pattern=pattern)
            count += self._run(self._connections.converse, _nobody, effect, unlink_matching(pattern)) or 0
        self.limits.host.has_forgotten()
        return count

    async def aforget_labels(self, prefix: str, starts: Sequence[str]) -> int:
        """:meth:`forget_labels` in the running event loop."""
        count = sum(self.limits.forget_where(start) for start in starts)
        for pattern in _patterns(prefix, starts):
            effect = ImpatientEffect(Kind.CHANGE, pattern=pattern)
            count += (
                await self._arun(self._connections.aconverse, _nobody, effect, unlink_matching(pattern)) or 0
            )
        self.limits.host.has_forgotten()
        return count

    def refund(self, plan: Plan, tags: tuple[Tag, ...], cost: int, charged: int, source: str) -> None:
        """Take back what was charged; at ``charged`` by the clock of ``source``, if that is known."""
        if source != "redis" and self.limits.refund(plan.entries(tags), cost, charged):
            return
        restarted = self.limits.host.words[RESTARTED]
        arguments = plan.refund_arguments(cost, charged if source == "redis" else 0)
        reply = self._whole(REFUND, plan.keys(tags), arguments)
        if reply is not None:
            self._note_totals(plan, tags, reply, restarted)

    async def arefund(self, plan: Plan, tags: tuple[Tag, ...], cost: int, charged: int, source: str) -> None:
        """:meth:`refund` in the running event loop."""
        if source != "redis" and self.limits.refund(plan.entries(tags), cost, charged):
            return
        restarted = self.limits.host.words[RESTARTED]
        arguments = plan.refund_arguments(cost, charged if source == "redis" else 0)
        reply = await self._awhole(REFUND, plan.keys(tags), arguments)
        if reply is not None:
            self._note_totals(plan, tags, reply, restarted)

    def _note_totals(self, plan: Plan, tags: tuple[Tag, ...], reply: Sequence[int], restarted: int) -> None:
        self.limits.host.note_used(plan.pages, tags, reply[1:], reply[0], restarted)

    # Scripts that are not hot

    def _whole(
        self, script: Script, keys: tuple[str, ...], arguments: tuple[int, ...], effect: Effect = CHARGE
    ) -> Any:
        """Send a script with its text; return the reply, or None if there was none."""
        try:
            return self._attempt(self._call, script.whole(keys, arguments), effect)
        except Exception as error:
            return self._refused(error)

    async def _awhole(
        self, script: Script, keys: tuple[str, ...], arguments: tuple[int, ...], effect: Effect = CHARGE
    ) -> Any:
        try:
            return await self._aattempt(self._acall, script.whole(keys, arguments), effect)
        except Exception as error:
            return self._refused(error)

    @staticmethod
    def _refused(error: Exception) -> None:
        """The server answered what no fault explains: a key of another type, a script it cannot run.

        A limiter must not end a request; its host decides.
        """
        from redis.exceptions import RedisError

        if not isinstance(error, RedisError) or isinstance(error, StoreUnavailable):
            raise error
        logger.error("redis_infra.limiter_refused cause=%s", type(error).__name__, exc_info=error)


def _patterns(prefix: str, starts: Sequence[str]) -> list[str]:
    """Return what all keys of some limits match: tagged by the identity, or by the policy."""
    home = f"{escape(prefix)}:rl:"
    found = []
    for start in map(escape, starts):
        policy = f"{start[:-1]}}}:" if start.endswith(":") else start
        found += [f"{home}{{{_DIGEST}}}:{start}*", f"{home}{{{policy}*"]
    return found


def _nobody(_asked: object) -> None:
    """What answers instead of Redis is not decided here."""
    return
