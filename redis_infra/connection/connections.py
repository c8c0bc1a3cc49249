"""All connections of one process to one database with one set of options.

Threads share a stack of links, each event loop has its streams, and raw clients
that wait (BLPOP, Pub/Sub) have a pool without read timeout.
"""

from __future__ import annotations

from typing import Any

from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.pool import LinkPool, LinkWitness
from redis_infra.connection.resolver import Resolver
from redis_infra.connection.scripts import Talk, Turn
from redis_infra.connection.streams import StreamPool, StreamPools

__all__ = ["Connections"]


class Connections:
    """Send commands on a connection of the process, or of the running event loop.

    They know nothing of outages: whatever should survive one goes through the
    database's failover. Lazy: nothing is opened before the first command.
    """

    def __init__(self, options: ConnectionOptions, resolver: Resolver, witness: LinkWitness) -> None:
        self.options = options
        self.pool = LinkPool(options, resolver, witness=witness)
        self.patient_pool = LinkPool(options, resolver, witness=witness, patient=True)
        self.streams = StreamPools(options, resolver, witness)
        self.call = self.pool.call
        """Send one packed command and return its reply; an error reply is raised."""

    async def acall(self, packed: bytes) -> Any:
        """:meth:`call` on a connection of the running event loop."""
        return await self.streams.current().call(packed)

    def converse(self, talk: Talk) -> Any:
        """Hold a conversation, each turn on any connection of the process."""
        try:
            packed = next(talk)
            while True:
                try:
                    reply = self._say(packed)
                except Exception as error:  # the conversation may know what to do about it
                    packed = talk.throw(error)
                else:
                    packed = talk.send(reply)
        except StopIteration as end:
            return end.value

    async def aconverse(self, talk: Talk) -> Any:
        """:meth:`converse` on connections of the running event loop."""
        pool = self.streams.current()
        try:
            packed = next(talk)
            while True:
                try:
                    reply = await self._asay(pool, packed)
                except Exception as error:  # as above
                    packed = talk.throw(error)
                else:
                    packed = talk.send(reply)
        except StopIteration as end:
            return end.value

    def _say(self, turn: Turn) -> Any:
        if isinstance(turn, bytes):
            return self.pool.call(turn)
        return raise_first_error(self.pool.call_many(*turn))

    async def _asay(self, pool: StreamPool, turn: Turn) -> Any:
        if isinstance(turn, bytes):
            return await pool.call(turn)
        return raise_first_error(await pool.call_many(*turn))

    def connection_ids(self) -> list[int]:
        """Ids, on the server, of the connections open now; not of the patient ones."""
        return self.pool.connection_ids() + self.streams.connection_ids()

    def renew(self) -> None:
        """Use none of today's connections again."""
        self.pool.renew()
        self.streams.renew()

    def close(self) -> None:
        """Close what can be closed from this thread; streams of running loops end with their loops."""
        self.pool.renew()
        self.patient_pool.renew()
        self.streams.close_all()

    def after_fork(self) -> None:
        self.pool.after_fork()
        self.patient_pool.after_fork()
        self.streams.after_fork()


def raise_first_error(replies: list[Any]) -> list[Any]:
    """Return the replies of one write, or raise the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
