"""A site with content, ready to be served: database, people, messages, a warm cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache, caches
from django.core.management import call_command
from django.db import connections

from example_project.relay import live, reads
from example_project.relay.demo import Backing
from example_project.relay.seed import DEMO_USER, seed
from redis_infra.conf import find_store
from redis_infra.exceptions import SettingsError, StoreError
from redis_infra.kv import get_store
from redis_infra.observability import flushing
from redis_infra.throttling.limiter import default_limiter, forget_limiters

Say = Callable[[str], None]


def use_redis(backing: Backing, prefix: str, state_dir: str) -> None:
    """Point cache, limits and store at ``backing``, under ``prefix``. Call it before the first read.

    The store stays with the file or the REST API that the environment names, if it names one. ``state_dir``
    is for what the processes of a host keep while Redis is away.
    """
    settings.CACHES["default"]["KEY_PREFIX"] = prefix
    said: dict[str, Any] = {**settings.REDIS_INFRA, "KEY_PREFIX": prefix, "STATE_DIR": state_dir}
    if backing.url:
        settings.CACHES["default"]["LOCATION"] = backing.url
        # Their own URL, or the environment would decide, which may name a server that does not answer.
        for capability in ("THROTTLE", "STATS", *(("KV",) if _follows_cache() else ())):
            said[capability] = {**said.get(capability, {}), "URL": backing.url}
    settings.REDIS_INFRA = said
    forget_limiters()
    with suppress(AttributeError):  # this thread has not asked for it yet
        del caches["default"]


def _follows_cache() -> bool:
    """Whether the store is where the cache is, as far as the environment says."""
    try:
        return find_store().provider in ("redis", "memory")
    except SettingsError:  # for the checks to say
        return False


def quick_passwords() -> None:
    """Let passwords be checked fast, for a check that signs in by the dozen. Call it before the first one.

    Django's own hash takes 0.3 s of a core, on purpose: that was half of what the check took. The limits on
    logins charge before anybody looks at a password.
    """
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@contextmanager
def database(kept: str | None, *, reset: bool, password: str, say: Say) -> Iterator[None]:
    """Have a migrated and seeded database for as long as the block lasts.

    ``kept`` names a file that stays; it is seeded when it is empty, or anew with
    ``reset``. Without it the database is a temporary one.
    """
    with tempfile.TemporaryDirectory(prefix="relay-") as directory:
        connections["default"].close()
        # All threads' connections are made from this one dict.
        connections["default"].settings_dict["NAME"] = kept or str(Path(directory) / "relay.sqlite3")
        try:
            _fill(password, reset=reset, say=say)
            yield
        finally:
            connections.close_all()


def _fill(password: str, *, reset: bool, say: Say) -> None:
    started = perf_counter()
    call_command("migrate", verbosity=0, interactive=False)
    if reset:
        call_command("flush", verbosity=0, interactive=False)
    if User.objects.filter(username=DEMO_USER).exists():
        _let_in(password)
        say("kept the content that was there (--reset starts over)")
        return
    made = seed(password)
    say(
        f"wrote {made.people} people, {made.rooms} rooms, {made.messages:,} messages "
        f"and {made.documents} documents in {perf_counter() - started:.1f} s"
    )


def _let_in(password: str) -> None:
    user = User.objects.get(username=DEMO_USER)
    user.set_password(password)
    user.save(update_fields=["password"])


@contextmanager
def own_keys(*, temporary: bool, shared: bool) -> Iterator[str]:
    """Give a key prefix, and leave none of its keys behind on a server that is ``shared``.

    What one run cached would show another run's people, so a ``temporary``
    database gets names of its own.
    """
    prefix = f"relay-demo-{uuid4().hex[:8]}" if temporary else "relay"
    try:
        yield prefix
    finally:
        # Nothing is counted from here on: what is sent as the process ends would find no Redis, or leave
        # something on one that is shared.
        flushing.end()
        if temporary and (shared or not _follows_cache()):
            _forget_records()
        if temporary and shared:
            cache.clear()
            _forget_counts(prefix)
            for policy in default_limiter().policies:
                default_limiter().forget_policy(policy)


def _forget_records() -> None:
    """Remove the settings and API keys of people who are no more."""
    with suppress(StoreError):
        if kept := list(get_store().scan()):
            get_store().delete(kept)


def _forget_counts(prefix: str) -> None:
    """Remove what ``cache_stats`` would sum; ``--reset`` leaves the number of each process' last flush."""
    client = cache.client.get_client()  # type: ignore[attr-defined]  # as django-redis has it
    for name in client.scan_iter(f"{prefix}:stats:*", count=1000):
        client.delete(name)


def warm() -> float:
    """Read what the first visitors will, and return the milliseconds that it took."""
    started = perf_counter()
    for room in reads.room_cards():
        reads.people(row["author_id"] for row in reads.latest_messages(room["slug"]))
    for _ in range(len(live.WALK)):
        live.visit()
    async_to_sync(reads.statistics)()
    return (perf_counter() - started) * 1000
