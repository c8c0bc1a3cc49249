"""How the limits of one database are kept without Redis, and what it takes to give them back.

Brings together what the processes of the host know (:mod:`.host`) and the logs that they keep
(:mod:`.host_store`), and stands in for the latter with the process' own memory where there is no usable
directory. The database asks it, as its companion, when it has recovered.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from redis_infra.connection.scripts import Talk
from redis_infra.resilience.prober import Prober
from redis_infra.resilience.statedir import StateDir
from redis_infra.throttling.host import LEASE, NEEDED, TURN, Host, Known
from redis_infra.throttling.host_file import HostBusy, is_damaged
from redis_infra.throttling.host_rows import Row
from redis_infra.throttling.host_store import HostStore
from redis_infra.throttling.plans import Entry
from redis_infra.throttling.sliding_log import Log

__all__ = ["HostLimits"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_ALONE: Final = 10_000
"""Logs that a process keeps where it is alone: they are in its memory."""


class HostLimits:
    """The limits of one database on this host. Thread-safe; raises nothing because of the disk."""

    def __init__(
        self, state_dir: StateDir, keyspace: str, hosts: int, prober: Prober, prefix: str = ""
    ) -> None:
        self.host = Host(state_dir, keyspace, prefix)
        self._shared = HostStore(self.host, hosts)
        self._alone = HostStore(self.host, hosts, in_memory=True, most=MOST_ALONE)
        self._prober = prober
        self._said = ""
        self._look_at = 0.0

    # Decisions

    def take_over(self) -> None:
        """This process finds Redis away: from now on nobody of the host asks it."""
        if not (self.host.shares or self.host.decides):
            self.host.look(again=True)  # where the disk was full, say
        if self.host.take_over():
            self._prober.wake()
            logger.info("redis_infra.limits_kept_by_host")

    def look_after(self) -> None:
        """See to it that somebody ends the era: a thread, or this request where none can be had.

        A forked child has the circuits of its parent and none of its threads, and never gets to Redis in an
        era, where operations on it would look after the prober.
        """
        now = time.monotonic()
        self._prober.look_after(now, may_wait=False)
        if now >= self._look_at:
            self._look_at = now + 1.0
            self.host.look()

    def hit(
        self, entries: Sequence[Entry], cost: int, *, needed: bool, hosts: int | None = None
    ) -> tuple[list[int], str] | None:
        """Decide here; None if Redis decides again by now.

        ``hosts`` is what the limiter that asks was told; two on one database may differ.

        Raises:
            HostBusy: others kept the logs for too long.
        """
        if self.host.shares:
            try:
                reply = self._shared.hit(
                    entries, cost, needed=needed, beside=_logs(self._alone, entries), hosts=hosts
                )
            except (OSError, sqlite3.Error) as error:
                self._not_shared(str(error))
            else:
                return (reply, "host") if reply is not None else None
        else:
            self._not_shared(self.host.problem)
        # What the host let through can often still be read: on a full disk, say.
        beside = _logs(self._shared, entries) if self.host.shares else ()
        reply = self._alone.hit(entries, cost, needed=needed, beside=beside, hosts=hosts)
        return (reply, "process") if reply is not None else None

    def forget(self, entries: Sequence[Entry]) -> int:
        """Drop what is kept here; return how many logs that were."""
        names = [entry.name for entry in entries]
        return sum(self._each(lambda store: store.forget(names)))

    def refund(self, entries: Sequence[Entry], cost: int, charged: int) -> bool:
        """Take back what was charged here; return whether it was still here to be taken back."""
        if not self.host.decides:
            return False
        for store in (self._shared, self._alone):
            try:
                if store.file.exists and store.refund(entries, cost, charged):
                    return True
            except (OSError, sqlite3.Error, HostBusy) as error:
                self._not_shared(str(error))
        return False

    def forget_where(self, label_start: str) -> int:
        """Drop the logs of limits whose label begins so, and what was known; return how many logs."""
        return sum(self._each(lambda store: store.forget_where(label_start), even_new=True))

    def still_known(self, entries: Sequence[Entry]) -> list[Known | None]:
        """Return what the host's processes know of each log."""
        store = self._shared if self.host.shares else self._alone
        try:
            return store.still_known(entries)
        except (OSError, sqlite3.Error, HostBusy) as error:
            self._not_shared(str(error))
            return [self.host.known(entry.spot) for entry in entries]

    def rows(self) -> list[Row]:
        """Every log that is kept here, for people to look at."""
        return [row for rows in self._each(lambda store: store.rows()) for row in rows]

    def _each(self, step: Callable[[HostStore], T], *, even_new: bool = False) -> list[T]:
        """Return what a step comes to in each store that was ever used (or is the one to use), and can be."""
        found, chosen = [], self._shared if self.host.shares else self._alone
        for store in (self._shared, self._alone):
            try:
                if store.file.exists or (even_new and store is chosen):
                    found.append(step(store))
            except (OSError, sqlite3.Error, HostBusy) as error:
                self._not_shared(str(error))
        return found

    def _not_shared(self, problem: str) -> None:
        self.host.problem = problem
        if problem != self._said:
            self._said = problem
            logger.warning("redis_infra.limits_not_shared problem=%s", problem)

    # As the companion of a database

    def met(self, run_id: str) -> None:
        self.host.met(run_id)

    def look(self) -> None:
        self.host.look()

    def due(self) -> float | None:
        """Return the seconds until the limits can be given back; None while Redis has them."""
        if not (self.host.decides or self._alone.holds_any):
            return None
        return max(self.host.left(NEEDED), self.host.left(LEASE)) / 1000

    def talk(self) -> Talk:
        """Tell Redis what was let through without it, and let it decide again."""
        decided = self.host.decides
        self.host.keep(LEASE, TURN)
        try:
            if self._alone.file.exists or not self.host.shares:
                yield from self._alone.handing_back(last=not self.host.shares)
            if self.host.shares and decided:
                yield from self._talk_of_shared()
            if decided and not self.host.decides:
                logger.info("redis_infra.limits_kept_by_redis")
        except HostBusy:
            return  # to be asked again
        finally:
            self.host.words[LEASE] = 0

    def _talk_of_shared(self) -> Talk:
        try:
            try:
                yield from self._shared.handing_back(last=True)
            except sqlite3.Error as error:
                if is_damaged(error):
                    raise
                self._not_shared(str(error))
                yield from self._shared.handing_back_as_it_is()
        except (OSError, sqlite3.Error) as error:
            self._not_shared(str(error))
            if isinstance(error, sqlite3.Error) and not is_damaged(error):
                return  # to be asked again
            # It is gone or damaged, and what stood in it is lost; limits go on all the same.
            self._shared.file.remove()
            self.host.hand_back()

    def after_fork(self) -> None:
        self.host.after_fork()
        self._shared.after_fork()
        self._alone.after_fork()

    def close(self) -> None:
        self._shared.file.close()


def _logs(store: HostStore, entries: Sequence[Entry]) -> Sequence[Log]:
    """Return what a store holds that is not the one to decide; nothing where that cannot be read."""
    if not store.file.exists:
        return ()
    try:
        return store.logs(entries)
    except (OSError, sqlite3.Error, HostBusy):
        return ()
