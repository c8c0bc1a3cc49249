"""What Relay keeps in the key-value store: how people like to see it, and the keys they give to programs.

None of it can be computed again, so there is no cache before it and nothing instead of it: where the store
does not answer, its ``StoreError`` comes out of here. Every function takes another ``store`` than the site's.

    user:7:theme, user:7:density, user:7:name      what was chosen, as text
    key:DIGEST                                     whose API key that is; expires with the key
    key:DIGEST:uses                                how often it was used
    user:7:key:1 ... user:7:key:8                  the digests of somebody's keys; as many as one may have

Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from redis_infra.kv import KVStore, get_store

THEMES = ("auto", "light", "dark")
DENSITIES = ("comfortable", "compact")
MOST_KEYS = 8
"""API keys that somebody may have at once."""
MARK = "relay_"
"""What an API key begins with, so that people and scanners for secrets know it."""


class TooManyKeys(Exception):
    """Somebody has as many API keys as one may have."""


# --- settings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How somebody likes to see the site."""

    theme: str = THEMES[0]
    density: str = DENSITIES[0]
    name: str = ""
    """What to call them; nothing for their user name."""


DEFAULTS = Settings()


def settings_of(user_id: int, *, store: KVStore | None = None) -> Settings:
    """Return what somebody has chosen, in one round trip; the defaults for what they have not."""
    theme, density, name = (store or get_store()).mget(_settings_keys(user_id))
    return Settings(
        # Another version of the site may have offered what this one does not.
        theme=theme if theme in THEMES else DEFAULTS.theme,
        density=density if density in DENSITIES else DEFAULTS.density,
        name=name or DEFAULTS.name,
    )


def keep_settings(user_id: int, settings: Settings, *, store: KVStore | None = None) -> None:
    """Keep what somebody has chosen, all of it or nothing."""
    keys = _settings_keys(user_id)
    (store or get_store()).mset(dict(zip(keys, astuple(settings), strict=True)))


def _settings_keys(user_id: int) -> list[str]:
    return [f"user:{user_id}:{name}" for name in ("theme", "density", "name")]


# --- API keys -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key, without the key: that is shown once, to who made it, and kept by nobody."""

    id: str
    """The digest of it."""
    name: str
    ending: str
    """Its last characters, by which its owner knows it."""
    owner: int
    created: datetime
    uses: int
    left: float
    """Seconds until it expires."""


def make_key(owner: int, name: str, lifetime: timedelta, *, store: KVStore | None = None) -> str:
    """Make an API key, and return it.

    Raises:
        TooManyKeys: there are :data:`MOST_KEYS` of them.
    """
    store = store or get_store()
    key = MARK + secrets.token_urlsafe(24)
    digest = _digest(key)
    places = _places(owner)
    free = [place for place, held in zip(places, store.mget(places), strict=True) if held is None]
    for place in free:
        # Together: a key that works is one that its owner can see, and revoke.
        with store.transaction() as together:
            is_ours = together.set(place, digest, ex=lifetime, nx=True)
            kept = together.set(f"key:{digest}", _record(key, name, owner), ex=lifetime)
        if kept.value and is_ours.value:
            return key
    if free:  # and others were faster, each time
        store.delete(f"key:{digest}")
    raise TooManyKeys


def use_key(key: str, *, store: KVStore | None = None) -> ApiKey | None:
    """Return whose API key that is, and count that it was used; None if it is none, or not any more."""
    store = store or get_store()
    digest = _digest(key)
    with store.pipeline() as asked:
        record, left = asked.get(f"key:{digest}"), asked.pttl(f"key:{digest}")
    if record.value is None or left.value <= 0:
        return None
    with store.pipeline() as counted:
        uses = counted.incr(f"key:{digest}:uses")
        # Each time: who revokes the key between the two of us must not leave a counter that stays for ever.
        counted.expire(f"key:{digest}:uses", left.value / 1000)
    return _api_key(digest, record.value, uses.value, left.value)


def keys_of(owner: int, *, store: KVStore | None = None) -> list[ApiKey]:
    """Return somebody's API keys, the newest first, in two round trips."""
    store = store or get_store()
    digests = [digest for digest in store.mget(_places(owner)) if digest]
    with store.pipeline() as asked:
        kept = [
            (
                digest,
                asked.get(f"key:{digest}"),
                asked.get(f"key:{digest}:uses"),
                asked.pttl(f"key:{digest}"),
            )
            for digest in digests
        ]
    keys = [
        _api_key(digest, record.value, int(uses.value or 0), left.value)
        for digest, record, uses, left in kept
        if record.value is not None and left.value > 0
    ]
    return sorted(keys, key=lambda each: each.created, reverse=True)


def revoke_key(owner: int, key_id: str, *, store: KVStore | None = None) -> bool:
    """Delete one of somebody's API keys; return whether there was one."""
    store = store or get_store()
    places = _places(owner)
    held = [place for place, digest in zip(places, store.mget(places), strict=True) if digest == key_id]
    if not held:
        return False
    return store.delete(held, f"key:{key_id}", f"key:{key_id}:uses") > 0


def _places(owner: int) -> list[str]:
    return [f"user:{owner}:key:{number}" for number in range(1, MOST_KEYS + 1)]


def _digest(key: str) -> str:
    # Neither slow nor salted, as for passwords: nobody guesses 24 random bytes.
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _record(key: str, name: str, owner: int) -> str:
    created = timezone.now().isoformat()
    return json.dumps({"name": name, "ending": key[-4:], "owner": owner, "created": created})


def _api_key(digest: str, record: str, uses: int, left: int) -> ApiKey:
    said: dict[str, Any] = json.loads(record)
    created = datetime.fromisoformat(said.pop("created"))
    return ApiKey(id=digest, uses=uses, left=left / 1000, created=created, **said)
