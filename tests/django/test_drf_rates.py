"""Rates of Django REST framework that cannot hold: refused by name, also where no check could know."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.test import RequestFactory, override_settings
from rest_framework.views import APIView

from redis_infra.throttling.drf import PolicyThrottle, UserRateThrottle

REQUEST = RequestFactory().get("/")
REQUEST.user = AnonymousUser()
TOO_LONG = "5/400days"


class Yearly(UserRateThrottle):
    rate = TOO_LONG


class InOwnWords(UserRateThrottle):
    rate = "yearly"

    def parse_rate(self, rate):
        return 5, 400 * 86_400


@pytest.mark.parametrize(("throttle", "named"), [(Yearly, TOO_LONG), (InOwnWords, "34560000")])
def test_a_window_of_more_than_a_year_is_refused_by_name(throttle, named):
    with pytest.raises(ImproperlyConfigured) as caught:
        throttle().allow_request(REQUEST, APIView())
    assert throttle.__name__ in str(caught.value)
    assert named in str(caught.value)
    assert "366 days" in str(caught.value)


def test_one_in_the_settings_is_refused_with_its_place():
    view = APIView()
    view.throttle_scope = "export"
    rates = {"DEFAULT_THROTTLE_RATES": {"export": TOO_LONG}}
    with override_settings(REST_FRAMEWORK=rates), pytest.raises(ImproperlyConfigured) as caught:
        PolicyThrottle().allow_request(REQUEST, view)
    assert f"REST_FRAMEWORK['DEFAULT_THROTTLE_RATES']['export']: '{TOO_LONG}'" in str(caught.value)


def test_a_number_of_proxies_that_is_none_fails_no_request():
    request = RequestFactory().get("/", HTTP_X_FORWARDED_FOR="198.51.100.1", REMOTE_ADDR="10.0.0.1")
    with override_settings(REST_FRAMEWORK={"NUM_PROXIES": "2"}):
        assert Yearly.get_ident(object.__new__(Yearly), request) == "10.0.0.1"
