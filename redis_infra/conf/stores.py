"""Which provider keeps the key-value store, and why: the rules of :mod:`.sources`, and those of REST.

Opens nothing, and knows no provider but by its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from django.conf import settings as django_settings

from redis_infra.conf import readers
from redis_infra.conf.aliases import AliasSettings
from redis_infra.conf.schema import Settings, get_settings
from redis_infra.conf.sources import REST_PAIRS, provider_in, switch_in
from redis_infra.exceptions import SettingsError

__all__ = ["STORE_VARIABLES", "StoreSource", "find_store", "lonely_tokens", "store_candidates"]

STORE_VARIABLES: Final = (
    *("REDIS_ENABLED", "REDIS_PROVIDER", "REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB"),
    *("REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_TLS", "KV_URL"),
    *(name for pair in REST_PAIRS for name in pair),
)
"""The variables that decide."""
_REST_URLS: Final = tuple(names[0] for names in REST_PAIRS)
_PAIRS: Final = " or ".join(" and ".join(names) for names in REST_PAIRS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSource:
    """What keeps the key-value store, and why."""

    provider: str
    """``redis``, ``upstash``, ``memory``, ``file``, or the dotted path of a site's own."""
    rule: str
    """What decided: the name of a variable or setting."""
    reason: str
    """The same as words for people."""
    url: str = field(default="", repr=False)
    """Of a REST API; without the token."""
    token: str = field(default="", repr=False)
    path: str = ""
    """Of a file."""
    redis: AliasSettings | None = field(default=None, compare=False)
    """Of a server: where it is, and how long to wait for it."""


def find_store(
    provider: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    settings: Settings | None = None,
) -> StoreSource:
    """Return what keeps the key-value store; the first rule that has an answer wins.

    ``REDIS_ENABLED=false``, for memory; ``provider``, for who is told it in code; ``PROVIDER``, ``URL`` or
    ``ALIAS`` in ``REDIS_INFRA["KV"]``; ``REDIS_PROVIDER``; then :func:`store_candidates`; memory.

    Raises:
        SettingsError: what decides cannot be read, or names a provider without saying where that is.
    """
    settings = settings if settings is not None else get_settings()
    if not switch_in(environ, "REDIS_ENABLED", default=True):
        return _memory("REDIS_ENABLED", "REDIS_ENABLED=false in the environment")
    if provider is not None:
        readers.store_provider(provider, "get_store()")
        return _of_provider(provider, "code", f"get_store({provider!r})", environ, settings)
    if settings.kv.provider:
        reason = f"REDIS_INFRA['KV']['PROVIDER'] is {settings.kv.provider!r}"
        return _of_provider(settings.kv.provider, "PROVIDER", reason, environ, settings)
    if found := _of_settings(environ, settings):
        return found
    said = provider_in(environ)
    if said not in ("auto", "local"):
        reason = f"REDIS_PROVIDER={said} in the environment"
        return _of_provider(said, "REDIS_PROVIDER", reason, environ, settings)
    if said == "local":
        # A server of one's own, where one is named; else it is memory.
        looked = "REDIS_PROVIDER=local in the environment, and nothing names a server"
        return next(_servers(environ, settings), None) or _memory("REDIS_PROVIDER", looked)
    looked = "neither REDIS_URL, REDIS_HOST, a REST API, KV_URL nor REDIS_INFRA['URL'] names a store"
    return next(store_candidates(environ, settings), None) or _memory("nothing", looked)


def _servers(environ: Mapping[str, str], settings: Settings) -> Iterator[StoreSource]:
    """Yield the candidates that are servers, whatever a REST API lacks."""
    bare = {name: value for name, value in environ.items() if name not in _REST_URLS}
    return (each for each in store_candidates(bare, settings) if each.provider == "redis")


def store_candidates(environ: Mapping[str, str], settings: Settings) -> Iterator[StoreSource]:
    """Yield what the environment and the site's settings name, the winner first.

    ``REDIS_URL``, ``REDIS_HOST``; ``UPSTASH_REDIS_REST_URL``, ``KV_REST_API_URL`` with their tokens;
    ``KV_URL``; ``REDIS_INFRA["URL"]``; the LOCATION of the default alias where that is ours.

    Raises:
        SettingsError: one of them cannot be read, or lacks its token.
    """
    server = _server(environ, replace(settings, kv=replace(settings.kv, url=None, alias=None)))
    if server is not None and server.rule in ("REDIS_URL", "REDIS_HOST"):
        yield server
    for names in REST_PAIRS:
        if environ.get(names[0], "").strip():
            yield _rest(environ[names[0]], environ.get(names[1], ""), names[0], f"set {names[1]}")
    if text := environ.get("KV_URL", "").strip():
        yield _of_url(text, "KV_URL", "KV_URL in the environment", "", environ, settings)
    if server is not None and server.rule not in ("REDIS_URL", "REDIS_HOST"):
        yield server


def lonely_tokens(environ: Mapping[str, str], settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what holds a token of a REST API, and what does not name the API that it is for."""
    for url, token in REST_PAIRS:
        if environ.get(token, "").strip() and not environ.get(url, "").strip():
            yield token, url
    if settings.kv.token and not (settings.kv.url or "").lower().startswith(("https://", "http://")):
        yield "REDIS_INFRA['KV']['TOKEN']", "REDIS_INFRA['KV']['URL']"


def _memory(rule: str, reason: str) -> StoreSource:
    return StoreSource(provider="memory", rule=rule, reason=reason)


def _of_provider(
    provider: str, rule: str, reason: str, environ: Mapping[str, str], settings: Settings
) -> StoreSource:
    """Return where a provider that was asked for is: by whatever says it, the capability's own URL first."""
    if provider == "file":
        return StoreSource(provider="file", rule=rule, reason=reason, path=_path(environ, settings))
    if provider not in ("redis", "upstash"):
        return StoreSource(provider=provider, rule=rule, reason=reason)
    own = _of_settings(environ, settings)
    others = _servers(environ, settings) if provider == "redis" else store_candidates(environ, settings)
    for each in (own,) if own is not None else others:
        if each.provider == provider:
            return replace(each, rule=rule, reason=f"{reason}, and {each.reason}")
    needs = "a server; set REDIS_URL" if provider == "redis" else f"{_PAIRS}; set them"
    raise SettingsError(f"{reason}, which needs {needs}")


def _of_settings(environ: Mapping[str, str], settings: Settings) -> StoreSource | None:
    """Return what ``REDIS_INFRA["KV"]`` says of its own."""
    if settings.kv.url:
        where = "REDIS_INFRA['KV']['URL']"
        return _of_url(settings.kv.url, "URL", where, settings.kv.token or "", environ, settings)
    return _server(environ, settings) if settings.kv.alias else None


def _of_url(
    url: str, rule: str, reason: str, token: str, environ: Mapping[str, str], settings: Settings
) -> StoreSource:
    scheme = url.partition("://")[0].lower()
    if scheme in ("https", "http"):
        # Nobody else's token: it would be shown to the wrong one.
        remedy = f"set KV_REST_API_URL and KV_REST_API_TOKEN, or write {rule} as https://:token@host"
        if rule == "URL":
            remedy = "set REDIS_INFRA['KV']['TOKEN']"
        return replace(_rest(url, token, reason.partition(" in the")[0], remedy), rule=rule, reason=reason)
    found = AliasSettings.for_capability("KV", settings, url=readers.url(url, rule), environ=_auto(environ))
    return _of_alias(replace(found, source=replace(found.source, rule=rule, reason=reason)))


def _server(environ: Mapping[str, str], settings: Settings) -> StoreSource | None:
    """Return the server that a cache alias without a LOCATION would have; None if there is none."""
    found = AliasSettings.for_capability("KV", settings, environ=_auto(environ))
    return None if found.source.rule == "nothing" else _of_alias(found)


def _of_alias(found: AliasSettings) -> StoreSource:
    url, rule, reason = found.source.url, found.source.rule, found.source.reason
    scheme = url.partition("://")[0].lower()
    if scheme == "https":
        return replace(_rest(url, "", rule, f"write {rule} as https://:token@host"), reason=reason)
    if scheme == "file":
        return StoreSource(provider="file", rule=rule, reason=reason, path=_path_in(url, rule))
    if scheme == "memory":
        return _memory(rule, reason)
    return StoreSource(provider="redis", rule=rule, reason=reason, redis=found, url=url)


def _auto(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment without a word on providers, which has been heard."""
    return {name: value for name, value in environ.items() if name != "REDIS_PROVIDER"}


def _path_in(url: str, name: str) -> str:
    """Return the path of a ``file://`` URL: that of a file, from the root."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.strip("/") or path.endswith("/"):
        raise SettingsError(f"{name}: {url!r} has no absolute path to a file; write file:///srv/kv.sqlite3")
    if parts.query or parts.fragment:
        raise SettingsError(
            f"{name}: {url!r} has more than a path; nothing behind it has an effect, remove it"
        )
    return path


def _rest(url: str, token: str, name: str, remedy: str) -> StoreSource:
    parts = urlsplit(readers.rest_url(url, name))
    # What stands in the URL is for this API; a token beside it may have been meant for another one.
    token = unquote(parts.password or parts.username or "") or readers.optional_token(token, name) or ""
    if not token:
        raise SettingsError(f"{name} names a REST API, and its token is missing; {remedy}")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    reason = f"{name} in the environment"
    return StoreSource(provider="upstash", rule=name, reason=reason, url=bare, token=token)


def _path(environ: Mapping[str, str], settings: Settings) -> str:
    for name, url in (("REDIS_INFRA['KV']['URL']", settings.kv.url), ("KV_URL", environ.get("KV_URL", ""))):
        if url and url.strip().lower().startswith("file://"):
            return _path_in(url.strip(), name)
    if settings.kv.file:
        return settings.kv.file
    base = getattr(django_settings, "BASE_DIR", None)
    if base:
        return str(Path(base) / "kv.sqlite3")
    raise SettingsError(
        "the provider 'file' needs a path; write REDIS_INFRA = {'KV': {'FILE': '/var/lib/site/kv.sqlite3'}}"
    )
