"""``glob_to_regex`` against the judge: a real server's own matching."""

from __future__ import annotations

import pytest
from django.core.cache.backends.base import default_key_func
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from redis_infra.keys import escape, glob_to_regex, namespace_pattern

# What a pattern is made of, with little else, so that nearly every example has several of them. Ends of a
# range stay ASCII: beyond it servers disagree, as C's char is signed on some machines and not on others.
PATTERNS = st.lists(st.sampled_from([*"ab?*[]^-\\", "[a", "[^", "a-", "]*"]), min_size=1).map("".join)
# The empty name is left out: SCAN says that "*" matches it and "**" does not.
NAMES = st.lists(
    st.sampled_from([b"a", b"b", b"]", b"[", b"^", b"-", b"\\", b"*", b"\n", b"\xff"]), min_size=1, max_size=6
)


class Names:
    """The names in an emptied database of the server."""

    def __init__(self, server):
        self.server = server

    def are(self, names):
        self.server.flush()
        for name in names:
            self.server.command("SET", name, "1")

    def scan(self, pattern):
        found, cursor = set(), b"0"
        while True:
            cursor, names = self.server.command("SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
            found.update(names)
            if cursor in {b"0", "0"}:
                return found


@pytest.fixture(scope="module")
def stored(redis_server):
    yield Names(redis_server)
    redis_server.flush()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.sets(NAMES.map(b"".join), min_size=1, max_size=25),
    patterns=st.lists(PATTERNS, min_size=1, max_size=10),
)
@example(names={b"a", b"]", b"-", b"_"}, patterns=["[a-]", "[^a-]", "[]", "[^]", "[]-a]", "[--a]"])
@example(names={b"a", b"\\", b"a\\", b"]"}, patterns=["\\", "a\\", "[\\]", "[a\\", "[\\a-b]", "[a-\\b]"])
@example(names={b"ab", b"a[b", b"a"}, patterns=["a[b", "a[", "[", "a[^b", "a*[b", "**b"])
def test_an_expression_matches_what_the_server_matches(stored, names, patterns):
    stored.are(names)
    for pattern in patterns:
        matches = glob_to_regex(pattern.encode()).match
        assert {name for name in names if matches(name)} == stored.scan(pattern.encode()), pattern


@settings(deadline=None, max_examples=30)
@given(
    text=st.text(alphabet="ab*?[]^-\\\n", min_size=1, max_size=5),
    others=st.sets(NAMES.map(b"".join), max_size=10),
)
def test_the_server_finds_exactly_the_name_that_was_escaped(stored, text, others):
    stored.are({text.encode(), *others})
    assert stored.scan(escape(text).encode()) == {text.encode()}


@pytest.mark.parametrize("prefix", ["site", "s*te", "[site]", "si\\te", ""])
def test_the_server_finds_an_alias_whole_and_nobody_elses_names(stored, prefix):
    own = {default_key_func(key, prefix, version) for key in ("a", "", "x:y", "*") for version in (1, -1, 20)}
    foreign = {default_key_func("a", other, 1) for other in ("sxte", "s", "site:blog", "te")}
    stored.are({name.encode() for name in own | foreign | {"ri:throttle", prefix or "bare"}})
    pattern = namespace_pattern(default_key_func, prefix, 1)
    assert stored.scan(pattern.encode()) == {name.encode() for name in own}
