"""A store that goes on in memory while its provider cannot be asked, for sites that want that.

Not the default, because a store of record that forgets is none: what is set meanwhile is of this process
alone, and gone when the provider is back.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis_infra.exceptions import StoreUnavailable
from redis_infra.kv.base import KVStore, StoreHealth
from redis_infra.kv.commands import Command

__all__ = ["FallbackStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FallbackStore(KVStore):
    """``primary``, and a store that ``make`` makes for each outage. Says ``degraded`` meanwhile.

    Only where nobody can be asked. What may have been executed (``StoreIndeterminate``) is raised all the
    same, and so is what a provider that is there says it cannot do now (it is full, say): what memory took
    would be gone with the next answer.
    """

    def __init__(self, primary: KVStore, make: Callable[[], KVStore]) -> None:
        super().__init__(primary.commands.home)
        self.primary = primary
        self.provider = primary.provider
        self.why = primary.why
        self._make = make
        self._lock = threading.Lock()
        self._local: KVStore | None = None

    @property
    def where(self) -> str:
        return self.primary.where

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        try:
            replies = self.primary.execute(commands, atomic=atomic)
        except StoreUnavailable as error:
            return self._instead(error).execute(commands, atomic=atomic)
        self._is_back()
        return replies

    async def aexecute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        try:
            replies = await self.primary.aexecute(commands, atomic=atomic)
        except StoreUnavailable as error:
            return await self._instead(error).aexecute(commands, atomic=atomic)
        self._is_back()
        return replies

    def call(self, command: Command[T]) -> T:
        try:
            answer = self.primary.call(command)
        except StoreUnavailable as error:
            return self._instead(error).call(command)
        self._is_back()
        return answer

    async def acall(self, command: Command[T]) -> T:
        try:
            answer = await self.primary.acall(command)
        except StoreUnavailable as error:
            return await self._instead(error).acall(command)
        self._is_back()
        return answer

    def _instead(self, error: StoreUnavailable) -> KVStore:
        if error.answered:
            raise error
        with self._lock:
            if self._local is None:
                self._local = self._make()
                logger.warning(
                    "redis_infra.kv_in_memory provider=%s cause=%s", self.primary.provider, error.reason
                )
            return self._local

    def _is_back(self) -> None:
        if self._local is None:
            return
        with self._lock:
            known, self._local = self._local, None
        if known is not None:
            logger.info("redis_infra.kv_recovered provider=%s", self.primary.provider)

    def ping(self) -> bool:
        """Whether the provider answers; what is in memory does in any case."""
        return self.primary.ping()

    async def aping(self) -> bool:
        return await self.primary.aping()

    def health(self) -> StoreHealth:
        return self._seen(self.primary.health())

    async def ahealth(self) -> StoreHealth:
        return self._seen(await self.primary.ahealth())

    def _seen(self, found: StoreHealth) -> StoreHealth:
        if found.status == "ok":
            self._is_back()
            return found
        return dataclasses.replace(found, status="degraded")

    def close(self) -> None:
        self.primary.close()

    async def aclose(self) -> None:
        await self.primary.aclose()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self.primary.after_fork()
        if self._local is not None:
            self._local.after_fork()
