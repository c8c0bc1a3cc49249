"""What a value becomes in Redis, and what becomes of what lies there."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
import pickle
import sys
import threading
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from django_redis.serializers.base import BaseSerializer
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.exceptions import MissingExtra, SettingsError

KEY = "site:user:7"
SECRET = b"one secret"
LONG = {"text": "all work and no play " * 200}
DJANGO_REDIS_JSON = "django_redis.serializers.json.JSONSerializer"
DJANGO_REDIS_PICKLE = "django_redis.serializers.pickle.PickleSerializer"
DJANGO_REDIS_IDENTITY = "django_redis.compressors.identity.IdentityCompressor"
DJANGO_REDIS_ZLIB = "django_redis.compressors.zlib.ZlibCompressor"
SERIALIZERS = ["pickle", "json", "msgpack"]
COMPRESSORS = [None, "zlib", "lz4", "zstd"]
PAIRS = [(serializer, compressor) for serializer in SERIALIZERS for compressor in COMPRESSORS]
TRUST = [False, True, "migrate"]


class Colour(enum.IntEnum):
    RED = 48  # msgpack writes it as the one byte "0"


class Celsius(int):
    pass


class Sealed(BaseSerializer):
    """As one that encrypts: bytes of which any may come first."""

    def dumps(self, value: Any) -> bytes:
        return b"\xc1\x10" + pickle.dumps(value)

    def loads(self, value: bytes) -> Any:
        assert value[:2] == b"\xc1\x10"
        return pickle.loads(value[2:])


class Text(BaseSerializer):
    """Returns text, which redis-py takes as well."""

    def dumps(self, value: Any) -> Any:
        return json.dumps(value)

    def loads(self, value: bytes) -> Any:
        return json.loads(value)


class TaggedPickle(BaseSerializer):
    def __init__(self, options: dict[str, Any]) -> None:
        self.tag = options["TAG"]

    def dumps(self, value: Any) -> bytes:
        return self.tag + pickle.dumps(value)

    def loads(self, value: bytes) -> Any:
        return pickle.loads(value.removeprefix(self.tag))


class Hostile:
    """Raises what a class of the site may raise while it is unpickled."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self.error,)


def _raise(error: type[Exception]) -> None:
    raise error("a value that should not be logged")


def signed(**options: Any) -> Codec:
    return Codec.build(**{"signed": True, "key_material": [SECRET], **options})


def path(serializer: type) -> str:
    return f"{serializer.__module__}.{serializer.__qualname__}"


# --- integers


@pytest.mark.parametrize("serializer", [*SERIALIZERS, DJANGO_REDIS_JSON])
@pytest.mark.parametrize("number", [0, 7, -7, 2**63 - 1, -(2**63)])
def test_integers_are_digits_so_that_redis_can_count(serializer: str, number: int) -> None:
    codec = Codec.build(serializer)
    assert codec.encode(KEY, number) == str(number).encode()
    assert codec.decode(KEY, str(number).encode()) == number


@pytest.mark.parametrize("value", [True, False, Colour.RED, Celsius(20), 2**63, -(2**63) - 1, 10**30])
def test_what_only_looks_like_a_counter_is_pickled_and_keeps_its_type(value: Any) -> None:
    codec = Codec.build()
    raw = codec.encode(KEY, value)
    assert raw == pickle.dumps(value, 5)
    assert codec.decode(KEY, raw) == value
    assert type(codec.decode(KEY, raw)) is type(value)


def test_big_integers_are_digits_where_django_redis_writes_them_so() -> None:
    codec = Codec.build(DJANGO_REDIS_PICKLE)
    assert codec.encode(KEY, 10**30) == b"1" + b"0" * 30
    assert codec.decode(KEY, b"1" + b"0" * 30) == 10**30


@pytest.mark.parametrize("raw", [b"1_000", b" 1", b"1 ", b"+1", b"1.0", b"--1", b"-", b"", "\u0661".encode()])
def test_only_minus_and_digits_are_an_integer(raw: bytes) -> None:
    """Python's int() takes more than Redis' INCR writes."""
    with pytest.raises(Unreadable):
        Codec.build().decode(KEY, raw)


def test_more_digits_than_python_converts_are_unreadable() -> None:
    with pytest.raises(Unreadable):
        Codec.build().decode(KEY, b"9" * 5000)


@pytest.mark.parametrize("trust", TRUST)
def test_integers_are_never_signed(trust: bool | str) -> None:
    codec = Codec.build(signed=trust, key_material=[SECRET])
    assert codec.encode(KEY, 7) == b"7"
    assert codec.decode("another key", b"7") == 7


# --- the format


def test_default_is_a_bare_pickle() -> None:
    assert Codec.build().encode(KEY, {"a": 1}) == pickle.dumps({"a": 1}, 5)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, "4", -1])
def test_pickle_version_is_honoured_and_read_back(protocol: Any) -> None:
    codec = Codec.build(options={"PICKLE_VERSION": protocol})
    raw = codec.encode(KEY, {"a": (1, "b")})
    assert raw == pickle.dumps({"a": (1, "b")}, int(protocol))
    assert codec.decode(KEY, raw) == {"a": (1, "b")}


@pytest.mark.parametrize(
    ("options", "raw"),
    [
        ({"serializer": "json"}, b'\xc1\x10\x10{"a":1}'),
        ({"serializer": "msgpack"}, b"\xc1\x10\x20\x81\xa1a\x01"),
        ({"compressor": "zlib", "compress_min": 0}, b"\xc1\x10\x01"),
        ({"compressor": "lz4", "compress_min": 0}, b"\xc1\x10\x02"),
        ({"compressor": "zstd", "compress_min": 0}, b"\xc1\x10\x03"),
        ({"serializer": "json", "compressor": "zstd", "compress_min": 0}, b"\xc1\x10\x13"),
    ],
)
def test_header_names_serializer_and_compressor(options: dict[str, Any], raw: bytes) -> None:
    """These bytes are in Redis somewhere: an upgrade has to read them."""
    value = {"a": 1} if len(raw) > 3 else LONG
    assert Codec.build(**options).encode(KEY, value).startswith(raw)


def test_signed_value_of_the_first_release_is_still_read() -> None:
    raw = bytes.fromhex("c11110a6c34d8bc9a1fabca575ea24273e43867b2261223a317d")
    assert signed(serializer="json").encode(KEY, {"a": 1}) == raw
    assert signed().decode(KEY, raw) == {"a": 1}


@pytest.mark.parametrize("trust", TRUST)
@pytest.mark.parametrize("compressor", [*COMPRESSORS, DJANGO_REDIS_ZLIB])
@pytest.mark.parametrize("serializer", [*SERIALIZERS, DJANGO_REDIS_JSON, DJANGO_REDIS_PICKLE])
def test_every_combination_reads_what_it_wrote(
    serializer: str, compressor: str | None, trust: bool | str
) -> None:
    codec = Codec.build(serializer, compressor, 64, trust, {}, [SECRET])
    for value in (LONG, {"a": [1, None, 2.5, "x"]}, None, "", "7", "-7", 1.5, [], True):
        assert codec.decode(KEY, codec.encode(KEY, value)) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values, st.sampled_from(["pickle", "json"]), st.sampled_from(COMPRESSORS), st.sampled_from(TRUST))
def test_any_value_survives(value: Any, serializer: str, compressor: str | None, trust: bool | str) -> None:
    codec = Codec.build(serializer, compressor, 16, trust, {}, [SECRET])
    assert codec.decode(KEY, codec.encode(KEY, value)) == value


def test_header_is_read_whatever_this_alias_writes() -> None:
    everyone = [Codec.build(serializer, compressor, 64) for serializer, compressor in PAIRS]
    for writer in everyone:
        raw = writer.encode(KEY, LONG)
        assert all(reader.decode(KEY, raw) == LONG for reader in everyone)


def test_bare_pickles_are_read_after_a_change_of_serializer() -> None:
    assert Codec.build("json").decode(KEY, pickle.dumps((1, 2))) == (1, 2)


# --- compression


@pytest.mark.parametrize("compressor", ["zlib", "lz4", "zstd"])
def test_values_below_the_threshold_are_not_compressed(compressor: str) -> None:
    plain = pickle.dumps(LONG, 5)
    below, at = (Codec.build(compressor=compressor, compress_min=len(plain) + more) for more in (1, 0))
    assert below.encode(KEY, LONG) == plain
    assert len(at.encode(KEY, LONG)) < len(plain)


@pytest.mark.parametrize("compressor", ["zlib", "lz4", "zstd"])
def test_what_does_not_shrink_is_not_compressed(compressor: str) -> None:
    assert Codec.build("json", compressor, 0).encode(KEY, "abc") == b'\xc1\x10\x10"abc"'


def test_zstd_contexts_are_not_shared_between_threads() -> None:
    codec = Codec.build(compressor="zstd", compress_min=0)
    start = threading.Barrier(8)
    failures: list[int] = []

    def work(number: int) -> None:
        value = [number] * 5000
        start.wait()
        failures.extend(number for _ in range(50) if codec.decode(KEY, codec.encode(KEY, value)) != value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- what a serializer keeps and loses


def test_json_loses_types_as_documented() -> None:
    codec = Codec.build("json")
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    number = uuid.UUID(int=1)
    value = {"t": (1, 2), 1: "key", "d": moment, "m": decimal.Decimal("1.50"), "u": number, "e": Colour.RED}
    assert codec.decode(KEY, codec.encode(KEY, value)) == {
        "t": [1, 2],
        "1": "key",
        "d": "2026-01-02T03:04:05.678Z",
        "m": "1.50",
        "u": str(number),
        "e": 48,
    }


def test_json_keeps_every_text() -> None:
    codec = Codec.build("json")
    for text in ("żółw", "\ud800", "\x00", '"'):
        assert codec.decode(KEY, codec.encode(KEY, text)) == text


def test_msgpack_keeps_keys_of_any_type() -> None:
    codec = Codec.build("msgpack")
    assert codec.decode(KEY, codec.encode(KEY, {1: b"bytes", "a": (1, 2)})) == {1: b"bytes", "a": [1, 2]}


def test_msgpack_number_that_looks_like_a_digit_is_not_taken_for_one() -> None:
    codec = Codec.build("msgpack")
    assert codec.decode(KEY, codec.encode(KEY, Colour.RED)) == 48


@pytest.mark.parametrize(
    ("serializer", "value", "error"),
    [
        ("pickle", lambda: 1, (pickle.PicklingError, AttributeError)),
        ("pickle", threading.Lock(), TypeError),
        ("json", b"bytes", TypeError),
        ("json", {1, 2}, TypeError),
        ("msgpack", object(), TypeError),
        ("msgpack", 2**64, OverflowError),
    ],
)
@pytest.mark.parametrize("trust", TRUST)
def test_errors_of_encoding_reach_the_caller_unchanged(
    serializer: str, value: Any, error: Any, trust: bool | str
) -> None:
    with pytest.raises(error) as caught:
        Codec.build(serializer, signed=trust, key_material=[SECRET]).encode(KEY, value)
    assert not isinstance(caught.value, Unreadable)


# --- damage


@pytest.mark.parametrize("error", [ValueError, KeyError, ImportError, MemoryError, RecursionError])
@pytest.mark.parametrize("compressor", [None, "zlib"])
def test_whatever_unpickling_raises_is_unreadable(error: type[Exception], compressor: str | None) -> None:
    codec = Codec.build(compressor=compressor, compress_min=0)
    with pytest.raises(Unreadable) as caught:
        codec.decode(KEY, codec.encode(KEY, [Hostile(error)] * 50))
    assert type(caught.value.__cause__) is error
    assert caught.value.reason == f"cannot be decoded ({error.__name__})"


def test_class_that_is_gone_is_unreadable() -> None:
    raw = pickle.dumps(Celsius(20), 5).replace(b"Celsius", b"Kelvins")
    with pytest.raises(Unreadable, match="AttributeError"):
        Codec.build().decode(KEY, raw)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("compressor", [*COMPRESSORS, DJANGO_REDIS_ZLIB])
@pytest.mark.parametrize("serializer", [*SERIALIZERS, DJANGO_REDIS_JSON])
def test_truncated_value_is_unreadable(serializer: str, compressor: str | None, trust: bool) -> None:
    codec = Codec.build(serializer, compressor, 16, trust, {}, [SECRET])
    raw = codec.encode(KEY, {"name": "x" * 50, "numbers": [1, 2, 3]})
    for length in range(len(raw)):
        with pytest.raises(Unreadable):
            codec.decode(KEY, raw[:length])


# None of these unpickles what it does not trust: a damaged pickle may ask for any amount of memory.
careful = [
    Codec.build(DJANGO_REDIS_JSON, compressor, 16, trust, {}, [SECRET])
    for compressor in (*COMPRESSORS, DJANGO_REDIS_ZLIB)
    for trust in TRUST
] + [Codec.build(serializer, compressor, 16, True, {}, [SECRET]) for serializer, compressor in PAIRS]
STARTS = [b"", b"\xc1", b"\xc1\x10", b"\xc1\x11", b"\xc1\x10\x10", b"\xc1\x10\x21", b"\xc1\x10\xf0"]


def decode_or_give_up(codec: Codec, raw: bytes) -> None:
    with contextlib.suppress(Unreadable):
        codec.decode(KEY, raw)


@given(st.sampled_from(careful), st.sampled_from(STARTS), st.binary(max_size=60))
def test_any_bytes_are_a_value_or_unreadable(codec: Codec, start: bytes, raw: bytes) -> None:
    decode_or_give_up(codec, start + raw)


@given(st.sampled_from(careful), st.integers(0, 10_000), st.integers(1, 255))
def test_value_with_one_wrong_byte_is_a_value_or_unreadable(codec: Codec, place: int, change: int) -> None:
    raw = bytearray(codec.encode(KEY, {"name": "x" * 50, "numbers": [1, 2.5, None]}))
    raw[place % len(raw)] ^= change
    decode_or_give_up(codec, bytes(raw))


@pytest.mark.parametrize("ids", [0x30, 0x04, 0xF0, 0x0F])
def test_unknown_format_is_unreadable(ids: int) -> None:
    with pytest.raises(Unreadable, match="not known here"):
        Codec.build().decode(KEY, bytes((0xC1, 0x10, ids)) + b"payload")


def test_header_of_a_later_release_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        Codec.build().decode(KEY, b"\xc1\x20\x00payload")


# --- libraries


@pytest.mark.parametrize(
    ("option", "name", "module", "extra"),
    [
        ("serializer", "msgpack", "msgpack", "msgpack"),
        ("compressor", "lz4", "lz4.frame", "lz4"),
        ("serializer", "django_redis.serializers.msgpack.MSGPackSerializer", "msgpack", "msgpack"),
        ("compressor", "django_redis.compressors.lz4.Lz4Compressor", "lz4.frame", "lz4"),
    ],
)
def test_missing_library_names_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, option: str, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if "." in name:
        monkeypatch.delitem(sys.modules, name.rpartition(".")[0], raising=False)
    with pytest.raises(MissingExtra, match=rf"redis-infra\[{extra}\]"):
        Codec.build(**{option: name})


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 has zstd itself")
def test_missing_zstandard_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"redis-infra\[zstd\]"):
        Codec.build(compressor="zstd")


def test_value_of_a_missing_library_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Codec.build("msgpack").encode(KEY, {"a": 1})
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(Unreadable) as caught:
        Codec.build().decode(KEY, raw)
    assert isinstance(caught.value.__cause__, MissingExtra)


# --- settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"serializer": "jsno"}, "SERIALIZER 'jsno' .* did you mean 'json'"),
        ({"compressor": "gzip"}, "COMPRESSOR 'gzip' is neither zlib, lz4, zstd nor a dotted path"),
        ({"serializer": "no.such.Serializer"}, "SERIALIZER 'no.such.Serializer' cannot be imported"),
        ({"compressor": "django_redis.compressors.zlib.Nope"}, "COMPRESSOR .* cannot be imported"),
        ({"options": {"PICKLE_VERSION": "new"}}, "PICKLE_VERSION 'new' is not an integer"),
        ({"options": {"PICKLE_VERSION": 99}}, "PICKLE_VERSION 99 is above"),
        ({"signed": True}, "SIGNED needs a SECRET_KEY"),
        ({"signed": True, "key_material": [SECRET, b""]}, "SECRET_KEY_FALLBACKS"),
    ],
)
def test_wrong_settings_say_what_would_be_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Codec.build(**options)


def test_repr_tells_the_settings_and_no_secret() -> None:
    assert repr(signed(serializer="json")) == "<Codec json, uncompressed, signed>"
    assert repr(Codec.build(compressor="lz4")) == "<Codec pickle, lz4, unsigned>"


# --- dotted paths


@pytest.mark.parametrize(
    ("options", "write"),
    [
        ({"serializer": DJANGO_REDIS_PICKLE}, pickle.dumps),
        ({"serializer": DJANGO_REDIS_JSON}, lambda value: json.dumps(value).encode()),
        ({"compressor": DJANGO_REDIS_ZLIB}, lambda value: zlib.compress(pickle.dumps(value, 5), 6)),
        ({"compressor": DJANGO_REDIS_IDENTITY}, lambda value: pickle.dumps(value, 5)),
        ({"serializer": path(Text)}, lambda value: json.dumps(value).encode()),
    ],
)
def test_dotted_paths_write_what_django_redis_writes(
    options: dict[str, Any], write: Callable[[Any], bytes]
) -> None:
    codec = Codec.build(**options)
    assert codec.encode(KEY, LONG) == write(LONG)
    assert codec.decode(KEY, write(LONG)) == LONG


def test_dotted_path_is_made_with_the_options() -> None:
    codec = Codec.build(path(TaggedPickle), options={"TAG": b"<tag>"})
    assert codec.encode(KEY, "x").startswith(b"<tag>")
    assert codec.decode(KEY, codec.encode(KEY, "x")) == "x"


def test_what_does_not_decompress_was_too_small_to_be_compressed() -> None:
    """django-redis compresses from 16 bytes on and marks neither."""
    codec = Codec.build(compressor=DJANGO_REDIS_ZLIB)
    assert codec.encode(KEY, ()) == pickle.dumps((), 5)
    assert codec.decode(KEY, pickle.dumps((), 5)) == ()


def test_own_bytes_that_begin_like_our_header_are_read_as_what_they_are() -> None:
    codec = Codec.build(path(Sealed))
    raw = codec.encode(KEY, {"a": 1})
    assert raw[:3] == b"\xc1\x10\xf0"
    assert codec.decode(KEY, raw) == {"a": 1}


def test_dotted_serializer_that_does_not_pickle_never_unpickles() -> None:
    """As with django-redis: who chose JSON so that nothing is executed still has that after the change."""
    codec = Codec.build(DJANGO_REDIS_JSON)
    for raw in (pickle.dumps({"a": 1}), b"\xc1\x10\x00" + pickle.dumps({"a": 1})):
        with pytest.raises(Unreadable):
            codec.decode(KEY, raw)


def test_short_serializer_with_a_dotted_compressor() -> None:
    codec = Codec.build("json", DJANGO_REDIS_ZLIB)
    raw = codec.encode(KEY, LONG)
    assert raw[:3] == b"\xc1\x10\x1f"
    assert codec.decode(KEY, raw) == LONG
    assert codec.decode(KEY, codec.encode(KEY, "x")) == "x"


def test_dotted_serializer_with_a_short_compressor() -> None:
    codec = Codec.build(DJANGO_REDIS_JSON, "zlib", 64)
    raw = codec.encode(KEY, LONG)
    assert raw[:3] == b"\xc1\x10\xf1"
    assert codec.decode(KEY, raw) == LONG
    assert codec.encode(KEY, "x") == b'"x"'


# --- signatures


def test_signed_value_is_bound_to_its_key() -> None:
    raw = signed().encode(KEY, "x")
    with pytest.raises(Unreadable, match="signature does not match"):
        signed().decode("site:user:8", raw)


def test_end_of_a_key_cannot_pass_for_the_beginning_of_a_value() -> None:
    mac_of_longer_key = signed(serializer="json").encode("ab", "c")
    moved = mac_of_longer_key[:19] + b"b" + mac_of_longer_key[19:]
    with pytest.raises(Unreadable, match="signature"):
        signed().decode("a", moved)


def test_every_bit_of_a_signed_value_counts() -> None:
    codec = signed(serializer="json")
    raw = codec.encode(KEY, {"a": "b"})
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            with pytest.raises(Unreadable):
                codec.decode(KEY, bytes(changed))


def test_unsigned_value_is_not_unpickled_where_values_are_signed() -> None:
    executed: list[str] = []
    _Witness.executed = executed
    for raw in (pickle.dumps(_Witness()), b"\xc1\x10\x00" + pickle.dumps(_Witness())):
        with pytest.raises(Unreadable, match="not signed"):
            signed().decode(KEY, raw)
    forged = b"\xc1\x11\x00" + bytes(16) + pickle.dumps(_Witness())
    with pytest.raises(Unreadable, match="signature does not match"):
        signed().decode(KEY, forged)
    assert executed == []


class _Witness:
    executed: list[str]

    def __reduce__(self) -> tuple[Any, ...]:
        return _testify, ()


def _testify() -> None:
    _Witness.executed.append("unpickled")


def test_fallback_secrets_verify_and_the_first_one_signs() -> None:
    old, new, both = signed(), signed(key_material=[b"new"]), signed(key_material=[b"new", SECRET])
    assert both.decode(KEY, old.encode(KEY, "x")) == "x"
    assert new.decode(KEY, both.encode(KEY, "x")) == "x"
    with pytest.raises(Unreadable):
        old.decode(KEY, both.encode(KEY, "x"))


def test_migrate_signs_and_reads_what_is_not_signed_yet() -> None:
    codec = signed(signed="migrate")
    assert signed().decode(KEY, codec.encode(KEY, "x")) == "x"
    assert codec.decode(KEY, pickle.dumps("x")) == "x"
    assert codec.decode(KEY, Codec.build("json").encode(KEY, "x")) == "x"


def test_migrate_refuses_a_wrong_signature() -> None:
    with pytest.raises(Unreadable, match="signature"):
        signed(signed="migrate").decode(KEY, signed(key_material=[b"other"]).encode(KEY, "x"))


def test_alias_that_does_not_sign_reads_signed_values() -> None:
    """So that one half of a fleet may begin to sign before the other."""
    assert Codec.build().decode(KEY, signed().encode(KEY, "x")) == "x"


def test_signed_value_of_a_dotted_path_is_read_by_the_same_path_only() -> None:
    raw = signed(serializer=DJANGO_REDIS_JSON).encode(KEY, "x")
    assert signed(serializer=DJANGO_REDIS_JSON).decode(KEY, raw) == "x"
    with pytest.raises(Unreadable, match="signature"):
        signed(serializer=path(Text)).decode(KEY, raw)


def test_same_value_has_other_bytes_under_another_secret() -> None:
    assert signed().encode(KEY, "x") == signed().encode(KEY, "x")
    assert signed().encode(KEY, "x") != signed(key_material=[b"other"]).encode(KEY, "x")
