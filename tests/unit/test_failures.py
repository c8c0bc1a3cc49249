"""What redis-py, our connections and the operating system raise, and what kind of failure that is."""

from __future__ import annotations

import asyncio
import errno
import pickle
import socket
import ssl

import pytest
from redis import exceptions as redis_errors
from redis._parsers import _HiredisParser

from redis_infra.connection.failures import (
    LinkClosed,
    LinkTimeout,
    PoolExhausted,
    RedisUnavailable,
    classify,
    describe,
)
from redis_infra.exceptions import CounterOverflow, StoreUnavailable
from redis_infra.resilience.faults import Failure, Fault

UNREACHABLE, TIMEOUT, READONLY = Fault.UNREACHABLE, Fault.TIMEOUT, Fault.READONLY
WRITES_STOPPED, MISCONFIGURED, DENIED = Fault.WRITES_STOPPED, Fault.MISCONFIGURED, Fault.DENIED
OVERLOADED, INTERRUPTED = Fault.OVERLOADED, Fault.INTERRUPTED

# What servers of several versions and kinds say, to the letter.
REPLIES = [
    ("LOADING Redis is loading the dataset in memory", UNREACHABLE),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", UNREACHABLE),
    ("CLUSTERDOWN Hash slot not served", UNREACHABLE),
    ("CLUSTERDOWN The cluster is down", UNREACHABLE),
    ("TRYAGAIN Multiple keys request during rehashing of slot", UNREACHABLE),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", UNREACHABLE),
    ("UNKILLABLE Sorry the script already executed write commands against the dataset.", UNREACHABLE),
    ("READONLY You can't write against a read only replica.", READONLY),
    ("READONLY You can't write against a read only slave.", READONLY),
    (
        "ERR Error running script (call to f_5cd7, on @user_script:1): @user_script: 1: "
        "-READONLY You can't write against a read only replica.",
        READONLY,
    ),
    ("OOM command not allowed when used memory > 'maxmemory'.", WRITES_STOPPED),
    (
        "ERR Error running script (call to f_5cd7, on @user_script:1): @user_script: 1: "
        "-OOM command not allowed when used memory > 'maxmemory'.",
        WRITES_STOPPED,
    ),
    (
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        WRITES_STOPPED,
    ),
    ("MISCONF Errors writing to the AOF file: No space left on device", WRITES_STOPPED),
    ("NOREPLICAS Not enough good replicas to write.", WRITES_STOPPED),
    ("NOAUTH Authentication required.", MISCONFIGURED),
    (
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
        "<user> <pass> option can be used to authenticate the client",
        MISCONFIGURED,
    ),
    ("WRONGPASS invalid username-password pair or user is disabled.", MISCONFIGURED),
    ("ERR invalid password", MISCONFIGURED),
    ("ERR Client sent AUTH, but no password is set", MISCONFIGURED),
    (
        "ERR AUTH <password> called without any password configured for the default user. "
        "Are you sure your configuration is correct?",
        MISCONFIGURED,
    ),
    ("ERR DB index is out of range", MISCONFIGURED),
    ("ERR invalid DB index", MISCONFIGURED),
    ("MOVED 3999 127.0.0.1:6381", MISCONFIGURED),
    ("ASK 3999 127.0.0.1:6381", MISCONFIGURED),
    ("NOPROTO unsupported protocol version", MISCONFIGURED),
    ("DENIED Redis is running in protected mode because protected mode is enabled", MISCONFIGURED),
    ("NOPERM this user has no permissions to run the 'get' command", DENIED),
    ("NOPERM this user has no permissions to access one of the keys used as arguments", DENIED),
]

OF_THE_CALLER = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR value is not an integer or out of range",
    "ERR increment or decrement would overflow",
    "ERR syntax error",
    "ERR unknown command 'JSON.GET', with args beginning with: 'k'",
    "ERR wrong number of arguments for 'get' command",
    "NOSCRIPT No matching script. Please use EVAL.",
    "EXECABORT Transaction discarded because of previous errors.",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "BUSYGROUP Consumer Group name already exists",
    "BUSYKEY Target key name already exists.",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK",
    "INPROG Failover already in progress.",
]

CONNECTIONS = [
    (redis_errors.ConnectionError("Error 111 connecting to a:6379. Connection refused."), UNREACHABLE),
    (redis_errors.ConnectionError("Connection closed by server."), UNREACHABLE),
    (_HiredisParser.parse_error("ERR max number of clients reached"), UNREACHABLE),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), UNREACHABLE),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), UNREACHABLE),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), UNREACHABLE),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), UNREACHABLE),
    (OSError(errno.EHOSTUNREACH, "No route to host"), UNREACHABLE),
    (OSError(errno.EMFILE, "Too many open files"), UNREACHABLE),
    (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UNREACHABLE),
    (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), UNREACHABLE),
    (LinkClosed("ConnectionResetError"), UNREACHABLE),
    (redis_errors.TimeoutError("Timeout reading from socket"), TIMEOUT),
    (TimeoutError("timed out"), TIMEOUT),
    (TimeoutError(), TIMEOUT),
    (LinkTimeout("no reply within 0.25 s"), TIMEOUT),
    (redis_errors.InvalidResponse('Protocol error, got "H" as reply type byte'), MISCONFIGURED),
    (redis_errors.MaxConnectionsError("Too many connections"), OVERLOADED),
    (PoolExhausted(50), OVERLOADED),
    (KeyboardInterrupt(), INTERRUPTED),
    (SystemExit(1), INTERRUPTED),
    (GeneratorExit(), INTERRUPTED),
    (asyncio.CancelledError(), INTERRUPTED),
]

BUGS = [
    redis_errors.DataError("Invalid input of type: 'dict'."),
    redis_errors.WatchError("Watched variable changed."),
    redis_errors.LockError("Cannot release an unlocked lock"),
    redis_errors.PubSubError("not subscribed"),
    CounterOverflow("INCR", "k", "a counter holds 64 bits"),
    RedisUnavailable("GET"),
]


def parsed(text):
    return _HiredisParser.parse_error(text)


@pytest.mark.parametrize(("text", "fault"), REPLIES, ids=[text[:40] for text, _ in REPLIES])
def test_an_error_reply_is_of_a_kind_and_says_that_nothing_was_executed(text, fault):
    failure = classify(parsed(text))
    assert failure is not None
    assert (failure.fault, failure.executed) == (fault, False)


@pytest.mark.parametrize("text", OF_THE_CALLER, ids=[text[:40] for text in OF_THE_CALLER])
def test_other_error_replies_are_the_callers_affair(text):
    assert classify(parsed(text)) is None


@pytest.mark.parametrize("text", [text for text in OF_THE_CALLER if text.startswith("ERR")])
def test_but_not_in_reply_to_our_own_greeting(text):
    """The caller did not say it: a cluster refuses SELECT, an old server AUTH with two words."""
    error = parsed(text)
    error.to_greeting = True
    failure = classify(error)
    assert failure is not None
    assert failure.fault is MISCONFIGURED


def test_a_greeting_that_acl_forbids_is_no_command_of_its_own():
    """Every operation would pay for a new connection, and none would open the circuit."""
    error = parsed("NOPERM this user has no permissions to run the 'select' command")
    error.to_greeting = True
    assert classify(error).fault is MISCONFIGURED


@pytest.mark.parametrize(("error", "fault"), CONNECTIONS, ids=[repr(error)[:40] for error, _ in CONNECTIONS])
def test_what_is_raised_without_a_reply_is_of_a_kind(error, fault):
    failure = classify(error)
    assert failure is not None
    assert failure.fault is fault


@pytest.mark.parametrize(
    "error", [RuntimeError("soft time limit"), KeyError("k"), KeyboardInterrupt()], ids=repr
)
def test_what_neither_redis_nor_we_raise_came_from_outside_into_the_middle_of_a_command(error):
    """From a signal handler, say: whether the command was executed nobody can know."""
    failure = classify(error)
    assert (failure.fault, failure.executed) == (Fault.INTERRUPTED, None)


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_what_is_no_failure_of_redis_is_none(error):
    assert classify(error) is None


@pytest.mark.parametrize("kind", [LinkClosed, LinkTimeout, OSError, TimeoutError])
@pytest.mark.parametrize("executed", [None, False])
def test_a_failure_knows_whether_the_command_had_left(kind, executed):
    error = kind("gone")
    if executed is not None:
        error.executed = executed
    assert classify(error).executed is executed


def test_nobody_knows_what_became_of_a_command_without_a_word_on_it():
    assert classify(redis_errors.ConnectionError("Connection closed by server.")).executed is None


def test_our_own_overload_means_that_nothing_was_sent():
    assert classify(PoolExhausted(50)).executed is False


@pytest.mark.parametrize("stale", [True, False])
def test_a_connection_that_had_gone_stale_is_worth_a_fresh_one(stale):
    error = LinkClosed("reset")
    error.stale = stale
    failure = classify(error)
    assert (failure.stale, failure.on_fresh_connection) == (stale, stale)


@pytest.mark.parametrize("fault", Fault)
def test_of_the_others_only_a_read_only_server_is(fault):
    assert Failure(fault, "").on_fresh_connection is (fault is READONLY)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ECONNREFUSED, "Connection refused"),
            f"ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connection refused",
        ),
        (TimeoutError(), "TimeoutError"),
        (redis_errors.ConnectionError("two\r\n  lines"), "ConnectionError: two lines"),
    ],
)
def test_a_cause_is_one_line(error, text):
    assert describe(error) == text


def test_a_cause_is_short():
    assert len(describe(redis_errors.ConnectionError("x" * 10_000))) < 250


def test_what_answers_in_another_protocol_is_named_for_what_it_is():
    assert "not a Redis server" in classify(redis_errors.InvalidResponse("got 'H'")).cause


def test_an_exhausted_pool_says_which_setting():
    assert str(PoolExhausted(50)) == "all 50 connections are in use (MAX_CONNECTIONS)"


class TestRedisUnavailable:
    @pytest.mark.parametrize(
        "base", [StoreUnavailable, redis_errors.ConnectionError, redis_errors.RedisError]
    )
    def test_code_written_for_redis_py_and_code_written_for_us_both_catch_it(self, base):
        with pytest.raises(base):
            raise RedisUnavailable("LOCK", reason="redis://a:6379: refused")

    def test_it_says_what_was_asked_and_why_not(self):
        error = RedisUnavailable("LOCK", "site:1:k", reason="redis://a:6379: refused")
        assert str(error) == "LOCK was not answered: redis://a:6379: refused"
        assert error.key == "site:1:k"

    def test_it_has_what_redis_py_expects_of_its_errors(self):
        assert RedisUnavailable().error_type is redis_errors.ExceptionType.NETWORK
        assert RedisUnavailable().status_code is None

    def test_it_can_be_pickled(self):
        error = pickle.loads(pickle.dumps(RedisUnavailable("LOCK", "k", waited=0.5, reason="refused")))
        assert (error.command, error.key, error.waited, error.reason) == ("LOCK", "k", 0.5, "refused")
