"""What Relay keeps in the key-value store: by its functions, and over HTTP on running demos."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from example_project.relay import records
from example_project.relay.demo.visitor import Answer, Visitor
from example_project.relay.records import Settings, TooManyKeys
from redis_infra.kv import Command, KVStore
from redis_infra.kv.commands import Incr
from redis_infra.kv.file_store import FileStore
from redis_infra.kv.memory_store import MemoryStore
from redis_infra.testing import FakeClock
from tests.example.conftest import Demo, Manage, serving

WITHIN = 20.0
"""Seconds in which a state must show, far above the longest pause between two probes."""
ALICE, BOB = 1, 2
DAY = timedelta(days=1)


# --- the functions --------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[KVStore]:
    home = "relay:kv:"
    memory = request.param == "memory"
    with MemoryStore(home, clock=clock) if memory else FileStore(home, tmp_path / "kv", clock=clock) as made:
        yield made


def test_who_has_chosen_nothing_has_the_defaults(store: KVStore) -> None:
    assert records.settings_of(ALICE, store=store) == Settings()


def test_settings_are_of_who_has_chosen_them(store: KVStore) -> None:
    chosen = Settings(theme="dark", density="compact", name="Álice 🐇")
    records.keep_settings(ALICE, chosen, store=store)
    assert records.settings_of(ALICE, store=store) == chosen
    assert records.settings_of(BOB, store=store) == Settings()


def test_a_theme_that_is_not_offered_any_more_is_the_default(store: KVStore) -> None:
    records.keep_settings(ALICE, Settings(theme="dark", name="Alice"), store=store)
    store.set(f"user:{ALICE}:theme", "sepia")
    assert records.settings_of(ALICE, store=store) == Settings(name="Alice")


def test_a_key_says_whose_it_is_and_counts_its_uses(store: KVStore) -> None:
    key = records.make_key(ALICE, "Backups", DAY, store=store)
    used = [records.use_key(key, store=store) for _ in range(3)]
    assert [(each.owner, each.name, each.uses) for each in used if each] == [
        (ALICE, "Backups", 1),
        (ALICE, "Backups", 2),
        (ALICE, "Backups", 3),
    ]
    assert [each.uses for each in records.keys_of(ALICE, store=store)] == [3]
    assert records.keys_of(BOB, store=store) == []


def test_the_key_itself_is_kept_nowhere(store: KVStore) -> None:
    key = records.make_key(ALICE, "Backups", DAY, store=store)
    records.use_key(key, store=store)
    names = list(store.scan())
    assert names
    assert [name for name in names if key in name + (store.get(name) or "")] == []


@pytest.mark.parametrize("key", ["", "relay_", "relay_nobody", "Ärger", "x" * 10_000, "\udce4"])
def test_what_is_no_key_is_nobodys_and_leaves_nothing(store: KVStore, key: str) -> None:
    assert records.use_key(key, store=store) is None
    assert list(store.scan()) == []


def test_a_key_expires_with_everything_about_it(store: KVStore, clock: FakeClock) -> None:
    key = records.make_key(ALICE, "Backups", DAY, store=store)
    clock.advance(DAY.total_seconds() - 1)
    (listed,) = records.keys_of(ALICE, store=store)
    assert listed.left == pytest.approx(1)
    assert records.use_key(key, store=store)
    clock.advance(1.001)
    assert records.use_key(key, store=store) is None
    assert records.keys_of(ALICE, store=store) == []
    assert list(store.scan()) == []


def test_a_key_that_was_revoked_leaves_nothing(store: KVStore) -> None:
    kept, revoked = (records.make_key(ALICE, name, DAY, store=store) for name in ("kept", "revoked"))
    records.use_key(revoked, store=store)
    (key_id,) = [each.id for each in records.keys_of(ALICE, store=store) if each.name == "revoked"]
    assert records.revoke_key(ALICE, key_id, store=store)
    assert records.use_key(revoked, store=store) is None
    assert records.use_key(kept, store=store)
    assert not [name for name in store.scan() if key_id in name]
    assert not records.revoke_key(ALICE, key_id, store=store)


def test_nobody_revokes_the_key_of_somebody_else(store: KVStore) -> None:
    key = records.make_key(ALICE, "Backups", DAY, store=store)
    (listed,) = records.keys_of(ALICE, store=store)
    assert not records.revoke_key(BOB, listed.id, store=store)
    assert records.use_key(key, store=store)


def test_keys_are_listed_newest_first_and_a_place_is_used_again(store: KVStore) -> None:
    for number in range(records.MOST_KEYS):
        records.make_key(ALICE, f"number {number}", DAY, store=store)
    with pytest.raises(TooManyKeys):
        records.make_key(ALICE, "one more", DAY, store=store)
    listed = records.keys_of(ALICE, store=store)
    assert [each.name for each in listed] == [f"number {n}" for n in reversed(range(records.MOST_KEYS))]
    records.revoke_key(ALICE, listed[3].id, store=store)
    assert records.use_key(records.make_key(ALICE, "one more", DAY, store=store), store=store)


def test_of_many_who_make_keys_at_once_as_many_as_may_get_one_that_is_listed(store: KVStore) -> None:
    crowd = records.MOST_KEYS * 2
    together = threading.Barrier(crowd)
    made: list[str] = []

    def make() -> None:
        together.wait()
        with suppress(TooManyKeys):
            made.append(records.make_key(ALICE, "at once", DAY, store=store))

    threads = [threading.Thread(target=make) for _ in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == records.MOST_KEYS
    used = [records.use_key(key, store=store) for key in made]
    assert {each.id for each in used if each} == {each.id for each in records.keys_of(ALICE, store=store)}
    assert len(list(store.scan("key:"))) == records.MOST_KEYS * 2  # and the uses


class RevokesMeanwhile(MemoryStore):
    """Somebody revokes the key after it was looked at, and before it is counted."""

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        if any(isinstance(each, Incr) for each in commands):
            (listed,) = records.keys_of(ALICE, store=self)
            records.revoke_key(ALICE, listed.id, store=self)
        return super().execute(commands, atomic=atomic)


def test_a_key_that_is_revoked_while_it_is_used_leaves_no_counter_for_ever(clock: FakeClock) -> None:
    store = RevokesMeanwhile("relay:kv:", clock=clock)
    records.use_key(records.make_key(ALICE, "Backups", DAY, store=store), store=store)
    assert [name for name in store.scan() if store.ttl(name) == -1] == []
    clock.advance(DAY.total_seconds() + 1)
    assert list(store.scan()) == []


# --- settings, over HTTP --------------------------------------------------------------------------------


DEFAULTS = {"theme": "auto", "density": "comfortable", "name": ""}


@pytest.fixture(autouse=True)
def _anew(request: pytest.FixtureRequest) -> None:
    """Begin each test of a page without choices and keys."""
    if "member" not in request.fixturenames:
        return
    member: Visitor = request.getfixturevalue("member")
    member.get("/")
    for each in state(member)["keys"]:
        revoke(member, each["id"])
    assert keep(member).status == 302


def state(visitor: Visitor) -> dict[str, Any]:
    answer: dict[str, Any] = visitor.get("/settings/state.json").json()
    return answer


def keep(visitor: Visitor, **chosen: str) -> Answer:
    return visitor.post("/settings/keep/", **{**DEFAULTS, **chosen})


def make(visitor: Visitor, name: str = "Backups", lifetime: str = "1 day") -> str:
    answer = visitor.post("/settings/keys/", action="make", name=name, lifetime=lifetime)
    assert answer.status == 200, answer.text
    found = re.search(r"<code>(relay_[\w-]+)</code>", answer.text)
    assert found, answer.text
    return found[1]


def revoke(visitor: Visitor, key_id: str) -> None:
    assert visitor.post("/settings/keys/", action=f"revoke:{key_id}").status == 302


def program(demo: Demo, key: str) -> Visitor:
    """A program without cookies, that shows a key."""
    return Visitor(demo.url, authorization=f"Api-Key {key}")


@pytest.mark.parametrize("path", ["/settings/", "/settings/state.json"])
def test_settings_are_for_who_has_signed_in(demo: Demo, path: str) -> None:
    answer = demo.visitor().get(path)
    assert (answer.status, answer.headers["Location"]) == (302, f"/login/?next={path}")


def test_page_has_nothing_inline(member: Visitor) -> None:
    make(member)
    page = member.get("/settings/")
    assert page.status == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text)
    ids = re.findall(r'\sid="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))


def test_page_says_who_keeps_it_and_why(member: Visitor) -> None:
    now = state(member)
    assert (now["provider"], now["status"], now["why"]) == ("redis", "ok", "REDIS_INFRA['KV']['URL']")
    assert now["where"].startswith("unix:///")
    assert "Redis keeps your settings" in member.get("/settings/").text


def test_what_was_chosen_is_on_every_page_of_theirs_and_of_nobody_else(demo: Demo, member: Visitor) -> None:
    assert keep(member, theme="dark", density="compact", name="Dana").status == 302
    for path in ("/", "/documents/", "/settings/", "/limits/"):
        text = member.get(path).text
        assert 'data-theme="dark" data-density="compact"' in text, path
        assert '<meta name="color-scheme" content="dark">' in text
        assert '<span class="called">Dana</span>' in text
    assert not re.search("data-theme|data-density|Dana", demo.visitor().get("/").text)


def test_defaults_say_nothing(member: Visitor) -> None:
    assert not re.search(r"data-theme|data-density|class=\"called\"", member.get("/").text)


def test_a_name_is_escaped(member: Visitor) -> None:
    keep(member, name="<b>Dana</b>")
    assert "<b>Dana" not in member.get("/").text


@pytest.mark.parametrize("wrong", [{"theme": "sepia"}, {"density": ""}, {"name": "x" * 41}])
def test_what_is_not_offered_is_refused_and_changes_nothing(member: Visitor, wrong: dict[str, str]) -> None:
    keep(member, theme="light", name="Dana")
    answer = keep(member, **wrong)
    assert answer.status == 400
    assert "errorlist" in answer.text
    assert state(member)["settings"] == {**DEFAULTS, "theme": "light", "name": "Dana"}


# --- API keys, over HTTP --------------------------------------------------------------------------------


def test_a_key_is_shown_once(member: Visitor) -> None:
    key = make(member)
    seen = member.get("/settings/").text + member.get("/settings/state.json").text
    assert key not in seen
    assert f"…{key[-4:]}" in seen


def test_what_shows_a_key_is_not_kept_by_browsers(member: Visitor) -> None:
    answer = member.post("/settings/keys/", action="make", name="Backups", lifetime="1 day")
    assert "no-store" in answer.headers["Cache-Control"]


def test_a_program_is_its_owner_and_its_uses_are_counted(demo: Demo, member: Visitor) -> None:
    keep(member, name="Dana")
    asks = program(demo, make(member))
    said = [asks.get("/api/me/").json() for _ in range(2)][-1]
    assert (said["username"], said["name"], said["key"]["name"]) == ("demo", "Dana", "Backups")
    assert said["key"]["uses"] == 2
    assert 86_000 < said["key"]["seconds_left"] <= 86_400
    assert [(each["name"], each["uses"], each["lasts"]) for each in state(member)["keys"]] == [
        ("Backups", 2, "23 h")
    ]


def test_a_program_writes_without_cookie_or_token(demo: Demo, member: Visitor) -> None:
    written = program(demo, make(member)).post("/api/rooms/books/messages/", body="Said by a program.")
    assert written.status == 201
    assert "Said by a program." in member.get("/people/demo/").text


def test_a_session_is_enough_for_the_api(member: Visitor) -> None:
    assert member.get("/api/me/").json()["key"] is None


@pytest.mark.parametrize("path", ["/api/me/", "/api/rooms/"])
@pytest.mark.parametrize("key", ["", "relay_nobody", "two words", "\xe4"])
def test_who_shows_what_is_no_key_is_told_so(demo: Demo, path: str, key: str) -> None:
    answer = program(demo, key).get(path)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Api-Key")
    assert "unknown, expired or revoked" in answer.text


@pytest.mark.parametrize("header", ["", "Basic ZGVtbzpkZW1v", "Bearer relay_x", "Api-Keys relay_x"])
def test_who_shows_no_key_has_a_session_or_is_nobody(demo: Demo, header: str) -> None:
    asks = Visitor(demo.url, authorization=header)
    assert (asks.get("/api/me/").status, asks.get("/api/rooms/").status) == (403, 200)


def test_a_key_that_was_revoked_is_refused(demo: Demo, member: Visitor) -> None:
    asks = program(demo, make(member))
    assert asks.get("/api/me/").status == 200
    revoke(member, state(member)["keys"][0]["id"])
    assert asks.get("/api/me/").status == 401
    assert state(member)["keys"] == []


def test_more_keys_than_one_may_have_are_refused_with_a_reason(member: Visitor) -> None:
    for _ in range(records.MOST_KEYS):
        make(member)
    answer = member.post("/settings/keys/", action="make", name="One more", lifetime="1 day")
    assert answer.status == 400
    assert "You have 8 keys, which is the most." in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "explode"},
        {},
        {"action": "make", "name": "", "lifetime": "1 day"},
        {"action": "make", "name": "x", "lifetime": "for ever"},
    ],
)
def test_what_cannot_be_made_is_refused(member: Visitor, fields: dict[str, str]) -> None:
    assert member.post("/settings/keys/", **fields).status == 400
    assert state(member)["keys"] == []


@pytest.mark.parametrize("path", ["/settings/keep/", "/settings/keys/"])
def test_looking_changes_nothing(member: Visitor, path: str) -> None:
    assert member.get(path).status == 405


# --- without Redis --------------------------------------------------------------------------------------


@pytest.fixture(params=["stop", "freeze"])
def without_redis(request: pytest.FixtureRequest, member: Visitor) -> Iterator[str]:
    """A key that was made before Redis was taken away; afterwards it is given back, and trusted."""
    keep(member, theme="dark", name="Dana")
    key = make(member)
    member.post("/playground/redis/", action=request.param)
    yield key
    give_back(member)


def give_back(member: Visitor) -> None:
    member.post("/playground/redis/", action="start")
    deadline = time.monotonic() + WITHIN
    while member.get("/settings/state.json").status != 200:
        assert time.monotonic() < deadline, state(member)


def test_without_redis_nothing_is_made_up_and_the_site_goes_on(
    demo: Demo, member: Visitor, without_redis: str
) -> None:
    asks = program(demo, without_redis)
    page, shown = member.get("/settings/"), member.get("/settings/state.json")
    changed, made = keep(member, theme="light"), member.post("/settings/keys/", action="make")
    used = asks.get("/api/me/")
    assert [each.status for each in (page, shown, changed, used)] == [503] * 4
    assert [each.headers["Retry-After"] for each in (page, shown, changed, used)] == ["1"] * 4
    assert "Your settings cannot be read" in page.text
    assert re.search("Nothing was changed|Look here again", changed.text)
    assert made.status in (400, 503)  # it has no name, which may be said first
    assert shown.json()["status"] == "down"
    for path in ("/", "/rooms/books/", "/limits/", "/api/rooms/"):
        assert member.get(path).status == 200
    assert "data-theme" not in member.get("/").text


def test_what_was_kept_is_there_when_redis_is_back(demo: Demo, member: Visitor, without_redis: str) -> None:
    assert member.get("/settings/").status == 503
    assert member.post("/rooms/books/", body="Said while nobody knew me.").status == 302
    give_back(member)
    assert state(member)["settings"] == {**DEFAULTS, "theme": "dark", "name": "Dana"}
    assert program(demo, without_redis).get("/api/me/").json()["key"]["uses"] == 1
    assert 'data-theme="dark"' in member.get("/").text


# --- other providers ------------------------------------------------------------------------------------


def test_a_file_that_the_environment_names_keeps_it_while_redis_is_away(tmp_path: Path) -> None:
    kept = tmp_path / "kv.sqlite3"
    with serving(KV_URL=f"file://{kept}") as demo:
        member = demo.member()
        keep(member, theme="dark")
        now = state(member)
        assert (now["provider"], now["where"]) == ("file", str(kept))
        assert now["why"] == "KV_URL in the environment"
        asks = program(demo, make(member))
        member.post("/playground/redis/", action="stop")
        assert 'data-theme="dark"' in member.get("/settings/").text
        assert asks.get("/api/me/").status == 200
    # Its people were of a temporary database, and so is what was kept of them.
    with FileStore("", kept) as store:
        assert list(store.scan()) == []


def test_a_store_that_is_configured_wrongly_is_no_500(tmp_path: Path) -> None:
    with serving(KV_URL=f"file://{tmp_path / 'nowhere' / 'kv.sqlite3'}") as demo:
        member = demo.member()
        assert member.get("/").status == 200
        page = member.get("/settings/")
    assert page.status == 503
    assert "nowhere" in page.text


def test_check_finds_a_store_that_revokes_nothing(manage: Manage) -> None:
    """The part of the tour about what is kept can fail, too."""
    done = manage("demo", "--check", DJANGO_SETTINGS_MODULE="tests.example.hoarding")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED             a key that was revoked got 200" in done.stdout
