"""The error tree: what catches what, what the texts say, and that errors travel between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from redis_infra import exceptions
from redis_infra.exceptions import (
    CounterOverflow,
    MissingExtra,
    RedisInfraError,
    SettingsError,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)

EVERY_ERROR = [
    RedisInfraError("something"),
    SettingsError("REDIS_INFRA['TTL'] is wrong"),
    MissingExtra("msgpack", "msgpack"),
    StoreError("GET", "site:1:a", "odd"),
    StoreUnavailable("GET", "site:1:a", waited=0.25, reason="refused"),
    StoreRejected("SET", "site:1:a", "OOM command not allowed"),
    CounterOverflow("INCRBY", "site:1:n", "would leave the signed 64-bit range"),
]


def test_all_names_every_public_error_and_nothing_else():
    public = {name for name, value in vars(exceptions).items() if isinstance(value, type)}
    assert exceptions.__all__ == sorted(public)


def test_the_drawn_tree_names_every_error():
    assert exceptions.__doc__ is not None
    assert [name for name in exceptions.__all__ if name not in exceptions.__doc__] == []


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_is_caught_by_the_base(error):
    assert isinstance(error, RedisInfraError)


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_keeps_its_facts_through_pickle_and_copy(error, travel):
    """Task queues and process pools send errors to another process."""
    there = travel(error)
    assert type(there) is type(error)
    assert vars(there) == vars(error)
    assert (str(there), there.args) == (str(error), error.args)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (SettingsError("x"), ValueError),
        (MissingExtra("lz4", "lz4"), SettingsError),
        (StoreUnavailable(), StoreError),
        (StoreRejected("GET", "k", "WRONGTYPE"), StoreError),
        (CounterOverflow("INCRBY", "k", "too big"), StoreRejected),
        (CounterOverflow("INCRBY", "k", "too big"), OverflowError),
    ],
)
def test_callers_may_catch_the_broader_kind(error, builtin):
    assert isinstance(error, builtin)


def test_unavailable_is_not_rejected():
    """One says "later", the other says "never"; code that retries must tell them apart."""
    assert not isinstance(StoreUnavailable(), StoreRejected)
    assert not issubclass(StoreRejected, StoreUnavailable)


def test_a_missing_extra_says_what_to_install():
    error = MissingExtra("zstandard", "zstd")
    assert str(error) == 'zstandard is not installed; run: pip install "redis-infra[zstd]"'
    assert (error.package, error.extra) == ("zstandard", "zstd")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StoreUnavailable(), "The operation was not answered"),
        (StoreUnavailable("GET", "k"), "GET was not answered"),
        (StoreUnavailable("GET", "k", waited=0.51), "GET was not answered within 0.51 s"),
        (StoreUnavailable("GET", reason="connection refused"), "GET was not answered: connection refused"),
        (StoreRejected("SET", "k", "OOM"), "SET was rejected: OOM"),
        (CounterOverflow("INCRBY", "k", ""), "INCRBY was rejected"),
        (StoreError(), "The operation failed"),
    ],
)
def test_the_text_says_what_happened(error, text):
    assert str(error) == text


@pytest.mark.parametrize(
    "error",
    [
        StoreError("GET", "session:9f3a"),
        StoreUnavailable("GET", "session:9f3a", waited=1.0, reason="timeout"),
        StoreRejected("GET", "session:9f3a", "WRONGTYPE"),
        CounterOverflow("INCRBY", "session:9f3a", "too big"),
    ],
)
def test_the_key_is_a_fact_but_never_printed(error):
    """Errors end in logs, and the key of a session is the session."""
    assert error.key == "session:9f3a"
    assert "9f3a" not in f"{error} {error!r}"


def test_the_repr_names_the_class_and_the_text():
    assert repr(StoreUnavailable("GET", "k")) == "StoreUnavailable('GET was not answered')"
