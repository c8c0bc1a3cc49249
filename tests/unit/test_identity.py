"""Identity: where a request came from, what tells clients apart, and that nobody can write another's."""

from __future__ import annotations

import base64
import functools
import io
import ipaddress
import json
import re
import unicodedata
from ipaddress import ip_network
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, RawPostDataException
from django.http.multipartparser import MultiPartParserError
from django.test import RequestFactory, override_settings
from hypothesis import example, given
from hypothesis import strategies as st
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle

from redis_infra.exceptions import SettingsError
from redis_infra.throttling.addresses import client_ip, network_of
from redis_infra.throttling.identity import LONGEST, Key, digest, normalise, parse_key
from redis_infra.throttling.sent import LARGEST_BODY, MOST_PARTS

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
CLIENT = "203.0.113.7"
FACTORY = RequestFactory()


def get(remote=CLIENT, forwarded=None, **meta):
    if forwarded is not None:
        meta["HTTP_X_FORWARDED_FOR"] = forwarded
    return FACTORY.get("/", REMOTE_ADDR=remote, **meta)


def post(body, content_type="application/json", **meta):
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    return FACTORY.generic("POST", "/", data, content_type=content_type, REMOTE_ADDR=CLIENT, **meta)


def form(fields, **meta):
    return FACTORY.post("/", fields, REMOTE_ADDR=CLIENT, **meta)


def of(key, request):
    return parse_key(key).of(request)


def walked(remote, forwarded, trusted=PROXIES):
    return client_ip(get(remote, forwarded), trusted, None)


def counted(number, forwarded, remote="10.0.0.1", trusted=()):
    return client_ip(get(remote, forwarded), trusted, number)


# --- where a request came from --------------------------------------------------------------------------


def test_without_proxies_the_peer_is_the_client():
    assert client_ip(get()) == CLIENT


def test_what_a_client_writes_into_the_header_counts_for_nothing():
    assert client_ip(get(forwarded="198.51.100.1")) == CLIENT
    assert walked(CLIENT, "198.51.100.1") == CLIENT


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (CLIENT, CLIENT),
        (f"198.51.100.1, {CLIENT}", CLIENT),
        (f"198.51.100.1,{CLIENT} , 10.1.1.1,10.2.2.2", CLIENT),
        (f"10.9.9.9, {CLIENT}, fd00::1", CLIENT),
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
        (f"{CLIENT}, nonsense, 10.2.2.2", "10.2.2.2"),
        (f"{CLIENT}, nonsense", "10.0.0.1"),
        (f"{CLIENT},", "10.0.0.1"),
        (f"{CLIENT}, unknown", "10.0.0.1"),
        (",,,", "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_the_first_from_the_right_that_is_none_is_the_client(forwarded, expected):
    assert walked("10.0.0.1", forwarded) == expected


def test_the_settings_say_who_is_trusted():
    with override_settings(REDIS_INFRA={"THROTTLE": {"TRUSTED_PROXIES": ["10.0.0.0/8"]}}):
        assert client_ip(get("10.0.0.1", CLIENT)) == CLIENT
        assert client_ip(get("11.0.0.1", CLIENT)) == "11.0.0.1"
    assert client_ip(get("10.0.0.1", CLIENT)) == "10.0.0.1"


def test_the_settings_say_how_many_proxies_there_are():
    with override_settings(REST_FRAMEWORK={"NUM_PROXIES": 1}):
        assert client_ip(get("10.0.0.1", f"198.51.100.1, {CLIENT}")) == CLIENT


@pytest.mark.parametrize("number", ["1", True, -1, 1.0, [1]])
def test_what_is_no_number_of_proxies_lets_nobody_speak_for_another(number):
    assert counted(number, "198.51.100.1") == "10.0.0.1"
    with override_settings(REST_FRAMEWORK={"NUM_PROXIES": number}):
        assert client_ip(get("10.0.0.1", CLIENT)) == "10.0.0.1"


@pytest.mark.parametrize("remote", ["", "unix:"])
def test_the_peer_of_a_unix_socket_is_trusted_by_name_only(remote):
    assert walked(remote, CLIENT, ("unix",)) == CLIENT
    assert walked(remote, CLIENT) == "unknown"
    assert walked(remote, "nonsense", ("unix",)) == "unknown"
    assert client_ip(get(remote)) == "unknown"


def test_a_peer_that_says_nothing_may_not_have_an_address_at_all():
    request = HttpRequest()
    assert client_ip(request) == "unknown"
    assert client_ip(SimpleNamespace(META={"REMOTE_ADDR": None})) == "unknown"


def test_what_is_no_address_is_no_unix_socket_either():
    assert walked("localhost", CLIENT, ("unix",)) == "unknown"


def test_with_both_settings_the_peer_has_to_be_trusted_before_proxies_are_counted():
    assert counted(1, CLIENT, "11.0.0.1", PROXIES) == "11.0.0.1"
    assert counted(1, f"198.51.100.1, {CLIENT}", "10.0.0.1", PROXIES) == CLIENT


@pytest.mark.parametrize(
    ("number", "forwarded", "expected"),
    [
        (1, f"{CLIENT}, nonsense", "10.0.0.1"),
        (2, f"nonsense, {CLIENT}", CLIENT),
        (3, f"nonsense, {CLIENT}, 10.0.0.2", CLIENT),
        (2, f"{CLIENT}, nonsense", CLIENT),
        (3, f"nonsense, {CLIENT}, nonsense", "10.0.0.1"),
        (-1, CLIENT, "10.0.0.1"),
    ],
)
def test_counting_proxies_never_ends_in_garbage(number, forwarded, expected):
    assert counted(number, forwarded) == expected


addresses = st.ip_addresses().map(str)


@given(st.integers(0, 5), st.lists(addresses, min_size=1, max_size=6), addresses)
def test_num_proxies_counts_as_django_rest_framework_does(number, forwarded, remote):
    with override_settings(REST_FRAMEWORK={"NUM_PROXIES": number}):
        request = get(remote, ", ".join(forwarded))
        assert number == api_settings.NUM_PROXIES
        stock = BaseThrottle().get_ident(request)
        assert client_ip(request) == client_ip(get(stock))


junk = st.text(max_size=30) | st.sampled_from(
    ["", " ", "unknown", "_hidden", "10.0.0.1", "1.2.3", '"', "[::1"]
)


@given(
    junk | addresses,
    st.lists(junk | addresses, max_size=6).map(",".join),
    st.none() | st.integers(-2, 8),
    st.sampled_from([(), PROXIES, ("unix",), (*PROXIES, "unix")]),
)
def test_whatever_is_sent_an_address_comes_out(remote, forwarded, number, trusted):
    meta = {"REMOTE_ADDR": remote, "HTTP_X_FORWARDED_FOR": forwarded}
    found = client_ip(SimpleNamespace(META=meta), trusted, number)
    assert found == "unknown" or str(ipaddress.ip_address(found)) == found
    assert parse_key("ip").of(SimpleNamespace(META=meta)).startswith("ip:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.7:4711", CLIENT),
        ('"203.0.113.7"', CLIENT),
        ("::ffff:203.0.113.7", CLIENT),
        ("::FFFF:CB00:7107", CLIENT),
        ("[::ffff:203.0.113.7]:443", CLIENT),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ('"[2001:db8::7]:443"', "2001:db8::7"),
        ("fe80::7%eth0", "fe80::7"),
        ("[fe80::7%25eth0]:80", "fe80::7"),
    ],
)
def test_an_address_is_one_text_however_it_is_written(text, expected):
    assert walked("10.0.0.1", text) == expected
    assert client_ip(get(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["203.0.113.7x", "203.0.113", "010.0.0.7", "[2001:db8::7]x", "203.0.113.7:port", "٢.٢.٢.٢", "1" * 500],
)
def test_what_only_looks_like_an_address_is_none(text):
    assert walked("10.0.0.1", text) == "10.0.0.1"


def test_ipv6_counts_by_the_network_of_a_client_and_ipv4_by_the_address():
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::4") != network_of("2001:db8:1:2::4")
    assert network_of(CLIENT) == CLIENT
    assert network_of("unknown") == "unknown"


@pytest.mark.parametrize(
    ("prefix", "network"),
    [(56, "2001:db8:1:200::/56"), (48, "2001:db8:1::/48"), (128, "2001:db8:1:2ff::4/128")],
)
def test_the_settings_say_how_large_the_network_of_a_client_is(prefix, network):
    client, named = get("2001:db8:1:2ff::4"), "2001:db8:1:2ff::4"
    assert of("ip", client) == "ip:2001:db8:1:2ff::/64"
    with override_settings(REDIS_INFRA={"THROTTLE": {"IPV6_PREFIX": prefix}}):
        assert of("ip", client) == parse_key("ip").named(named) == f"ip:{network}"
        assert parse_key("ip").named(network) == f"ip:{network}"
    assert of("ip", client) == "ip:2001:db8:1:2ff::/64"
    assert of("ip", get(CLIENT)) == f"ip:{CLIENT}"


def test_rotating_through_a_network_gives_no_new_identity():
    assert len({of("ip", get(f"2001:db8::{part:x}")) for part in range(1, 500)}) == 1


def test_a_header_of_trusted_addresses_without_end_is_walked_so_far_and_no_further():
    """A client inside the trusted network can send as many as fit into a header."""
    endless = f"{CLIENT}," + ",".join(["10.0.0.2"] * 1000)
    assert walked("10.0.0.1", endless) == "10.0.0.2"


# --- what tells clients apart ---------------------------------------------------------------------------


def user(pk):
    request = get()
    request.user = User(pk=pk) if pk is not None else AnonymousUser()
    return request


@pytest.mark.parametrize("key", ["user", "user_or_ip"])
def test_a_user_counts_as_himself_and_somebody_unknown_as_his_network(key):
    assert of(key, user(7)) == "user:7"
    assert of(key, user(None)) == f"ip:{CLIENT}"
    assert of(key, get()) == f"ip:{CLIENT}"


def test_a_user_who_is_not_authenticated_is_none_whatever_his_pk():
    request = get()
    request.user = SimpleNamespace(pk=7, is_authenticated=False)
    assert of("user", request) == f"ip:{CLIENT}"


def test_users_whose_ids_differ_by_case_are_two():
    found = [of("user", _with(user=SimpleNamespace(pk=pk, is_authenticated=True))) for pk in ("aB3", "ab3")]
    assert found[1] == "user:ab3"
    assert found[0] != found[1]
    assert normalise(found[0]) == found[0]


def _with(**attributes):
    request = get()
    for name, value in attributes.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("key", "request_", "expected"),
    [
        ("ip", get(), f"ip:{CLIENT}"),
        ("global", get(), "global:all"),
        ("api_key", get(HTTP_X_API_KEY="abc"), "api_key:abc"),
        ("api_key", get(HTTP_AUTHORIZATION="Api-Key abc "), "api_key:abc"),
        ("api_key", get(HTTP_AUTHORIZATION="Bearer abc"), f"ip:{CLIENT}"),
        ("api_key", get(), f"ip:{CLIENT}"),
        ("tenant", _with(tenant=SimpleNamespace(pk=3)), "tenant:3"),
        ("tenant", _with(tenant="acme"), "tenant:acme"),
        ("tenant", get(HTTP_X_TENANT_ID="acme"), f"ip:{CLIENT}"),
        ("tenant", get(), f"ip:{CLIENT}"),
        ("header:X-Device", get(HTTP_X_DEVICE=" Phone"), "header:x-device:phone"),
        ("header:Content-Type", get(CONTENT_TYPE="text/plain"), "header:content-type:text/plain"),
        ("header:X-Device", get(), f"ip:{CLIENT}"),
        ("header:X-Device", get(HTTP_X_DEVICE="   "), f"ip:{CLIENT}"),
        ("session", get(), f"ip:{CLIENT}"),
        ("tests.unit.test_identity.device", get(HTTP_X_DEVICE="a"), "tests.unit.test_identity.device:a"),
        ("tests.unit.test_identity.device", get(), f"ip:{CLIENT}"),
        ("ip+header:X-Device", get(HTTP_X_DEVICE="a"), f"[ip:{CLIENT}+header:x-device:a]"),
        ("ip+header:X-Device", get(), f"[ip:{CLIENT}+ip:{CLIENT}]"),
    ],
)
def test_a_key_is_what_it_is_called(key, request_, expected):
    assert of(key, request_) == expected


def device(request):
    return request.headers.get("X-Device")


def test_a_function_can_be_a_key():
    key = parse_key(device)
    assert key.name.endswith("test_identity.device")
    assert key.of(get(HTTP_X_DEVICE="A")).endswith("test_identity.device:a")
    assert key.of(get()) == f"ip:{CLIENT}"
    assert parse_key(lambda request: 5).of(get()).endswith(":5")
    assert parse_key(functools.partial(device)).of(get(HTTP_X_DEVICE="a")).endswith(":a")


def test_two_functions_of_one_name_are_two_keys():
    one, other = (lambda request: "1"), (lambda request: "2")
    assert parse_key(one) == parse_key(one)
    assert parse_key(one) != parse_key(other)


def test_a_session_that_a_client_made_up_is_none():
    request = get()
    request.session = SessionStore("made-up-by-the-client")
    assert of("session", request) == f"ip:{CLIENT}"


def test_a_session_that_is_there_counts():
    made = SessionStore()
    made["x"] = 1
    made.save()
    request = get()
    request.session = SessionStore(made.session_key)
    assert of("session", request).startswith("session#")


def test_keys_are_values():
    assert parse_key("ip+username") == parse_key(" ip + username ")
    assert len({parse_key("ip"), parse_key("ip"), parse_key("user")}) == 2
    assert parse_key(parse_key("ip")) is parse_key("ip")
    assert repr(parse_key("ip")) == "Key(name='ip')"
    assert isinstance(parse_key("ip"), Key)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("usr", "did you mean 'user'?"),
        ("", "'' is not a key; write 'ip'"),
        ("ip+", "'' of 'ip+' is not a key"),
        ("ip+usernam", "'usernam' of 'ip+usernam' is not a key; did you mean 'username'?"),
        ("ip+ip", "two parts are the same"),
        ("user+user_or_ip", "two parts are the same"),
        ("ip+user+session+tenant+username", "more than 4 parts"),
        ("header:", "is not a key"),
        ("header:X_Device", "is not a key"),
        ("header:X Device", "is not a key"),
        ("field:", "is not a key"),
        ("field:" + "x" * 65, "is not a key"),
        ("shop.", "is not a key"),
        (None, "None is not a key; write 'ip'"),
        (5, "5 is not a key"),
    ],
)
def test_what_is_no_key_is_refused_with_what_there_is(key, words):
    with pytest.raises(SettingsError) as caught:
        parse_key(key)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no.such.module", "it cannot be imported"),
        ("redis_infra.conf.nothing", "it cannot be imported"),
        ("redis_infra.conf.SCHEMES", "a tuple cannot be called"),
    ],
)
def test_a_path_is_looked_for_when_it_is_loaded_and_no_sooner(path, words):
    key = parse_key(f"ip+{path}")
    for call in (key.load, lambda: key.of(get())):
        with pytest.raises(SettingsError) as caught:
            call()
        assert words in str(caught.value)
        assert path in str(caught.value)
    parse_key("ip+tests.unit.test_identity.device").load()


@pytest.mark.parametrize(
    ("key", "values", "request_"),
    [
        ("user", "7", user(7)),
        ("user_or_ip", "7", user(7)),
        ("ip", "2001:db8::9", get("2001:db8::7")),
        ("ip", "2001:db8::/64", get("2001:db8::7")),
        ("global", "", get()),
        ("ip+username", {"ip": CLIENT, "username": " Bob+1 "}, post({"username": "bob+1"})),
    ],
)
def test_an_identity_can_be_written_without_a_request(key, values, request_):
    assert parse_key(key).named(values) == of(key, request_)


def test_an_identity_that_lacks_a_part_cannot_be_written():
    with pytest.raises(KeyError):
        parse_key("ip+username").named({"ip": CLIENT})


# --- what a client sent ---------------------------------------------------------------------------------

BOB = "username:bob"
NOBODY = f"ip:{CLIENT}"
UNREAD = "username?unread"
FIELDS = {"username": "Bob", "password": "x"}
BOUNDARY = "multipart/form-data; boundary=b"
FORM = "application/x-www-form-urlencoded"


def _file(name, content):
    """Return a multipart body of one file."""
    header = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
    return header.encode() + content + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        lambda: form(FIELDS),
        lambda: post("username=Bob&x=1", "application/x-www-form-urlencoded"),
        lambda: post(FIELDS),
        lambda: post(FIELDS, "application/json; charset=utf-8"),
        lambda: post(FIELDS, "application/vnd.api+json"),
        lambda: post(FIELDS, "application/json; charset=cp037"),
        lambda: post(json.dumps(FIELDS).encode("utf-16"), "application/json; charset=utf-16"),
        lambda: post(json.dumps(FIELDS).encode("utf-16")),
        lambda: post(b"\xef\xbb\xbf" + json.dumps(FIELDS).encode()),
        lambda: post({"username": "\uff22\uff4f\uff42\u00a0"}),
        lambda: post('{"username": "eve", "username": "bob"}'),
        lambda: post(json.dumps(FIELDS).encode() + b"\xc3"),  # which Django REST framework overlooks
    ],
    ids=range(12),
)
def test_a_name_is_found_in_forms_and_json(request_):
    assert of("username", request_()) == BOB


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'["bob"]', "application/json"),
        (b'"bob"', "application/json"),
        (b"", "application/json"),
        (b"", "text/xml"),
        (b'{"username": null}', "application/json"),
        (b'{"username": "  "}', "application/json"),
        (b'{"user": "bob"}', "application/json"),
        (b'{"user": "bob"}', "text/plain"),
        (b'{"user": "bob"}', "*/*"),
        (b"user=bob&username=", FORM),
        (b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nbob\r\n--b--\r\n", BOUNDARY),
        (_file("x", b"x" * 100_000), BOUNDARY),
        (b"username=&user=bob&username=", FORM),
    ],
    ids=range(13),
)
def test_a_request_without_the_field_counts_by_its_network(body, content_type):
    assert of("username", post(body, content_type)) == NOBODY


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_request_without_a_body_counts_by_its_network(method):
    request = FACTORY.generic(method, "/", content_type="*/*; charset=zlib", REMOTE_ADDR=CLIENT)
    assert of("username", request) == NOBODY


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff\xfe\xfd", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"9" * 10_000, "application/json"),
        (b'{"username": ["bob"]}', "application/json"),
        (b'{"username": true}', "application/json"),
        (b'{"username": "bob"', "application/json; charset=cp037"),
        (b"username=bob", BOUNDARY),
        (b"username=bob", "multipart/form-data"),
        (b"username=bob", ""),
        (b"<username>bob</username>", "text/xml"),
        (b"<username>bob</username>", "*/*"),
        (b"\x81\xa8username\xa3bob", "application/msgpack"),
        (b'"bob"', "text/csv"),
        (b"&".join(b"x=1" for _ in range(5000)) + b"&username=bob", FORM),
        (b'{"username": "bob", "x": "' + b"x" * LARGEST_BODY + b'"}', "application/json"),
        (b"username=bob&x=" + b"x" * LARGEST_BODY, FORM),
        (_file("x", b"x" * LARGEST_BODY), BOUNDARY),
        (_file("x", b"x") * (MOST_PARTS + 2), BOUNDARY),
        (_file("username", b"bob"), BOUNDARY),
        (b"username=bob&username=eve", FORM),
        (b'{"username": "eve"}', "application/json; charset=base64"),
        (b'{"username": "eve"}', "application/json; charset=undefined"),
        (b'{"username": "eve"}', "application/json; charset=punycode"),
        (b'{"username": "+AGI-ob"}', "application/json; charset=utf-7"),
        (b"username=b%F6b", f"{FORM}; charset=latin-1"),
        (b'{"x": "&username=eve&", "username": "bob"}', FORM),
        (b'{"x": "&username=eve&", "username": "bob"}\xc3', "*/*"),
        (b'{"x": "&username=eve&", "username": "bob"}', "application/*"),
    ],
    ids=range(29),
)
def test_a_body_that_may_name_somebody_unread_shares_one_identity(body, content_type):
    """The network in its place would be a way around every limit for an account."""
    assert of("username", post(body, content_type)) == UNREAD
    assert of("ip+username", post(body, content_type)) == f"[ip:{CLIENT}+{UNREAD}]"


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "*/*", "*/json", "application/*", "application/octet-stream", "nonsense", FORM],
)
def test_json_is_read_whatever_its_type_says(content_type):
    assert of("username", post(FIELDS, content_type)) == BOB


@pytest.mark.parametrize("content_type", ["*/*", "application/*", "*/x-www-form-urlencoded"])
def test_a_form_of_a_type_that_another_parser_may_take_is_unread(content_type):
    """Django REST framework gives it to the first parser of the view, whichever that is."""
    assert of("username", post(b"username=bob", content_type)) == UNREAD


def test_a_compressed_body_is_unread():
    assert of("username", post(b"\x1f\x8b\x08", FORM, HTTP_CONTENT_ENCODING="gzip")) == UNREAD
    assert of("username", post(FIELDS, HTTP_CONTENT_ENCODING="identity")) == BOB


def test_a_field_is_told_from_one_that_is_unread_too():
    assert of("field:code", post(b"<x/>", "text/xml")) == "field:code?unread"
    assert of("field:code", post({"x": 1})) == NOBODY


def basic(text, body=None):
    said = base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()
    return post(body if body is not None else b"", HTTP_AUTHORIZATION=f"Basic {said}")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (basic("Bob:x"), BOB),
        (basic("Bob:x:y"), BOB),
        (basic(b"b\xf6b:x"), "username:böb"),
        (basic("böb:x"), "username:böb"),
        (basic(":x"), NOBODY),
        (basic("Bob:x", {"password": "x"}), BOB),
        (basic("bob:x", {"username": "bob"}), BOB),
        (basic("bob:x", {"username": "eve"}), "username:eve"),
        (basic("bob:x", b"<x/>"), UNREAD),
        (basic("bob"), UNREAD),
        (get(HTTP_AUTHORIZATION="basic Ym9iOng="), BOB),
        (get(HTTP_AUTHORIZATION="Basic"), UNREAD),
        (get(HTTP_AUTHORIZATION="Basic Ym9iOng= x"), UNREAD),
        (get(HTTP_AUTHORIZATION="Basic Y"), UNREAD),
        (get(HTTP_AUTHORIZATION="Basic \u20ac"), UNREAD),
        (get(HTTP_AUTHORIZATION="Bearer Ym9iOng="), NOBODY),
        (get(HTTP_AUTHORIZATION=""), NOBODY),
    ],
    ids=range(17),
)
def test_a_name_is_found_in_basic_authentication(request_, expected):
    assert of("username", request_) == expected


def test_basic_authentication_names_nobody_in_a_field():
    assert of("field:username", basic("bob:x")) == NOBODY


def test_text_of_json_may_be_half_a_character():
    assert re.fullmatch(r"[0-9a-f]{32}", digest(of("username", post(b'{"username": "\\ud800"}'))))


def test_a_number_in_json_is_its_text():
    assert of("field:id", post({"id": 7})) == of("field:id", form({"id": "7"})) == "field:id:7"


@pytest.mark.parametrize(
    "make",
    [
        lambda: post(FIELDS),
        lambda: form(FIELDS),
        lambda: post("username=Bob", "application/x-www-form-urlencoded"),
    ],
)
def test_the_view_reads_the_body_as_if_nobody_had(make):
    """Body, form and files, in either order, and as a stream."""
    plain, request = make(), make()
    assert of("username", request) == BOB
    assert request.POST == plain.POST
    assert request.body == make().body
    late = make()
    of("username", late)
    assert late.read() == make().body


def test_a_view_may_still_choose_how_files_are_uploaded():
    request = form({**FIELDS, "file": io.BytesIO(b"content")})
    assert of("username", request) == BOB
    request.upload_handlers = list(request.upload_handlers)
    assert request.FILES["file"].read() == b"content"
    request.close()


def test_a_view_meets_the_error_itself():
    request = post(b"username=bob", "multipart/form-data")
    assert of("username", request) == UNREAD
    with pytest.raises(MultiPartParserError):
        _ = request.POST


def test_a_body_that_was_read_as_a_stream_is_unread():
    request = post(FIELDS)
    request.read(1)
    assert of("username", request) == UNREAD
    with pytest.raises(RawPostDataException):
        _ = request.body


def test_a_form_that_was_parsed_before_is_not_parsed_again():
    request = form(FIELDS)
    assert request.POST
    assert "_body" not in vars(request)
    assert of("username", request) == BOB


def test_a_file_in_place_of_the_name_is_unread_though_the_form_was_parsed_before():
    """Django REST framework has files among its data, and a database looks for them by their names."""
    request = post(_file("username", b"bob"), BOUNDARY)
    assert request.FILES
    assert of("username", request) == UNREAD
    request.close()
    parsed = drf(post(_file("username", b"bob"), BOUNDARY))
    assert parsed.data["username"].name == "f"
    assert of("username", parsed) == UNREAD


@pytest.mark.parametrize("body", [_file("x", b"x"), b"--b--\r\n"])
def test_a_form_of_files_alone_that_was_parsed_before_has_no_fields(body):
    """As Django's protection against forgery does; what it could not parse, somebody may have read before."""
    request = post(body, BOUNDARY)
    assert not request.POST
    assert of("username", request) == (NOBODY if request.FILES else UNREAD)
    request.close()


def test_a_stream_without_anything_in_it_has_no_fields():
    request = get()
    request.read()
    assert of("username", request) == NOBODY
    put_there = post(FIELDS)
    put_there.read()
    put_there.POST = {"username": "eve"}
    assert of("username", put_there) == "username:eve"


def test_a_request_that_no_server_made_has_no_body():
    request = HttpRequest()
    request.META["REMOTE_ADDR"] = CLIENT
    assert of("username", request) == NOBODY


@pytest.mark.parametrize("make", [get, lambda: form(FIELDS), lambda: post({"x": 1})])
def test_what_the_site_put_in_place_of_the_form_counts(make):
    request = make()
    request.POST = {"username": "eve"}
    assert of("username", request) == "username:eve"


def test_a_connection_that_breaks_is_unread():
    class Broken(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError("reset by peer")

    request = post(FIELDS)
    request._stream = Broken()
    assert of("username", request) == UNREAD


@override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10)
def test_a_body_that_django_would_refuse_is_unread():
    assert of("username", post(FIELDS)) == UNREAD


@pytest.mark.parametrize(
    ("length", "expected"), [("nonsense", UNREAD), ("99999999999", UNREAD), ("-1", NOBODY)]
)
def test_a_wrong_length_is_unread_unless_django_reads_nothing(length, expected):
    request = post(b'{"username": "bob"}', CONTENT_LENGTH=length)
    assert of("username", request) == expected
    assert expected is UNREAD or request.body == b""


def asgi(body, **headers):
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "client": (CLIENT, 1)}
    scope["headers"] = [(b"content-type", b"application/json"), *headers.items()]
    return ASGIRequest(scope, io.BytesIO(body))


def test_a_body_without_a_length_is_read_as_far_as_it_is_small():
    """Chunked, under ASGI: a client who leaves the length out is not to get another identity for it."""
    body = json.dumps(FIELDS).encode()
    assert of("username", asgi(body)) == BOB
    large = asgi(body + b" " * LARGEST_BODY)
    assert of("username", large) == UNREAD
    assert "_body" not in vars(large)
    assert large.read(1) == b"{"
    assert of("username", asgi(b"")) == NOBODY
    begun = asgi(body)
    assert begun.read(1) == b"{"
    assert of("username", begun) == UNREAD
    assert begun.read() == body[1:]


@pytest.mark.parametrize("form_", [False, True])
def test_a_request_of_rest_framework_is_looked_into_without_being_parsed(form_):
    request = drf(form(FIELDS) if form_ else post(FIELDS))
    assert of("username", request) == BOB
    assert "Empty" in repr(request._full_data)
    assert request.data["username"] == "Bob"


def test_what_rest_framework_has_parsed_counts():
    request = drf(post({"username": "bob"}))
    assert request.data
    request.data["username"] = "eve"
    assert of("username", request) == "username:eve"


def drf(request):
    return Request(request, parsers=[JSONParser(), FormParser(), MultiPartParser()])


def test_a_login_by_another_field_is_found_under_both_names(monkeypatch):
    monkeypatch.setattr(User, "USERNAME_FIELD", "email")
    assert of("username", post({"email": "bob"})) == BOB
    assert of("username", post({"username": "bob"})) == BOB
    assert of("username", post({"email": "bob", "username": "bob"})) == BOB


def test_a_second_name_that_is_there_to_lead_astray_makes_no_new_identity(monkeypatch):
    monkeypatch.setattr(User, "USERNAME_FIELD", "email")
    found = {of("username", post({"email": f"{number}", "username": "bob"})) for number in range(50)}
    assert found == {UNREAD}


@given(
    st.binary(max_size=300),
    st.sampled_from(["application/json", "application/x-www-form-urlencoded", BOUNDARY])
    | st.text(max_size=20),
)
def test_whatever_the_body_is_an_identity_comes_out(body, content_type):
    found = of("ip+field:username", post(body, content_type.encode("ascii", "ignore").decode()))
    assert found.startswith(f"[ip:{CLIENT}+")


# --- texts ----------------------------------------------------------------------------------------------

# Characters that composing, folding and stripping treat in ways of their own, beside all others.
CURIOUS = "+\\:#[] a\u00a0\u0301\u0338\u0345\u0323\u0130\u0131\u017f\u212a\u212b\ufb01\u1e9e\u03a3\u03c2"
texts = st.text(st.characters() | st.sampled_from(CURIOUS), max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bob", " bob\u3000"),
        ("STRASSE", "straße"),
        ("é", "e\u0301"),
        ("\uff42\uff4f\uff42", "BOB"),
        ("ﬁn", "FIN"),
        ("ΣΑΣ", "σας"),
        ("\u0345\u0301a", "\u0301\u0345a"),
        ("\u0390", "\u03aa\u0301"),
    ],
)
def test_what_reads_alike_counts_as_one(one, other):
    assert normalise(one) == normalise(other)


@given(texts)
@example("\u0345\u0301")
@example("ǰ\u0323")
@example("İ")
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(text.strip()) == once
    assert normalise(unicodedata.normalize("NFD", text)) == once


@given(st.tuples(texts, texts), st.tuples(texts, texts))
@example(("a+field:x:b", "c"), ("a", "b+field:x:c"))
@example(("a\\", "b+field:x:c"), ("a+field:x:b\\", "c"))
@example(("#", "b"), ("", "b"))
def test_different_parts_never_make_one_identity(one, other):
    key = parse_key("username+field:x")
    identities = [key.named(dict(zip(("username", "field:x"), pair, strict=True))) for pair in (one, other)]
    alike = [normalise(text) for text in one] == [normalise(text) for text in other]
    assert (identities[0] == identities[1]) == alike


@given(texts)
def test_an_identity_is_in_normal_form_and_of_its_own_kind(text):
    single = parse_key("username").named(text)
    both = parse_key("user+username").named({"user": text, "username": text})
    for identity in (single, both):
        assert normalise(identity) == identity
    assert single == "" or re.match("username[:#]", single)


def test_kinds_are_told_apart():
    seven = {"7": post({"username": "7", "id": "7"}, HTTP_X_API_KEY="7")}["7"]
    seven.user, seven.tenant = User(pk=7), SimpleNamespace(pk=7)
    keys = ["ip", "user", "username", "field:id", "api_key", "tenant", "global", "user+tenant"]
    assert len({of(key, seven) for key in keys}) == len(keys)


@given(texts)
@example("?unread")
@example("username?unread")
@example("x" * 1000)
def test_nobody_can_write_the_name_of_what_was_unread(text):
    for key in ("username", "field:x", "field:x?unread", "header:x", "api_key"):
        for kind in ("username", "field:x", "field:x?unread"):
            assert parse_key(key).named(text) != f"{kind}?unread"
    assert normalise(UNREAD) == UNREAD


def test_a_value_that_looks_like_the_network_is_not_it():
    assert of("username", post({"username": f"ip:{CLIENT}"})) != of("username", post({}))


@pytest.mark.parametrize("length", [300, 10 * LONGEST])
def test_a_value_that_looks_like_a_hash_is_not_it(length):
    hashed = parse_key("username").named("x" * length)
    assert hashed.startswith("username#")
    assert parse_key("username").named(hashed.removeprefix("username")) != hashed


def test_a_long_text_is_a_hash_of_all_of_it():
    """What code calls somebody may be long too."""
    texts = ["x" * 5000, "x" * 4999 + "y", "\u0301" * 5000, "\ufdfa" * 500]
    assert len({normalise(text) for text in texts}) == 4
    assert max(len(normalise(text)) for text in texts) < 50


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST + 1, 10 * LONGEST, 1_000_000])
def test_a_long_value_is_there_as_a_hash_of_all_of_it(length):
    key = parse_key("username")
    one, other = key.named("x" * length), key.named("x" * (length - 1) + "y")
    assert one != other
    assert max(len(one), len(other)) < 50


def test_spaces_around_a_name_are_no_way_to_another_identity():
    padded = " " * 100_000 + "bob" + "\u3000" * 100_000
    assert parse_key("username").named(padded) == BOB
    assert normalise(padded) == "bob"


@given(st.lists(texts, min_size=4, max_size=4))
@example(["\ufdfa" * 200] * 4)
@example(["+" * 200] * 4)
def test_an_identity_is_short_whatever_was_sent(values):
    key = parse_key("username+field:a+field:b+header:c")
    assert len(key.named(dict(zip(key.name.split("+"), values, strict=True)))) <= LONGEST


# --- digests --------------------------------------------------------------------------------------------


def test_a_digest_is_32_digits_that_only_this_site_makes():
    ours = digest("user:7")
    assert re.fullmatch(r"[0-9a-f]{32}", ours)
    assert digest("user:7") == ours != digest("user:8")
    with override_settings(SECRET_KEY="another"):
        assert digest("user:7") != ours


def test_without_a_secret_nothing_is_digested():
    with override_settings(SECRET_KEY=""), pytest.raises(SettingsError, match="SECRET_KEY is empty"):
        digest("user:7")


def test_a_million_identities_do_not_stay():
    """What is remembered is bounded, whoever makes up the names."""
    import redis_infra.throttling.identity as module

    for number in range(20_000):
        request = get(f"2001:db8:{number % 65536:x}::1", "198.51.100.1")
        digest(of("ip", request))
        parse_key("username").named(f"user{number}")
    caches = [made for made in vars(module).values() if hasattr(made, "cache_info")]
    assert len(caches) >= 5
    assert all(each.cache_info().maxsize for each in caches)
    assert max(each.cache_info().currsize for each in caches) <= 8192


def test_the_hot_path_is_short():
    """A limit for users or addresses is asked at every request: no settings, no Unicode, no parsing."""
    import sys

    for key, request, most in (("user", user(7), 12), ("ip", get(), 8), ("ip", get("2001:db8::1"), 10)):
        asked = parse_key(key)
        asked.of(request)
        calls = []
        sys.setprofile(
            lambda frame, event, arg, calls=calls: calls.append(event) if event == "call" else None
        )
        asked.of(request)
        sys.setprofile(None)
        assert len(calls) <= most
