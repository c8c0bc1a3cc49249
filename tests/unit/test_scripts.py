"""``Script``: a file, its digest, and the conversation that sends the whole only to a server that asks."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import hiredis
import pytest
from redis import exceptions as redis_errors
from redis._parsers import _HiredisParser

import redis_infra
from redis_infra.cache import operations
from redis_infra.connection.scripts import INCR_EXISTING, Script, is_unknown_script

SCRIPTS = [
    INCR_EXISTING,
    operations.INCR_OR_CREATE,
    operations.PERSIST,
    operations.RENAME,
    operations.REPLACE,
]
UNKNOWN = _HiredisParser.parse_error("NOSCRIPT No matching script. Please use EVAL.")


def words(packed):
    reader = hiredis.Reader()
    reader.feed(packed)
    return reader.gets()


def answered(talk, *replies):
    """Hold the conversation with these replies; return what was said, and what it came to."""
    said = [next(talk)]
    try:
        for reply in replies:
            turn = talk.throw(reply) if isinstance(reply, Exception) else talk.send(reply)
            said.append(turn)
    except StopIteration as end:
        return said, end.value
    raise AssertionError(f"not at its end after {said}")


@pytest.fixture
def script(tmp_path, monkeypatch):
    package = tmp_path / "package_of_scripts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "answer.lua").write_text("return {KEYS[1], ARGV[1]} -- ü\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Script("package_of_scripts", "answer")
    sys.modules.pop("package_of_scripts", None)


def test_its_text_is_the_file(script):
    assert script.source == "return {KEYS[1], ARGV[1]} -- ü\n"


def test_its_name_on_the_server_is_the_digest_of_the_text(script):
    assert script.sha == hashlib.sha1("return {KEYS[1], ARGV[1]} -- ü\n".encode()).hexdigest()


def test_a_file_that_is_not_there_says_which(script):
    with pytest.raises(OSError, match="nowhere"):
        Script("package_of_scripts", "nowhere").source  # noqa: B018 - reading it is what fails


def test_a_package_that_was_not_installed_whole_says_so_too(tmp_path, monkeypatch):
    (tmp_path / "half_a_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"answer\.lua is missing from half_a_package"):
        Script("half_a_package", "answer").source  # noqa: B018 - as above


def test_it_is_sent_by_its_digest(script):
    assert words(script.packed(("a", "b"), (1, b"\x00"))) == [
        b"EVALSHA", script.sha.encode(), b"2", b"a", b"b", b"1", b"\x00",
    ]  # fmt: skip


def test_a_server_that_knows_it_gets_one_command(script):
    said, answer = answered(script.talk(("k",), 5), 7)
    assert answer == 7
    assert said == [script.packed(("k",), (5,))]


def test_one_that_does_not_is_sent_the_whole(script):
    said, answer = answered(script.talk(("k",), 5), UNKNOWN, 7)
    assert answer == 7
    assert words(said[1]) == [b"EVAL", script.source.encode(), b"1", b"k", b"5"]


@pytest.mark.parametrize("before", [(), (UNKNOWN,)], ids=["known", "unknown"])
def test_what_the_script_itself_met_reaches_the_caller(script, before):
    failed = _HiredisParser.parse_error("ERR value is not an integer or out of range")
    with pytest.raises(redis_errors.ResponseError, match="not an integer"):
        answered(script.talk(("k",)), *before, failed)


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (UNKNOWN, True),
        (_HiredisParser.parse_error("ERR no such key"), False),
        (ValueError("NOSCRIPT"), False),
    ],
    ids=repr,
)
def test_only_noscript_says_that_nothing_was_executed(error, unknown):
    assert is_unknown_script(error) is unknown


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
class TestOurs:
    def test_it_says_its_keys_and_its_reply_first(self, script):
        header = "".join(line for line in script.source.splitlines(True) if line.startswith("--"))
        assert "KEYS[1]" in header
        assert "Reply:" in header

    def test_it_comes_with_the_package(self, script):
        folder = Path(redis_infra.__file__).parent / script.package.removeprefix("redis_infra.")
        assert (folder / f"{script.name}.lua").is_file()
