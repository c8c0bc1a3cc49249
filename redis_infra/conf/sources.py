"""Where Redis is: the rules, in their order, and the words that say which one won.

Reads the environment, ``REDIS_INFRA["URL"]`` and the ``LOCATION`` of aliases. Looks at a URL's scheme and
no further; opens and resolves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final
from urllib.parse import quote

from django.conf import settings as django_settings
from django.utils.module_loading import import_string

from redis_infra.conf import readers
from redis_infra.conf.schema import Settings, get_settings
from redis_infra.exceptions import SettingsError

__all__ = [
    "REST_PAIRS",
    "Source",
    "environment_sources",
    "find_source",
    "is_ours",
    "provider_in",
    "servers_in",
    "switch_in",
]

_PROVIDERS: Final = ("redis", "upstash", "memory", "file", "local", "auto")
REST_PAIRS: Final = (
    ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"),
    ("KV_REST_API_URL", "KV_REST_API_TOKEN"),
)
"""Variables that say where a REST API is, and its token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where Redis is, and why there."""

    url: str = field(repr=False)
    rule: str
    """What decided: ``REDIS_ENABLED``, ``LOCATION``, ``REDIS_PROVIDER``, ``REDIS_URL``, ``REDIS_HOST``,
    ``REDIS_INFRA``, ``default alias`` or ``nothing``; for what is no cache, ``URL`` and ``ALIAS`` in place of
    ``LOCATION``."""
    reason: str
    """The same as words for people."""


def find_source(
    location: object, *, environ: Mapping[str, str] = os.environ, settings: Settings | None = None
) -> Source:
    """Return where Redis is for a cache alias with this LOCATION; the first rule that has an answer wins.

    ``REDIS_ENABLED=false``, for memory; the LOCATION; ``REDIS_PROVIDER=memory``; ``REDIS_URL``,
    ``REDIS_HOST``; ``REDIS_INFRA["URL"]``; the LOCATION of the default alias where that is ours; memory.

    Raises:
        SettingsError: what decides cannot be read; the text names the variable or setting.
    """
    if not switch_in(environ, "REDIS_ENABLED", default=True):
        return Source(url="memory://", rule="REDIS_ENABLED", reason="REDIS_ENABLED=false in the environment")
    servers = servers_in(location)
    if servers:
        more = f" (the first of its {len(servers)} servers)" if len(servers) > 1 else ""
        return Source(url=servers[0], rule="LOCATION", reason=f"the alias' own LOCATION{more}")
    settings = settings if settings is not None else get_settings()
    named = _of_provider(environ) or _of_environment(environ, settings) or _of_site(settings)
    return named or _nowhere(environ)


def servers_in(location: object, name: str = "LOCATION") -> tuple[str, ...]:
    """Return the URLs of a LOCATION: one, a list, or several separated by commas, as django-redis takes it.

    Raises:
        SettingsError: one of them is not a URL of a known scheme.
    """
    # Only commas before another URL: the hosts of a Sentinel or Cluster URL are separated by commas as well.
    texts = re.split(r",(?=\s*[\w+]+://)", location) if isinstance(location, str) else location or ()
    if not isinstance(texts, Iterable):
        texts = (texts,)
    return tuple(readers.url(text, name) for text in texts if not isinstance(text, str) or text.strip())


def environment_sources(environ: Mapping[str, str] = os.environ) -> Iterator[Source]:
    """Yield what ``REDIS_URL`` and what ``REDIS_HOST`` with its companions say, the winner first.

    Raises:
        SettingsError: a variable cannot be read.
    """
    for url in servers_in(environ.get("REDIS_URL", ""), "REDIS_URL")[:1]:
        yield Source(url=url, rule="REDIS_URL", reason="REDIS_URL in the environment")
    if environ.get("REDIS_HOST", "").strip():
        yield _of_host(environ)


def is_ours(backend: object) -> bool:
    """Whether a ``BACKEND`` of ``CACHES`` is our cache or a subclass of it; imports it to see."""
    return isinstance(backend, str) and _is_ours(backend)


@cache
def _is_ours(backend: str) -> bool:
    if backend.startswith(("redis_infra.cache.", "django.core.cache.")):
        return backend.startswith("redis_infra.cache.")
    try:
        found = import_string(backend)
    except ImportError:
        return False  # Django says so, where the alias is used
    return any(base.__module__.startswith("redis_infra.cache") for base in getattr(found, "__mro__", ()))


def _of_provider(environ: Mapping[str, str]) -> Source | None:
    # "upstash" and "file" keep records (conf.stores); neither can be a cache, which goes on down the rules.
    if provider_in(environ) != "memory":
        return None
    return Source(url="memory://", rule="REDIS_PROVIDER", reason="REDIS_PROVIDER=memory in the environment")


def provider_in(environ: Mapping[str, str]) -> str:
    """Return what ``REDIS_PROVIDER`` says; ``auto`` where it says nothing.

    Raises:
        SettingsError: it is none of the providers.
    """
    provider = environ.get("REDIS_PROVIDER", "").strip().lower() or "auto"
    if provider not in _PROVIDERS:
        remedy = readers.did_you_mean(provider, _PROVIDERS)
        raise SettingsError(f"REDIS_PROVIDER: {readers.redact_url(provider)!r} is not a provider{remedy}")
    return provider


def _of_environment(environ: Mapping[str, str], settings: Settings) -> Source | None:
    for source in environment_sources(environ):
        overrides = ", which overrides REDIS_INFRA['URL']" if settings.url else ""
        return replace(source, reason=source.reason + overrides)
    return None


def _of_host(environ: Mapping[str, str]) -> Source:
    port, note = environ.get("REDIS_PORT", "").strip(), ""
    if port.startswith("tcp://"):  # Kubernetes injects that beside a Service named redis
        port, note = "", " (REDIS_PORT=tcp://... is not a port and was ignored)"
    scheme = "rediss" if switch_in(environ, "REDIS_TLS", default=False) else "redis"
    address = f"{_access(environ)}{_host(environ)}:{_number('REDIS_PORT', port, 6379)}"
    database = _number("REDIS_DB", environ.get("REDIS_DB", "").strip(), 0)
    url = f"{scheme}://{address}/{database}"
    return Source(url=url, rule="REDIS_HOST", reason=f"REDIS_HOST in the environment{note}")


def _host(environ: Mapping[str, str]) -> str:
    host = environ["REDIS_HOST"].strip()
    bare = host.strip("[]")
    if re.fullmatch(r"[\w.-]+", bare):
        return bare
    if re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", bare) and bare.count(":") > 1:
        return f"[{bare}]"
    shown = readers.redact_url(host)
    raise SettingsError(
        f"REDIS_HOST: {shown!r} is not a host; write a name or an address, the port in REDIS_PORT, "
        "a whole URL in REDIS_URL"
    )


def _access(environ: Mapping[str, str]) -> str:
    """Return the part of a URL before the host. Spaces may belong to a password, line ends do not."""
    said = (environ.get(f"REDIS_{name}", "").strip("\r\n") for name in ("USERNAME", "PASSWORD"))
    user, password = (quote(text, safe="") for text in said)
    return f"{user}:{password}@" if password else f"{user}@" if user else ""


def _number(name: str, text: str, default: int) -> int:
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        shown = readers.redact_url(text)
        raise SettingsError(f"{name}: {shown!r} is not a number; write one such as {default}")
    return int(text or default)


def switch_in(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return what a variable says that is yes or no.

    Raises:
        SettingsError: it is neither.
    """
    text = environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on", "t", "y"):
        return True
    if text in ("0", "false", "no", "off", "f", "n"):
        return False
    if text:
        raise SettingsError(f"{name}: {text!r} is neither yes nor no; write true or false")
    return default


def _of_site(settings: Settings) -> Source | None:
    if settings.url:
        return Source(url=settings.url, rule="REDIS_INFRA", reason="REDIS_INFRA['URL']")
    default = getattr(django_settings, "CACHES", {}).get("default", {})
    if not is_ours(default.get("BACKEND")):
        return None
    servers = servers_in(default.get("LOCATION", ""), "CACHES['default']['LOCATION']")
    reason = "the LOCATION of the default cache alias"
    return Source(url=servers[0], rule="default alias", reason=reason) if servers else None


def _nowhere(environ: Mapping[str, str]) -> Source:
    looked = "neither LOCATION nor REDIS_URL, REDIS_HOST or REDIS_INFRA['URL'] says where Redis is"
    provider = provider_in(environ)
    if provider == "redis":
        raise SettingsError(f"REDIS_PROVIDER: 'redis' needs a server, but {looked}; set REDIS_URL")
    if provider in ("upstash", "file"):
        looked = f"REDIS_PROVIDER={provider} keeps records and serves no cache, and {looked}"
    return Source(url="memory://", rule="nothing", reason=looked)
