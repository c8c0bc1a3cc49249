"""The first words on a connection, and what the server's answers to them say."""

from __future__ import annotations

import hiredis
import pytest
from redis import exceptions as redis_errors
from redis._parsers import _HiredisParser

from redis_infra.connection.handshake import (
    ServerFacts,
    first_words,
    knows_no_hello,
    old_first_words,
    read_facts,
)
from redis_infra.connection.options import ConnectionOptions

HELLO = [
    b"server", b"redis", b"version", b"7.4.1", b"proto", 2, b"id", 42,
    b"mode", b"standalone", b"role", b"master", b"modules", [],
]  # fmt: skip
INFO = b"# Server\r\nredis_version:7.4.1\r\nrun_id:5cd7f0\r\ntcp_port:6379\r\n"


def commands(packed):
    """What a server reads in these bytes."""
    reader = hiredis.Reader()
    reader.feed(packed)
    found = []
    while (command := reader.gets()) is not False:
        found.append([word.decode() for word in command])
    return found


def options(url="redis://a:6379/0", **more):
    return ConnectionOptions.from_url(url, **more)


def error(text):
    return _HiredisParser.parse_error(text)


class TestFirstWords:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://a", [["HELLO", "2"]]),
            ("redis://a/3", [["HELLO", "2"], ["SELECT", "3"]]),
            ("redis://:secret@a", [["HELLO", "2", "AUTH", "default", "secret"]]),
            ("redis://app:secret@a/3", [["HELLO", "2", "AUTH", "app", "secret"], ["SELECT", "3"]]),
            ("redis://a?client_name=web", [["HELLO", "2", "SETNAME", "web"]]),
            ("redis://:s%20%C3%BC%0A@a", [["HELLO", "2", "AUTH", "default", "s ü\n"]]),
            ("unix:///run/redis.sock?db=2", [["HELLO", "2"], ["SELECT", "2"]]),
        ],
    )
    def test_they_say_who_we_are_and_which_database(self, url, expected):
        packed, replies = first_words(options(url))
        assert commands(packed) == expected
        assert replies == len(expected)

    def test_they_ask_who_answers_where_that_is_wanted(self):
        packed, replies = first_words(options("redis://a/3"), identify=True)
        assert commands(packed) == [["HELLO", "2"], ["SELECT", "3"], ["INFO", "server"]]
        assert replies == 3


class TestOldFirstWords:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://a", [["PING"]]),
            ("redis://:secret@a", [["AUTH", "secret"]]),
            ("redis://app:secret@a", [["AUTH", "app", "secret"]]),
            ("redis://:secret@a/3", [["AUTH", "secret"], ["SELECT", "3"]]),
        ],
    )
    def test_they_are_what_servers_before_hello_understand(self, url, expected):
        packed, replies = old_first_words(options(url))
        assert commands(packed) == expected
        assert replies == len(expected)


@pytest.mark.parametrize(
    "text",
    [
        "ERR unknown command 'HELLO', with args beginning with: '2'",
        "ERR unknown command `HELLO`",
        "NOPERM this user has no permissions to run the 'hello' command",
        "NOPROTO unsupported protocol version",
    ],
)
def test_a_server_that_refuses_hello_itself_gets_the_old_words(text):
    assert knows_no_hello(error(text), options("redis://a"))


def test_so_does_one_that_does_not_even_see_the_credentials_in_it():
    """Valkey 9 without HELLO. Who has no credentials gets the same answer from any server, and means it."""
    denied = error("NOAUTH Authentication required.")
    assert knows_no_hello(denied, options("redis://:secret@a"))
    assert not knows_no_hello(denied, options("redis://a"))


@pytest.mark.parametrize(
    "reply",
    [
        HELLO,
        b"PONG",
        error("WRONGPASS invalid username-password pair or user is disabled."),
        error("NOAUTH HELLO must be called with the client already authenticated"),
        error("LOADING Redis is loading the dataset in memory"),
        error("ERR max number of clients reached"),
        error("ERR DB index is out of range"),
    ],
    ids=repr,
)
def test_one_that_refuses_what_it_says_does_not(reply):
    """With the password in another form it would be wrong as well, and the second answer hides the first."""
    assert not knows_no_hello(reply, options("redis://:secret@a"))


class TestFacts:
    def test_hello_tells_who_answered(self):
        assert read_facts([HELLO]) == ServerFacts(
            connection_id=42, name="redis", version="7.4.1", mode="standalone", role="master", run_id=""
        )

    def test_valkey_says_so(self):
        reply = [b"server", b"valkey", b"version", b"9.0.0", b"id", 7]
        facts = read_facts([reply])
        assert (facts.name, facts.version, facts.connection_id) == ("valkey", "9.0.0", 7)

    def test_info_tells_the_run_id(self):
        assert read_facts([HELLO, b"OK", INFO], identify=True).run_id == "5cd7f0"

    def test_an_info_without_one_tells_none(self):
        assert read_facts([HELLO, b"# Server\r\n"], identify=True).run_id == ""

    def test_an_info_that_acl_forbids_is_done_without(self):
        denied = error("NOPERM this user has no permissions to run the 'info' command")
        assert read_facts([HELLO, denied], identify=True).run_id == ""

    def test_an_old_server_says_nothing_of_itself(self):
        assert read_facts([b"PONG"]) == ServerFacts()
        assert read_facts([b"PONG"], identify=True) == ServerFacts()

    def test_a_reply_with_odd_things_in_it_is_read_as_far_as_it_goes(self):
        facts = read_facts([[b"server", b"proxy", 7, 7, b"id"]])
        assert (facts.name, facts.connection_id) == ("proxy", None)

    @pytest.mark.parametrize("position", [0, 1])
    def test_the_first_error_is_raised(self, position):
        replies = [HELLO, b"OK"]
        replies[position] = error("ERR DB index is out of range")
        with pytest.raises(redis_errors.ResponseError, match="out of range"):
            read_facts(replies)

    def test_it_is_marked_as_an_answer_to_our_own_words(self):
        with pytest.raises(redis_errors.ResponseError) as caught:
            read_facts([HELLO, error("ERR SELECT is not allowed in cluster mode")])
        assert caught.value.to_greeting
