"""Serializers and compressors: ours by short name, those of django-redis by dotted path.

What each loses. JSON: tuples come back as lists, keys as text, dates, times, decimals and UUIDs as text
(times to the millisecond), members of an IntEnum as numbers; bytes, sets and other objects are a
``TypeError``. msgpack: tuples come back as lists, members of an IntEnum as numbers; dates, decimals, UUIDs,
sets and other objects are a ``TypeError``, integers of more than 64 bits an ``OverflowError``.

This module turns values into payloads and back. It does not know headers, signatures or keys. A library is
imported when its format is first wanted.
"""

from __future__ import annotations

import difflib
import json
import pickle
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.utils.module_loading import import_string
from django_redis.exceptions import CompressorError
from django_redis.serializers.pickle import PickleSerializer

from redis_infra.exceptions import MissingExtra, SettingsError

__all__ = ["OWN", "Format", "Formats", "Unreadable", "pack_ids"]

OWN = 15
_PROTOCOL = 5
_DJANGO_REDIS_PICKLE = "django_redis.serializers.pickle.PickleSerializer"
_DJANGO_REDIS_IDENTITY = "django_redis.compressors.identity.IdentityCompressor"


class Unreadable(Exception):
    """Stored bytes that this alias cannot turn into a value: a miss for whoever asked.

    ``reason`` is a short phrase without key or value, fit for a log line; ``__cause__`` is the decoder's own
    error, if there was one.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Format:
    """A serializer or compressor: its id in the header, and its two directions. Thread-safe."""

    id: int
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def _library(package: str, module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra) from error


def _pickle(protocol: int = _PROTOCOL) -> Format:
    return Format(0, partial(pickle.dumps, protocol=protocol), pickle.loads)


def _json() -> Format:
    # Not at the top: it imports django.db, which nobody who pickles needs here.
    from django.core.serializers.json import DjangoJSONEncoder

    # One encoder for all calls, where json.dumps(cls=...) makes one a call. With "surrogatepass" lone
    # surrogates survive, and other letters need not be written as \uXXXX.
    encode = DjangoJSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return Format(
        1,
        lambda value: encode(value).encode("utf-8", "surrogatepass"),
        lambda payload: json.loads(payload.decode("utf-8", "surrogatepass")),
    )


def _msgpack() -> Format:
    library = _library("msgpack", "msgpack", "msgpack")
    return Format(2, library.packb, partial(library.unpackb, strict_map_key=False))


def _zlib() -> Format:
    # Not the default level of 6: 1.8 times as fast at 10 KB, 4.7 at 100 KB, for 2 % of size (text, measured).
    return Format(1, partial(zlib.compress, level=1), zlib.decompress)


def _lz4() -> Format:
    library = _library("lz4", "lz4.frame", "lz4")
    return Format(2, library.compress, library.decompress)


def _zstd() -> Format:
    if sys.version_info >= (3, 14) and find_spec("zstandard") is None:
        library = import_module("compression.zstd")
        return Format(3, library.compress, library.decompress)
    contexts = _ZstdContexts(_library("zstandard", "zstandard", "zstd"))
    # Not `contexts.compress`, which would be that of the thread that is here now.
    return Format(3, lambda payload: contexts.compress(payload), lambda data: contexts.decompress(data))  # noqa: PLW0108


class _ZstdContexts(threading.local):
    """One thread's contexts: they must not be shared, and making them costs 10 microseconds a value."""

    def __init__(self, library: Any) -> None:
        self.compress: Callable[[bytes], bytes] = library.ZstdCompressor().compress
        self.decompress: Callable[[bytes], bytes] = library.ZstdDecompressor().decompress


_SERIALIZERS: dict[str, Callable[[], Format]] = {"pickle": _pickle, "json": _json, "msgpack": _msgpack}
_COMPRESSORS: dict[str, Callable[[], Format]] = {"zlib": _zlib, "lz4": _lz4, "zstd": _zstd}
# The ids are in stored values: a new format gets a new one, an old one is never given away. 0: no compressor.
_SERIALIZERS_BY_ID = {0: _pickle, 1: _json, 2: _msgpack}
_COMPRESSORS_BY_ID = {1: _zlib, 2: _lz4, 3: _zstd}


def _named(option: str, name: str, known: Mapping[str, Callable[[], Format]]) -> Format:
    if name in known:
        return known[name]()
    guess = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else ""
    raise SettingsError(f"{option} {name!r} is neither {', '.join(known)} nor a dotted path{hint}")


def _instance(option: str, path: str, options: dict[str, Any]) -> Any:
    """Make the class at ``path`` the way django-redis does."""
    try:
        return import_string(path)(options=options)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("lz4", "msgpack"):
            raise MissingExtra(package, package) from error
        raise SettingsError(f"{option} {path!r} cannot be imported: {error}") from error


def _own_serializer(path: str, options: dict[str, Any]) -> tuple[Format, bool]:
    own = _instance("SERIALIZER", path, options)

    def dumps(value: Any) -> bytes:
        payload = own.dumps(value)
        return payload.encode() if isinstance(payload, str) else bytes(payload)  # redis-py takes text as well

    return Format(OWN, dumps, own.loads), isinstance(own, PickleSerializer)


def _own_compressor(path: str, options: dict[str, Any]) -> Format:
    own = _instance("COMPRESSOR", path, options)
    return Format(OWN, own.compress, own.decompress)


def _protocol(options: Mapping[str, Any], default: int) -> int:
    version = options.get("PICKLE_VERSION", default)
    try:
        protocol = int(version)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"PICKLE_VERSION {version!r} is not an integer") from error
    if protocol > pickle.HIGHEST_PROTOCOL:
        raise SettingsError(f"PICKLE_VERSION {protocol} is above {pickle.HIGHEST_PROTOCOL}, Python's highest")
    return protocol


def pack_ids(serializer: Format, compressor: Format | None) -> int:
    """Return the header's byte for the pair."""
    return serializer.id << 4 | (compressor.id if compressor else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """What one alias writes with, and what it reads. Thread-safe.

    ``foreign_serializer`` and ``foreign_compressor`` are those of values without a header: what django-redis
    uses with the same options. ``is_foreign`` tells that those options were given as it takes them, by dotted
    path, and ``own`` holds the paths that the id "own" stands for. ``unpickles`` is False only where
    SERIALIZER is the dotted path of something that does not pickle.
    """

    serializer: Format
    compressor: Format | None
    foreign_serializer: Format
    foreign_compressor: Format | None
    protocol: int
    unpickles: bool
    is_foreign: bool
    own: str

    @classmethod
    def load(cls, serializer: str, compressor: str | None, options: dict[str, Any]) -> Formats:
        """Resolve the two names.

        Raises:
            SettingsError: an unknown name, a path that cannot be imported, a bad PICKLE_VERSION.
            MissingExtra: the library behind a name is not installed.
        """
        if compressor == _DJANGO_REDIS_IDENTITY:
            compressor = None
        dotted_pickle = serializer == _DJANGO_REDIS_PICKLE
        protocol = _protocol(options, pickle.DEFAULT_PROTOCOL if dotted_pickle else _PROTOCOL)
        writer, unpickles = _serializer(serializer, protocol, options)
        squeezer = _compressor(compressor, options)
        has_own, squeezes_own = writer.id == OWN, squeezer is not None and squeezer.id == OWN
        return cls(
            serializer=writer,
            compressor=squeezer,
            foreign_serializer=writer if has_own else _pickle(protocol),
            foreign_compressor=squeezer if squeezes_own else None,
            protocol=protocol,
            unpickles=unpickles,
            is_foreign="." in serializer or squeezes_own,
            own=f"{serializer if has_own else ''} {compressor if squeezes_own else ''}",
        )

    def reader(self, ids: int) -> Callable[[bytes], Any]:
        """Return what turns a payload whose header has these ids into its value.

        Raises:
            Unreadable: no such format, or one that this alias does not read.
            MissingExtra: its library is not installed.
        """
        serializer = self._find(ids >> 4, self.serializer, _SERIALIZERS_BY_ID)
        if serializer.id == 0 and not self.unpickles:
            raise Unreadable("pickled, and this alias does not unpickle")
        if ids & 15 == 0:
            return serializer.read
        loads, decompress = serializer.read, self._find(ids & 15, self.compressor, _COMPRESSORS_BY_ID).read
        return lambda payload: loads(decompress(payload))

    def foreign_reader(self) -> Callable[[bytes], Any]:
        """Return what reads a value without a header."""
        if self.foreign_compressor is None:
            return self.foreign_serializer.read
        loads, decompress = self.foreign_serializer.read, self.foreign_compressor.read

        def read(raw: bytes) -> Any:
            try:
                payload = decompress(raw)
            except CompressorError:
                payload = raw  # django-redis marks neither: this one was too small to be compressed
            return loads(payload)

        return read

    @staticmethod
    def _find(number: int, configured: Format | None, known: Mapping[int, Callable[[], Format]]) -> Format:
        if configured is not None and configured.id == number:
            return configured
        if number not in known:
            raise Unreadable(f"format {number} is not known here")
        return known[number]()


def _serializer(name: str, protocol: int, options: dict[str, Any]) -> tuple[Format, bool]:
    if name in ("pickle", _DJANGO_REDIS_PICKLE):
        return _pickle(protocol), True
    if "." in name:
        return _own_serializer(name, options)
    return _named("SERIALIZER", name, _SERIALIZERS), True


def _compressor(name: str | None, options: dict[str, Any]) -> Format | None:
    if name is None:
        return None
    if "." in name:
        return _own_compressor(name, options)
    return _named("COMPRESSOR", name, _COMPRESSORS)
