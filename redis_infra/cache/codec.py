"""The bytes of a cached value: what an alias writes, and whose bytes it can read.

Three kinds of value lie in one Redis, told apart by how they begin:

* nothing but an optional minus and digits: an integer, as Redis' INCR wants it. Never signed;
* ``0xC1``, with which no pickle, UTF-8 text, msgpack or compressed stream begins: our header and a payload;
* anything else: what django-redis with this alias' OPTIONS, or Django's own backend, would have written; by
  default a bare pickle. The default settings write the same, so a fleet can change over, and back.

The header is three bytes and, where its flag says so, a signature::

    0xC1 | version << 4, flags | serializer << 4, compressor | keyed blake2b, 16 bytes | payload

It names its serializer and compressor, so a value is read whatever this alias itself writes. What a dotted
path of django-redis' options made has the id "own", and aliases with the same dotted paths read it.

SERIALIZER "json" or "msgpack" does not keep pickles that others wrote from being read: SIGNED does. Without
it nothing is ever unpickled only where SERIALIZER is the dotted path of something that does not pickle, as in
django-redis.

This module knows bytes. It does not know versions, timeouts or Redis, nor what becomes of a value that
cannot be read.
"""

from __future__ import annotations

import hashlib
import hmac
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import inf
from typing import Any, TypeAlias

from redis_infra.cache.formats import OWN, Formats, Unreadable, pack_ids
from redis_infra.cache.values import COUNTER_MAX, COUNTER_MIN
from redis_infra.exceptions import SettingsError

__all__ = ["Codec", "Unreadable"]

Encode: TypeAlias = Callable[[str, Any], bytes]
Decode: TypeAlias = Callable[[str, bytes], Any]
Pack: TypeAlias = Callable[[Any], tuple[int, bytes]]
Seal: TypeAlias = Callable[[str, int, bytes], bytes]
Mac: TypeAlias = Callable[[bytes, str, bytes], bytes]

_MAGIC = 0xC1
_PICKLED = 0x80  # PROTO, the first opcode of every pickle since protocol 2
_NUMERIC = b"-0123456789"
_UNSIGNED, _SIGNED = 0x10, 0x11  # header version 1, and its one flag
_HEADER, _BODY = 3, 3 + 16
# Part of every signature: with other contexts, all that is stored is a miss.
_KEY_CONTEXT, _MAC_CONTEXT = b"redis_infra.key", b"redis_infra.mac"


class Codec:
    """Turn values into bytes and back, as one alias wants it.

    ``encode(bound, value) -> bytes`` lets the serializer's errors through: an unpicklable value is the
    caller's bug. ``decode(bound, raw) -> value`` raises `Unreadable` and nothing else. ``bound`` is the key
    with its prefix and without its version: what a signature ties the value to.

    Both are plain functions made for these settings, so that a call looks nothing up. Safe to share between
    threads, event loops and forked processes.
    """

    __slots__ = ("_summary", "decode", "encode")

    def __init__(self, encode: Encode, decode: Decode, summary: str) -> None:
        self.encode = encode
        self.decode = decode
        self._summary = summary

    def __repr__(self) -> str:
        return f"<Codec {self._summary}>"

    @classmethod
    def build(
        cls,
        serializer: str = "pickle",
        compressor: str | None = None,
        compress_min: int = 1024,
        signed: bool | str = False,
        options: Mapping[str, Any] | None = None,
        key_material: Sequence[bytes] = (),
    ) -> Codec:
        """Make the codec of an alias.

        ``serializer`` is ``pickle``, ``json``, ``msgpack`` or a dotted path as in django-redis' OPTIONS;
        ``compressor`` is ``zlib``, ``lz4``, ``zstd``, such a path, or None. The short names compress payloads
        of ``compress_min`` bytes and more, if that makes them smaller; django-redis' classes decide for
        themselves. ``options`` is handed to them; its ``PICKLE_VERSION`` holds for ``pickle`` too. ``signed``
        is True (only what is signed is read, integers apart), "migrate" (sign, but still read what is not) or
        False. ``key_material`` is SECRET_KEY, which signs, followed by its fallbacks, which only verify.

        Raises:
            SettingsError: an unknown name, a path that cannot be imported, or nothing to sign with.
            MissingExtra: the library behind that serializer or compressor is not installed.
        """
        formats = Formats.load(serializer, compressor, dict(options or {}))
        macs = _macs(key_material, formats.own.encode()) if signed else []
        strict = bool(signed) and signed != "migrate"
        trust = "signed" if strict else "signed, unsigned read" if signed else "unsigned"
        return cls(
            _encoder(formats, compress_min, macs),
            _decoder(formats, macs, strict=strict),
            f"{serializer}, {compressor or 'uncompressed'}, {trust}",
        )


# --- writing


def _encoder(formats: Formats, compress_min: int, macs: list[Mac]) -> Encode:
    # django-redis writes integers of any size as digits; INCR takes those of 64 bits.
    low, high = (-inf, inf) if formats.is_foreign else (COUNTER_MIN, COUNTER_MAX)
    if _writes_bare_pickles(formats) and not macs:
        return _bare_pickle_encoder(formats.protocol, low, high)
    pack = _packer(formats, compress_min)
    seal = _signing_seal(macs[0]) if macs else _plain_seal(formats)

    def encode(bound: str, value: Any) -> bytes:
        if type(value) is int and low <= value <= high:
            return b"%d" % value
        ids, payload = pack(value)
        return seal(bound, ids, payload)

    return encode


def _writes_bare_pickles(formats: Formats) -> bool:
    return formats.serializer.id == 0 and formats.compressor is None


def _bare_pickle_encoder(protocol: int, low: float, high: float) -> Encode:
    dumps = pickle.dumps

    def encode(bound: str, value: Any) -> bytes:
        # Not isinstance: bool, IntEnum and other subclasses must come back as what they are.
        if type(value) is int and low <= value <= high:
            return b"%d" % value
        return dumps(value, protocol)

    return encode


def _packer(formats: Formats, compress_min: int) -> Pack:
    """Return the function from a value to the header's ids and the payload."""
    dumps, compressor = formats.serializer.write, formats.compressor
    plain, packed = pack_ids(formats.serializer, None), pack_ids(formats.serializer, compressor)
    if compressor is None:
        return lambda value: (plain, dumps(value))
    compress = compressor.write
    decides_itself = compressor.id == OWN

    def pack(value: Any) -> tuple[int, bytes]:
        payload = dumps(value)
        if decides_itself or len(payload) >= compress_min:
            squeezed = compress(payload)
            if len(squeezed) < len(payload) or (decides_itself and squeezed != payload):
                return packed, squeezed
        return plain, payload

    return pack


def _plain_seal(formats: Formats) -> Seal:
    """Return the function that adds the header, except where a value without one is read the same."""
    bare = {
        pack_ids(formats.foreign_serializer, None),
        pack_ids(formats.foreign_serializer, formats.foreign_compressor),
    }

    def seal(bound: str, ids: int, payload: bytes) -> bytes:
        # A serializer of the site's own, one that encrypts say, may happen to begin with our first byte.
        if ids in bare and payload[:1] != b"\xc1":
            return payload
        return bytes((_MAGIC, _UNSIGNED, ids)) + payload

    return seal


def _signing_seal(mac: Mac) -> Seal:
    def seal(bound: str, ids: int, payload: bytes) -> bytes:
        header = bytes((_MAGIC, _SIGNED, ids))
        return header + mac(header, bound, payload) + payload

    return seal


# --- reading


def _decoder(formats: Formats, macs: list[Mac], *, strict: bool) -> Decode:
    decode = _any_decoder(formats, macs, strict=strict)
    if strict or not _reads_bare_pickles(formats):
        return decode
    return _pickle_first_decoder(decode)


def _reads_bare_pickles(formats: Formats) -> bool:
    return formats.foreign_serializer.id == 0 and formats.foreign_compressor is None


def _pickle_first_decoder(decode_other: Decode) -> Decode:
    """Return a decoder that reads what is nearly always there, a bare pickle, in the fewest steps."""
    loads = pickle.loads

    def decode(bound: str, raw: bytes) -> Any:
        try:
            if raw[0] == _PICKLED:
                return loads(raw)
        # Exception: unpickling runs any class' own code, perhaps that of a class that has changed since.
        except Exception as error:
            raise _unreadable(error) from error
        return decode_other(bound, raw)

    return decode


def _any_decoder(formats: Formats, macs: list[Mac], *, strict: bool) -> Decode:
    read_headed = _headed_reader(formats, macs, strict=strict)
    read_foreign = _refuse_unsigned if strict else formats.foreign_reader()

    def decode(bound: str, raw: bytes) -> Any:
        try:
            first = raw[0] if raw else 0
            if first == _MAGIC and raw[1] in (_UNSIGNED, _SIGNED):
                return read_headed(bound, raw)
            if first in _NUMERIC and raw.removeprefix(b"-").isdigit():
                return int(raw)
            return read_foreign(raw)
        except Unreadable:
            raise
        # Exception: serializers and compressors of others raise what they like over damaged bytes.
        except Exception as error:
            raise _unreadable(error) from error

    return decode


def _headed_reader(formats: Formats, macs: list[Mac], *, strict: bool) -> Decode:
    reader = cache(formats.reader)

    def read(bound: str, raw: bytes) -> Any:
        if raw[1] == _UNSIGNED:
            if strict:
                raise Unreadable("not signed")
            return reader(raw[2])(raw[_HEADER:])
        payload = raw[_BODY:]
        # Who does not sign takes all on trust: one half of a fleet may begin to sign before the other.
        if macs and not _verified(macs, raw, bound, payload):
            raise Unreadable("signature does not match")
        return reader(raw[2])(payload)

    return read


def _refuse_unsigned(raw: bytes) -> Any:
    raise Unreadable("not signed")


def _unreadable(error: Exception) -> Unreadable:
    return Unreadable(f"cannot be decoded ({type(error).__name__})")


# --- signatures


def _macs(key_material: Sequence[bytes], own: bytes) -> list[Mac]:
    if not key_material or not all(key_material):
        raise SettingsError("SIGNED needs a SECRET_KEY, and no empty one among SECRET_KEY_FALLBACKS")
    return [_mac(secret, own) for secret in key_material]


def _mac(secret: bytes, own: bytes) -> Mac:
    """Return the function from header, key and payload to their keyed hash."""
    key = hashlib.blake2b(secret, digest_size=32, person=_KEY_CONTEXT).digest()

    @cache  # no more than 256 headers begin as a signed one must
    def keyed(header: bytes) -> hashlib.blake2b:
        paths = own if OWN in (header[2] >> 4, header[2] & 15) else b""
        start = b"%b%d:%b" % (header, len(paths), paths)
        return hashlib.blake2b(start, key=key, digest_size=16, person=_MAC_CONTEXT)

    def mac(header: bytes, bound: str, payload: bytes) -> bytes:
        state = keyed(header).copy()
        name = bound.encode()
        # The length keeps the end of a name from being read as the beginning of a payload.
        state.update(len(name).to_bytes(8, "big") + name)
        state.update(payload)
        return state.digest()

    return mac


def _verified(macs: list[Mac], raw: bytes, bound: str, payload: bytes) -> bool:
    header, signature = raw[:_HEADER], raw[_HEADER:_BODY]
    for mac in macs:  # noqa: SIM110 - any() is a generator more a read
        if hmac.compare_digest(mac(header, bound, payload), signature):
            return True
    return False
