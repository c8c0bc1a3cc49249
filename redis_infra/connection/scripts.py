"""Lua scripts: a file each, sent by its digest, and whole only if the server asks.

Without I/O: a script is a conversation, driven by whoever has a connection.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Generator
from functools import cached_property
from typing import Any, TypeAlias

from redis_infra.connection.wire import pack

__all__ = ["INCR_EXISTING", "Script", "Talk", "Turn", "is_unknown_script"]

Turn: TypeAlias = bytes | tuple[bytes, int]
"""One packed command; or several packed into one write, and how many replies they get."""

Talk: TypeAlias = Generator[Turn, Any, Any]
"""A conversation without I/O: yields its turns, is sent the reply (or the list of replies), has
error replies thrown into it, and returns what it came to."""


class Script:
    """One ``.lua`` file of a package. Immutable; share it freely.

    ``uses`` names files of functions that several scripts call; they come before it.
    """

    def __init__(self, package: str, name: str, *, uses: tuple[str, ...] = ()) -> None:
        self.package = package
        self.name = name
        self._files = (*uses, name)

    @cached_property
    def source(self) -> str:
        return "".join(map(self._read, self._files))

    def _read(self, name: str) -> str:
        # pkgutil, which Django has imported already: importlib.resources takes 5 ms to come in.
        source = pkgutil.get_data(self.package, f"{name}.lua")
        if source is None:
            raise FileNotFoundError(f"{name}.lua is missing from {self.package}")
        return source.decode()

    @cached_property
    def sha(self) -> str:
        # SCRIPT LOAD is not needed: the server takes any text's SHA-1 as its name after one EVAL.
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def packed(self, keys: tuple[str, ...], args: tuple[str | bytes | int, ...]) -> bytes:
        """The EVALSHA command, for callers who look for :func:`is_unknown_script` themselves."""
        return pack("EVALSHA", self.sha, len(keys), *keys, *args)

    def whole(self, keys: tuple[str, ...], args: tuple[str | bytes | int, ...]) -> bytes:
        """The EVAL command, which makes the script known to the server."""
        return pack("EVAL", self.source, len(keys), *keys, *args)

    def talk(self, keys: tuple[str, ...], *args: str | bytes | int) -> Talk:
        """Run it in one round trip; in two if the server has not met it yet.

        NOSCRIPT says that nothing was executed, so sending it again is safe for
        counters too.
        """
        try:
            return (yield self.packed(keys, args))
        except Exception as error:
            if not is_unknown_script(error):
                raise
            return (yield self.whole(keys, args))


def is_unknown_script(error: Exception) -> bool:
    """Whether the server has not met the script yet (so nothing was executed)."""
    # By its code and not by its class: importing this module must not import redis-py.
    return getattr(error, "status_code", None) == "NOSCRIPT"


INCR_EXISTING = Script("redis_infra.connection", "incr_existing")
