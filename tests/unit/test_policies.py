"""Policies: what RATES and POLICIES say together, and what no policy can be."""

from __future__ import annotations

import pytest

from redis_infra.conf import Settings
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.policies import load_policies

OTHERS = [("20/15min", "ip"), ("30/h", "username")]
"""The limits of ``auth`` beside the one that RATES have."""


def policies(**said):
    return load_policies(Settings.load({"THROTTLE": said}, environ={}).throttle)


def limits(policy):
    return [(str(limit.rate), limit.key.name) for limit in policy.limits]


def refused(**said):
    with pytest.raises(SettingsError) as caught:
        policies(**said)
    return str(caught.value)


def test_the_policies_that_there_are_without_settings():
    found = policies()
    assert set(found) == {"chat", "auth", "upload", "search"}
    assert limits(found["chat"]) == [("20/min", "user_or_ip")]
    assert limits(found["auth"]) == [("5/15min", "ip+username"), *OTHERS]


# --- policies without limits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [{}, [], (), {"key": "ip"}, {"on_outage": "deny"}, {"limits": []}, {"limits": ()}, {"rate": []}],
    ids=range(8),
)
def test_a_policy_without_limits_is_refused(said):
    """It would let everything through, and look as if it did not."""
    text = refused(POLICIES={"export": said})
    assert "['POLICIES']['export']: it has no limits" in text
    assert "'limits': [('5/15min', 'ip')]" in text
    assert "'limits': None" in text


@pytest.mark.parametrize("name", ["chat", "auth"])
@pytest.mark.parametrize("said", [[], {"limits": []}])
def test_limits_that_are_written_out_as_none_at_all_are_not_those_of_the_rates(name, said):
    assert f"['{name}']: it has no limits" in refused(POLICIES={name: said})


@pytest.mark.parametrize("name", ["export", "auth"])
@pytest.mark.parametrize("said", [{"limits": None}, {"rate": None}, {"rate": None, "key": "ip"}])
def test_none_is_no_limit_and_said_so(name, said):
    assert limits(policies(POLICIES={name: said})[name]) == []
    assert limits(policies(RATES={name: None})[name]) == []


# --- over the rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{"headers": False}, {"on_outage": "deny"}, {}])
def test_a_policy_that_names_no_limits_has_those_of_its_rate(said):
    assert limits(policies(POLICIES={"chat": said})["chat"]) == [("20/min", "user_or_ip")]
    found = policies(RATES={"export": "1/h"}, POLICIES={"export": {**said, "key": "ip"}})["export"]
    assert limits(found) == [("1/h", "ip")]


def test_the_rate_of_auth_holds_whatever_else_its_policy_says():
    for said in ({}, {"on_outage": "deny"}, {"headers": True}, {"refund_on": None}):
        found = policies(RATES={"auth": "3/10min"}, POLICIES={"auth": said})["auth"]
        assert limits(found) == [("3/10min", "ip+username"), *OTHERS]
        assert found.on_outage == said.get("on_outage", "host")
        assert found.headers is said.get("headers", False)
        assert found.refund_on == said.get("refund_on", "success")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("3/10min", ["3/10min"]),
        ("3/10min;9/day", ["3/10min", "9/day"]),
        (["3/10min", "9/day"], ["3/10min", "9/day"]),
        ({"rate": "3/10min"}, ["3/10min"]),
        ({"limits": "3/10min"}, ["3/10min"]),
        ({"limits": ["3/10min", "9/day"]}, ["3/10min", "9/day"]),
    ],
    ids=range(6),
)
def test_rates_of_auth_without_keys_are_what_they_are_in_rates(said, expected):
    found = policies(POLICIES={"auth": said})["auth"]
    assert limits(found) == [*((rate, "ip+username") for rate in expected), *OTHERS]
    assert (found.headers, found.refund_on) == (False, "success")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("3/10min", "ip")], [("3/10min", "ip")]),
        ({"limits": [("3/10min", "ip")]}, [("3/10min", "ip")]),
        ({"limits": "3/10min", "key": "global"}, [("3/10min", "global")]),
        ({"rate": "3/10min", "key": "ip"}, [("3/10min", "ip")]),
        ({"key": "ip+field:otp"}, [("5/15min", "ip+field:otp"), *OTHERS]),
    ],
    ids=range(5),
)
def test_who_writes_the_keys_of_auth_writes_all_of_its_limits(said, expected):
    found = policies(POLICIES={"auth": said})["auth"]
    assert limits(found) == expected
    assert (found.headers, found.refund_on) == (False, "success")


def test_a_rate_of_auth_without_a_key_beside_some_that_have_one_is_for_the_account_and_the_address():
    found = policies(POLICIES={"auth": {"limits": ["3/10min", ("9/day", "ip")]}})["auth"]
    assert limits(found) == [("3/10min", "ip+username"), ("9/day", "ip")]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"limits": "1/s", "rate": "1/s"}, "'limits' or 'rate', not both"),
        ({"rate": "1/s", "on_outage": "allow"}, "would open the login to guessing"),
        ("often", "'often' is not a rate"),
        ({"key": "usr"}, "did you mean 'user'?"),
        ({"lmits": "1/s"}, "did you mean 'limits'?"),
        ({"key": "ip"}, "the same key, ('5/15min', 'ip') and ('20/15min', 'ip'); the second"),
        ({"key": "ip"}, "'limits' are missing beside a 'key'; write all that are to hold"),
        ({"limits": [("1/h", "ip"), ("2/h", "ip")]}, "('1/h', 'ip') and ('2/h', 'ip'); keep the smaller one"),
    ],
    ids=range(8),
)
def test_what_is_wrong_with_auth_is_said_of_auth(said, words):
    text = refused(POLICIES={"auth": said})
    assert "['POLICIES']['auth']" in text
    assert words in text
