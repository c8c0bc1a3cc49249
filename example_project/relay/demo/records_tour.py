"""The part of the tour that is about what is kept for good: settings and API keys, on all four providers.

The site's own provider is used over HTTP, as a person and as a program with a key; the others by the same
functions, with a store of theirs. Then Redis is taken away: what is kept there cannot be read, which is said,
and nothing is made up in its place. When it is back, everything is as it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from example_project.relay import records
from example_project.relay.demo import Backing
from example_project.relay.demo.visitor import Answer, Visitor
from example_project.relay.records import ApiKey, Settings
from redis_infra.exceptions import MissingExtra, StoreError
from redis_infra.kv import KVStore, get_store
from redis_infra.testing import UpstashServer

Step = Callable[[str, float], None]
Claim = Callable[[bool, str], None]

PAGE = "/settings/"
STATE = "/settings/state.json"
ME = "/api/me/"
CHOSEN = Settings(theme="dark", density="compact", name="Dana of the tour")
PROVIDERS = ("redis", "upstash", "memory", "file")
SOMEBODY = 0
"""Who has settings and keys in the stores that are not the site's: nobody has that id."""
HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=80)
PATIENCE = 10.0
"""Seconds in which a key that lasts a moment must have expired, and a store must be back."""


class NoSuchStore(Exception):
    """A provider cannot be had here; the text says why."""


@dataclass(slots=True)
class RecordsTour:
    """Uses the Settings page of one site as ``member``, and keys of that member as a program."""

    url: str
    member: Visitor
    backing: Backing
    step: Step
    claim: Claim
    _key: str = ""

    def use_it(self) -> None:
        """Make all the claims on all the providers that can be had; leave settings and a key behind."""
        now = self.member.get(STATE)
        self.claim(now.status == 200, f"settings cannot be read: {now.json()['detail']}")
        own = self._provider()
        self._choose()
        self._make_and_use(own)
        self._revoke(own)
        self._let_expire(own)
        for provider in PROVIDERS:
            if provider != own:
                self._use_store(provider)

    def expect_nothing_made_up(self) -> None:
        """While Redis is away: be told so by page and API, and find the rest of the site there."""
        if self._provider() != "redis":
            return
        page, shown = self.member.get(PAGE), self.member.get(STATE)
        for answer in (page, shown, self.member.post("/settings/keep/", **asdict(Settings())), self._me()):
            self.claim(answer.status == 503, f"without Redis {answer.path} answered {answer.status}")
            self.claim("Retry-After" in answer.headers, f"{answer.path} answered 503 without Retry-After")
        self.claim("cannot be read" in page.text, f"{PAGE} does not say that it cannot be read")
        self.claim(shown.json()["status"] == "down", f"{STATE} says {shown.json()['status']} without Redis")
        self.step("settings and API keys cannot be read: 503, and nothing in their place", page.ms)
        home = self.member.get("/")
        self.claim(home.status == 200, f"/ answered {home.status} to somebody whose settings cannot be read")
        self.claim("data-theme" not in home.text, "a theme was shown that cannot be known")
        self.step("and the site goes on without them", home.ms)

    def expect_them_back(self) -> None:
        """After an outage: find what was chosen before it, and the key that was made before it."""
        if self._provider() != "redis":
            return
        self._wait(lambda: self.member.get(STATE).status == 200, f"{STATE} is not there after the outage")
        now = self.member.get(STATE)
        before = next(key["uses"] for key in now.json()["keys"] if key["ending"] == self._key[-4:])
        self.claim(now.json()["settings"] == asdict(CHOSEN), f"settings are {now.json()['settings']}")
        answer = self._me()
        self.claim(answer.status == 200, f"the key from before the outage got {answer.status}")
        uses = answer.json()["key"]["uses"]
        self.claim(uses == before + 1, f"the key was used {before} times, and then {uses}")
        self.step(f"settings and the API key are there again, its uses counted on: {uses}", answer.ms)

    # Over HTTP

    def _choose(self) -> None:
        kept = self.member.post("/settings/keep/", **asdict(CHOSEN))
        self.claim(kept.status == 302, f"keeping settings answered {kept.status}")
        home = self.member.get("/")
        for sign in ('data-theme="dark"', 'data-density="compact"', CHOSEN.name):
            self.claim(sign in home.text, f"{sign} is chosen, and not on the next page")
        now = self.member.get(STATE).json()
        self.claim(now["settings"] == asdict(CHOSEN), f"settings are {now['settings']}")
        self.step(f"settings kept by {now['provider']} ({now['why']}), and on the next page", kept.ms)

    def _make_and_use(self, own: str) -> None:
        self._key = self._make("For the tour")
        self.claim(self._key not in self.member.get(PAGE).text, "a key was shown twice")
        answers = [self._me() for _ in range(3)]
        uses = [answer.json()["key"]["uses"] for answer in answers]
        self.claim(uses == [1, 2, 3], f"a key that was used three times counted {uses}")
        said = answers[-1].json()
        self.claim(said["name"] == CHOSEN.name, f"the owner of the key is {said['name']}")
        left = said["key"]["seconds_left"]
        self.claim(0 < left <= timedelta(days=1).total_seconds(), f"a key of one day has {left} s left")
        self.step(f"API key made, shown once and used 3 times, counted by {own}", answers[-1].ms)

    def _revoke(self, own: str) -> None:
        key = self._make("To be revoked")
        self.claim(self._me(key).status == 200, "a new key does not work")
        (key_id,) = [each["id"] for each in self._keys() if each["ending"] == key[-4:]]
        revoked = self.member.post("/settings/keys/", action=f"revoke:{key_id}")
        self.claim(revoked.status == 302, f"revoking answered {revoked.status}")
        answer = self._me(key)
        self.claim(answer.status == 401, f"a key that was revoked got {answer.status}")
        self.claim(key_id not in {each["id"] for each in self._keys()}, "a key that was revoked is listed")
        self.step(f"API key revoked in {own}, and refused with 401", revoked.ms)

    def _let_expire(self, own: str) -> None:
        owner = self._me().json()["id"]
        key = records.make_key(owner, "For a moment", MOMENT)  # the site's own store: it is this process
        lasted = self._wait(lambda: self._me(key).status == 401, f"a key of {MOMENT} works on")
        self.step(f"API key of a moment expired in {own}, and refused with 401", lasted)

    def _make(self, name: str) -> str:
        answer = self.member.post("/settings/keys/", action="make", name=name, lifetime="1 day")
        found = re.search(rf"<code>({records.MARK}[\w-]+)</code>", answer.text)
        self.claim(bool(found), f"making a key answered {answer.status}, without one")
        return found[1] if found else ""

    def _me(self, key: str = "") -> Answer:
        return Visitor(self.url, authorization=f"Api-Key {key or self._key}").get(ME)

    def _keys(self) -> list[dict[str, Any]]:
        keys: list[dict[str, Any]] = self.member.get(STATE).json()["keys"]
        return keys

    def _provider(self) -> str:
        return str(self.member.get(STATE).json()["provider"])

    def _wait(self, holds: Callable[[], bool], otherwise: str) -> float:
        """Wait until something holds, and return the milliseconds that it took."""
        started = time.monotonic()
        while not holds():
            self.claim(time.monotonic() - started < PATIENCE, f"{otherwise}, after {PATIENCE:.0f} s")
            time.sleep(0.01)
        return (time.monotonic() - started) * 1000

    # By the functions

    def _use_store(self, provider: str) -> None:
        try:
            with self._opened(provider) as store:
                self._use(store)
        except (NoSuchStore, MissingExtra) as why:
            self.step(f"skipped: settings and API keys on {provider}: {why}", 0)
        except StoreError as error:
            self.claim(False, f"on {provider}: {error}")

    def _use(self, store: KVStore) -> None:
        on, started = f"on {store.provider}", time.monotonic()
        self.claim(store.ping(), f"{on}: nobody answers: {store.health().problem}")
        records.keep_settings(SOMEBODY, CHOSEN, store=store)
        kept = records.settings_of(SOMEBODY, store=store)
        self.claim(kept == CHOSEN, f"{on}: settings are {kept}")
        key = records.make_key(SOMEBODY, "For the tour", HOUR, store=store)
        used = [records.use_key(key, store=store) for _ in range(3)]
        uses = [each.uses for each in used if each]
        self.claim(uses == [1, 2, 3], f"{on}: a key that was used three times counted {uses}")
        (listed,) = records.keys_of(SOMEBODY, store=store)
        self.claim((listed.uses, listed.ending) == (3, key[-4:]), f"{on}: the key is listed as {listed}")
        self.claim(0 < listed.left <= HOUR.total_seconds(), f"{on}: a key of an hour has {listed.left} s")
        self.claim(records.revoke_key(SOMEBODY, listed.id, store=store), f"{on}: nothing was revoked")
        self.claim(_is_refused(key, store), f"{on}: a key that was revoked works")
        key = records.make_key(SOMEBODY, "For a moment", MOMENT, store=store)
        self._wait(lambda: _is_refused(key, store), f"{on}: a key of {MOMENT} works on")
        # One that has no whole millisecond left is refused, and there.
        self._wait(lambda: not list(store.scan("key:")), f"{on}: something is left of keys that are no more")
        store.delete(*store.scan())
        ms = (time.monotonic() - started) * 1000
        self.step(f"{on}: settings kept; API key made, used 3 times, revoked; another expired", ms)

    @contextmanager
    def _opened(self, provider: str) -> Iterator[KVStore]:
        """Have a store of a provider that is not the site's.

        Raises:
            NoSuchStore, MissingExtra: it cannot be had here.
        """
        home = f"{get_store().commands.home}{provider}:"
        with ExitStack() as stack:
            yield stack.enter_context(closing(self._made(provider, home, stack)))

    def _made(self, provider: str, home: str, stack: ExitStack) -> KVStore:
        from redis_infra.kv.file_store import FileStore
        from redis_infra.kv.memory_store import MemoryStore
        from redis_infra.kv.upstash_store import UpstashStore

        match provider:
            case "memory":
                return MemoryStore(home)
            case "file":
                directory = stack.enter_context(TemporaryDirectory(prefix="relay-kv-"))
                return FileStore(home, Path(directory) / "kv.sqlite3")
            case "upstash" if self.backing.power != "none" and self.backing.url:
                server = stack.enter_context(UpstashServer(self.backing.url))
                return UpstashStore(home, server.url, server.token)
            case "redis" if self.backing.power != "none":
                return get_store("redis")
        raise NoSuchStore("there is no server")


def _is_refused(key: str, store: KVStore) -> bool:
    used: ApiKey | None = records.use_key(key, store=store)
    return used is None
