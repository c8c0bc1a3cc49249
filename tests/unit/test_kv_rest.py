"""Upstash's protocol without a server: what is sent, and what the answers mean."""

from __future__ import annotations

import base64
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from redis_infra.exceptions import (
    CounterOverflow,
    StoreAuthError,
    StoreIndeterminate,
    StoreQuotaExceeded,
    StoreReadOnly,
    StoreRejected,
    StoreTypeError,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv import rest
from redis_infra.kv.commands import Commands

MAKE = Commands("ri:kv:")
GET, INCR = MAKE.get("k"), MAKE.incr("k")
SAVED_BY_MARK = MAKE.incr("k", op_id="7")


def sent(request):
    return json.loads(request.body)


def answer(said, status=200, **headers):
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return rest.Answer(status, headers, body)


def encoded(data):
    return base64.b64encode(data).decode()


# --- what is sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1e308, sys.float_info.max, 1e300, 2.0**62, 10**30])
def test_more_seconds_than_can_be_counted_are_refused(seconds):
    for make in (
        lambda: MAKE.set("k", "v", ex=seconds),
        lambda: MAKE.expire("k", seconds),
        lambda: MAKE.expire("k", -seconds),
    ):
        with pytest.raises(ValueError, match="more than a store can count"):
            make()


@pytest.mark.parametrize(
    "key", ["a", "{a}b", "a}b", "{}x", "}{", "{", "}", "{}", "a{}b{c}", "a{b}c}", "{{a}}", "é}", "}" * 50]
)
@pytest.mark.parametrize("home", ["ri:kv:", "{site}:kv:", "a}b:", ""])
def test_what_remembers_an_operation_is_in_the_slot_of_its_counter(home, key):
    command = Commands(home).incr(key, op_id="} {7")
    counter, mark = (key_slot(name.encode()) for name in command.keys)
    assert counter == mark


def test_counters_of_one_slot_have_marks_of_their_own():
    keys = ["{a}x", "{a}y", "a", "}a", "a}", "{}a"]
    assert len({MAKE.incr(key, op_id="7").mark for key in keys}) == len(keys)


def test_one_command_is_an_array_of_texts():
    assert sent(rest.one(MAKE.set("k", "v", px=50, nx=True))) == ["SET", "ri:kv:k", "v", "PX", "50", "NX"]


def test_numbers_are_sent_as_text_since_a_float_would_round_them():
    assert sent(rest.one(MAKE.incr("k", 2**63 - 1)))[-1] == "9223372036854775807"


def test_several_commands_are_an_array_of_arrays():
    request = rest.several([GET, INCR])
    assert (request.path, sent(request)) == ("/pipeline", [["GET", "ri:kv:k"], ["INCRBY", "ri:kv:k", "1"]])


def test_a_transaction_has_an_endpoint_of_its_own():
    request = rest.several([GET], atomic=True)
    assert (request.path, sent(request)) == ("/multi-exec", [["GET", "ri:kv:k"]])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_is_sent_as_it_is(text):
    assert sent(rest.one(MAKE.set("k", text)))[2] == text


def test_bytes_that_are_text_are_sent_as_text():
    assert sent(rest.one(MAKE.set("k", "ü\0\n".encode())))[2] == "ü\0\n"


def test_bytes_that_are_no_text_are_sent_to_a_script_in_base64():
    words = sent(rest.one(MAKE.set("k", b"\xff\x00", px=50)))
    assert words[0] == "EVAL"
    assert words[2:] == ["1", "ri:kv:k", "3:2", "SET", "ri:kv:k", encoded(b"\xff\x00"), "PX", "50"]


def test_only_the_binary_ones_of_many_values_are_in_base64():
    words = sent(rest.one(MAKE.mset({"a": "text", "b": b"\xff"})))
    assert words[2:] == ["2", "ri:kv:a", "ri:kv:b", "5:1", "MSET", "ri:kv:a", "text", "ri:kv:b", "/w=="]


def test_binary_in_a_pipeline_leaves_the_others_as_they_are():
    request = rest.several([GET, MAKE.set("k", b"\xff")])
    assert [words[0] for words in sent(request)] == ["GET", "EVAL"]


def test_the_token_is_in_one_header():
    headers = rest.headers("secret")
    assert [name for name, value in headers.items() if "secret" in value] == ["Authorization"]
    assert headers["Upstash-Encoding"] == "base64"


def test_the_repr_of_a_request_has_no_body():
    assert "INCRBY" not in repr(rest.one(INCR))


# --- replies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "reply"),
    [
        (None, None),
        (7, 7),
        (2**63 - 1, 2**63 - 1),
        ("", b""),
        ("OK", b"OK"),
        (encoded(b"OK"), b"OK"),
        (encoded(b"\xff\x00"), b"\xff\x00"),
        ([encoded(b"0"), [encoded(b"k")]], [b"0", [b"k"]]),
    ],
)
def test_a_result_is_the_reply_that_redis_gave(result, reply):
    assert rest.one(GET).replies(answer({"result": result})) == [reply]


@given(st.binary())
def test_every_value_comes_back_as_it_was(value):
    assert rest.one(GET).replies(answer({"result": encoded(value)})) == [value]


@pytest.mark.parametrize("result", [True, 1.5, {"a": 1}, "no base64!", "abc", ["OK", False], "ü"])
def test_a_result_that_redis_does_not_have_is_unclear(result):
    with pytest.raises(rest.Unclear):
        rest.one(GET).replies(answer({"result": result}))


def test_a_pipeline_has_a_reply_or_an_error_for_each():
    request = rest.several([GET, INCR, GET])
    said = [
        {"result": encoded(b"x")},
        {"error": "ERR value is not an integer or out of range"},
        {"result": None},
    ]
    first, second, third = request.replies(answer(said))
    assert (first, third) == (b"x", None)
    assert isinstance(second, StoreTypeError)
    assert second.index == 1


@pytest.mark.parametrize("said", [[{"result": 1}], {"result": 1}, [{"result": 1}] * 3, [{"result": 1}, 7], 5])
def test_a_pipeline_with_another_number_of_answers_is_unclear(said):
    with pytest.raises(rest.Unclear):
        rest.several([INCR, INCR]).replies(answer(said))


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreTypeError),
        ("ERR value is not an integer or out of range", StoreTypeError),
        ("ERR increment or decrement would overflow", CounterOverflow),
        ("ERR max daily request limit exceeded. Limit: 10000, Usage: 10001", StoreQuotaExceeded),
        ("ERR max requests limit exceeded", StoreQuotaExceeded),
        ("NOPERM this user has no permissions to run the 'incrby' command", StoreReadOnly),
        ("WRONGPASS invalid or missing auth token", StoreAuthError),
        ("READONLY You can't write against a read only replica.", StoreReadOnly),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable),
        ("ERR syntax error", StoreRejected),
        ("ERR max request size exceeded. Limit: 1048576 bytes", StoreRejected),
    ],
)
def test_the_text_of_a_refusal_says_which_error_it_is(text, kind):
    (error,) = rest.one(INCR).replies(answer({"error": text}, 400))
    assert type(error) is kind
    assert (error.command, error.key, error.reason) == ("incr", "ri:kv:k", text)


def test_a_reader_that_may_not_even_read_is_not_told_that_it_may() -> None:
    (error,) = rest.one(GET).replies(answer({"error": "NOPERM this user has no permissions"}, 400))
    assert type(error) is StoreAuthError


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token_is_an_auth_error_that_says_what_to_check(status):
    with pytest.raises(StoreAuthError, match="check the token"):
        rest.one(GET).replies(answer({"error": "Unauthorized"}, status))


def test_an_auth_error_needs_no_text():
    with pytest.raises(StoreAuthError, match="HTTP 401"):
        rest.one(GET).replies(answer(b"", 401))


@pytest.mark.parametrize(
    ("written", "seconds"), [({}, None), ({"Retry-After": "7"}, 7.0), ({"Retry-After": "Wed"}, None)]
)
def test_too_many_requests_are_a_quota_with_the_time_to_wait(written, seconds):
    with pytest.raises(StoreQuotaExceeded) as caught:
        rest.one(INCR).replies(answer({"error": "Too Many Requests"}, 429, **written))
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("status", [404, 405, 410, 413])
def test_another_status_is_a_rejection_that_names_it(status):
    with pytest.raises(StoreRejected, match=f"HTTP {status}"):
        rest.one(GET).replies(answer(b"<html>", status))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_the_url_is_to_be_set(status):
    with pytest.raises(StoreRejected, match="set the URL"):
        rest.one(GET).replies(answer(b"", status))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520])
@pytest.mark.parametrize(
    "body", [b"<html>Bad Gateway</html>", b'{"error": "ERR later"}', b'{"result": 1}', b""]
)
def test_a_gateway_does_not_know_what_was_executed(status, body):
    with pytest.raises(rest.Unclear, match=f"HTTP {status}"):
        rest.one(INCR).replies(answer(body, status))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"result": 1', b"\xff", b"[" * 100_000])
def test_half_an_answer_is_unclear(status, body):
    with pytest.raises(rest.Unclear):
        rest.one(INCR).replies(answer(body, status))


def test_a_pipeline_that_is_refused_as_a_whole_raises():
    with pytest.raises(StoreRejected, match="pipeline was rejected: ERR failed to parse"):
        rest.several([GET]).replies(answer({"error": "ERR failed to parse pipeline request"}, 400))


def test_a_transaction_that_is_refused_was_discarded():
    text = "EXECABORT Transaction discarded because of previous errors."
    with pytest.raises(TransactionDiscarded):
        rest.several([GET], atomic=True).replies(answer({"error": text}, 400))


def test_a_transaction_that_is_refused_for_any_text_was_discarded():
    with pytest.raises(TransactionDiscarded, match="wrong number of arguments"):
        rest.several([GET], atomic=True).replies(answer({"error": "ERR wrong number of arguments"}, 400))


def test_a_transaction_beyond_the_quota_is_a_matter_of_the_quota():
    with pytest.raises(StoreQuotaExceeded):
        rest.several([GET], atomic=True).replies(
            answer({"error": "ERR max daily request limit exceeded"}, 400)
        )


# --- what may have been executed ------------------------------------------------------------------------


def test_a_read_without_an_answer_is_unavailable():
    assert type(rest.one(GET).unanswered("why")) is StoreUnavailable


@pytest.mark.parametrize(
    "request_",
    [
        rest.one(INCR),
        rest.one(SAVED_BY_MARK),
        rest.several([GET, INCR]),
        rest.several([GET, INCR], atomic=True),
    ],
    ids=lambda each: each.name,
)
def test_a_write_without_an_answer_is_indeterminate(request_):
    assert type(request_.unanswered("why")) is StoreIndeterminate


@pytest.mark.parametrize(
    ("commands", "repeatable"),
    [
        ([GET], True),
        ([INCR], False),
        ([SAVED_BY_MARK], True),
        ([GET, SAVED_BY_MARK], True),
        ([GET, INCR], False),
    ],
)
def test_a_request_is_repeatable_if_every_command_is(commands, repeatable):
    assert rest.several(commands).repeatable is repeatable
