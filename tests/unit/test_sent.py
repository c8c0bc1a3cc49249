"""What a client sent: whatever a view could read as the name is what we charge, or what is shared.

The views are Django's and Django REST framework's own; bodies, types and charsets are made up.
"""

from __future__ import annotations

import json
import sys
from urllib.parse import urlencode

import pytest
from django.test import RequestFactory
from hypothesis import example, given
from hypothesis import strategies as st
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request

from redis_infra.throttling.identity import parse_key
from redis_infra.throttling.sent import LARGEST_BODY, MOST_PARTS, UNREAD, text_of, text_sent

CLIENT = "203.0.113.7"
FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
BOUNDARY = "--b"


def request_of(body, content_type, method="POST"):
    return RequestFactory().generic(method, "/", body, content_type=content_type, REMOTE_ADDR=CLIENT)


# --- what a view would read -----------------------------------------------------------------------------


def by_parsers(*parsers):
    return lambda request: Request(request, parsers=[parser() for parser in parsers]).data


VIEWS = {
    "request.POST": lambda request: request.POST,
    "json.loads": lambda request: json.loads(request.body),
    "json.loads by charset": lambda request: json.loads(request.body.decode(request.encoding or "utf-8")),
    "REST framework": by_parsers(JSONParser, FormParser, MultiPartParser),
    "REST framework, JSON": by_parsers(JSONParser),
    "REST framework, form": by_parsers(FormParser),
    "REST framework, multipart": by_parsers(MultiPartParser),
    "REST framework, forms first": by_parsers(MultiPartParser, FormParser, JSONParser),
}


def name_read_by(view, request):
    """Return what a view would take for the user name; None where it fails or finds none."""
    try:
        return VIEWS[view](request)["username"]
    except Exception:
        return None


# --- what a client may send -----------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["bob", "Eve", "+AGI-ob", "böb", "\ufeffbob", "b\x00b", "\ud800", "b&username=eve", "", " "]
)
VALUES = NAMES | st.sampled_from([7, 1.5, 1e400, None, True, ["bob"], {"a": "bob"}])
CHARSETS = st.sampled_from(
    "utf-8 UTF8 latin-1 utf-16 utf-16-le utf-32 utf-7 utf-8-sig cp037 shift_jis unicode_escape "
    "base64 zlib rot13 punycode undefined nonsense".split()
)
FIELDS = st.lists(st.tuples(st.sampled_from(["username", "x", "email"]), VALUES), max_size=3)
KINDS = st.sampled_from(
    [
        *(FORM, MULTIPART, JSON, "application/vnd.x+json", "text/plain", "text/xml", ""),
        *("*/*", "application/*", "multipart/*", "*/form-data", "*/json", "*", "/"),
        *("Multipart/Form-Data", "APPLICATION/JSON"),
    ]
)


def encoded(text, charset):
    try:
        return text.encode(charset, "surrogatepass")
    except (LookupError, UnicodeError):
        return text.encode("utf-8", "surrogatepass")


def as_json(fields, charset):
    pairs = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields)
    return encoded(f"{{{pairs}}}", charset)


def as_form(fields, charset):
    pairs = [(name, encoded(str(value), charset)) for name, value in fields]
    return urlencode(pairs).encode()


def as_parts(fields, charset):
    head = '\r\n----b\r\nContent-Disposition: form-data; name="'
    parts = [f'{head}{name}"\r\n\r\n'.encode() + encoded(str(value), charset) for name, value in fields]
    return b"".join([*parts, b"\r\n----b--\r\n"]).lstrip()


def as_files(fields, charset):
    return as_parts(fields, charset).replace(b'"\r\n\r\n', b'"; filename="bob"\r\n\r\n', 1)


def as_both(fields, charset):
    """Return what is JSON and a form, with another name in each."""
    pairs = ",".join(
        f"{json.dumps(name)}:{json.dumps(value)}" for name, value in [("x", "&username=Zoe&"), *fields]
    )
    return encoded(f"{{{pairs}}}", charset)


def as_json_and_parts(fields, charset):
    part = '\r\n----b\r\nContent-Disposition: form-data; name="username"\r\n\r\nzoe\r\n----b--\r\n'
    return as_json(fields, charset) + part.encode()


BODIES = st.builds(
    lambda make, fields, charset: make(fields, charset),
    st.sampled_from([as_json, as_form, as_parts, as_files, as_both, as_json_and_parts]),
    FIELDS,
    CHARSETS,
)
ENDS = st.sampled_from([b"", b"", b"", b"\xc3", b"\n", b"\x00", b"&username=zoe", b"}", b"\xd8"])
STARTS = st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b" ", b"\r\n", b"username=zoe&"])
TYPES = st.builds(
    lambda kind, charset, boundary: kind + "".join(boundary + charset),
    KINDS,
    st.just([]) | CHARSETS.map(lambda charset: [f"; charset={charset}"]),
    st.sampled_from([[], [f"; boundary={BOUNDARY}"], [f'; Boundary="{BOUNDARY}"'], ["; q=0.5"]]),
)


@given(
    body=st.builds(lambda start, body, end: start + body + end, STARTS, BODIES, ENDS),
    content_type=TYPES,
    method=st.sampled_from(["POST", "PUT", "GET"]),
    form_first=st.booleans(),
)
@example(b'{"username": "bob"}', "*/*", "POST", False)
@example(b'{"username": "bob"}', "text/plain", "POST", False)
@example(b'{"username": "bob"}', FORM, "POST", True)
@example(b'{"x": "&username=eve&", "username": "bob"}\xc3', "*/*", "POST", False)
@example(b"username=b%F6b", f"{FORM}; charset=latin-1", "PUT", False)
@example(b'{"username": "+AGI-ob"}', f"{JSON}; charset=utf-7", "POST", False)
@example('{"username": "bob"}'.encode("utf-16"), "text/plain", "POST", False)
@example(as_files([("username", "bob")], "utf-8"), f"{MULTIPART}; boundary=--b", "POST", False)
@example(as_parts([("username", "bob")], "utf-8"), "multipart/*; boundary=--b", "POST", False)
def test_what_any_view_reads_as_the_name_is_charged_or_unread(body, content_type, method, form_first):
    request = request_of(body, content_type, method)
    if form_first:
        # As the protection against forgery does.
        name_read_by("request.POST", request)
    key = parse_key("username")
    charged = key.of(request)
    for view in VIEWS:
        name = name_read_by(view, request_of(body, content_type, method))
        if name is None or charged == "username?unread":
            continue
        text = text_of(name)
        assert text is not None, view
        assert charged == key.named(text) or not key.named(text), view


@given(body=BODIES, content_type=TYPES)
def test_what_a_view_reads_afterwards_is_what_it_would_have_read(body, content_type):
    for view in VIEWS:
        looked_into = request_of(body, content_type)
        text_sent(looked_into, "username")
        assert repr(name_read_by(view, looked_into)) == repr(
            name_read_by(view, request_of(body, content_type))
        )


# --- what it costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n',
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nx\r\n',
        b"--b\r\n\r\n",
        b"--b",
        b"--b\r\nContent-Disposition: form-data; name=a" + b"; a=b" * 190 + b"\r\n\r\nx\r\n",
    ],
    ids=["fields", "files", "bare", "boundaries", "parameters"],
)
def test_a_body_of_nothing_but_parts_is_not_parsed(part):
    """Parsing a megabyte of them took half a second, for a client who had been denied long ago."""
    body = part * (LARGEST_BODY // len(part))
    request = request_of(body, f"{MULTIPART}; boundary=b")
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event == "call" else None)
    found = text_sent(request, "a")
    sys.setprofile(None)
    assert found is UNREAD
    assert len(calls) < 300


def test_as_many_parts_as_a_form_has_are_parsed():
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    whole = request_of(part * MOST_PARTS + b"--b--\r\n", f"{MULTIPART}; boundary=b")
    assert text_sent(whole, "a") == "x"


def test_a_body_is_looked_into_once():
    request = request_of(b'{"username": "bob"}', JSON)
    assert text_sent(request, "username") == "bob"
    request._body = b'{"username": "eve"}'
    assert text_sent(request, "username") == "bob"
    assert text_sent(request, "password") is None
