"""A Relay whose store deletes nothing and says that it did: what was revoked goes on working.

The tour must find it out. A settings module, and the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from example_project.settings import *  # noqa: F403
from redis_infra.kv import Command
from redis_infra.kv.commands import Delete
from redis_infra.kv.memory_store import MemoryStore

REDIS_INFRA = {"KEY_PREFIX": "relay", "KV": {"PROVIDER": "tests.example.hoarding.HoardingStore"}}


class HoardingStore(MemoryStore):
    """Memory that keeps what it was told to delete."""

    provider = ""

    def call(self, command: Command[Any]) -> Any:
        return len(command.keys) if isinstance(command, Delete) else super().call(command)

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        return [self.call(each) for each in commands]
