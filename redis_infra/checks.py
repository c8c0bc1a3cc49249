"""System checks: what ``manage.py check`` says of ``REDIS_INFRA`` and of the aliases that are ours.

They read settings and the environment by the same code as run time does, collect what it would raise, and
add what is allowed and yet a bad idea. They open no connection and resolve no name. ``AppConfig.ready``
registers them, importing this module does not.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string

from redis_infra.conf import (
    AliasSettings,
    Settings,
    StoreSource,
    did_you_mean,
    environment_sources,
    find_store,
    is_ours,
    lonely_tokens,
    num_proxies,
    number_of_proxies,
    servers_in,
    store_candidates,
    written_settings,
)
from redis_infra.conf.django_redis import without_effect
from redis_infra.conf.site import rest_framework_settings
from redis_infra.connection.options import ConnectionOptions, inert_parameters, unsupported
from redis_infra.durations import format_duration
from redis_infra.exceptions import MissingExtra, SettingsError

if TYPE_CHECKING:
    from redis_infra.throttling.policies import Policy

__all__ = ["CHECKS", "TAG", "check_deployment", "check_settings"]

TAG: Final = "redis_infra"

CHECKS: Final[Mapping[str, str]] = {
    "E001": "Correct the name; docs/reference/settings.md has all of them.",
    "E002": "Correct the value; docs/reference/settings.md says what each setting takes.",
    "E003": "Correct the URL or the variable: redis://user:password@host:6379/0 is the full form.",
    "E004": "Use a single server, or memory:// until this is supported.",
    "E005": "Install the extra, or choose a setting that does not need it.",
    "W001": "Set LOCATION or REDIS_URL; for memory on purpose, say LOCATION: 'memory://'.",
    "W002": "Unset the one that is not meant.",
    "W003": "Lower COMMAND_TIMEOUT, CONNECT_TIMEOUT or POOL_WAIT; all three take '250ms'.",
    "W004": "Remove it; nothing changes without it.",
    "W005": "Name the primary alone.",
    "W006": "Use the session engine 'cached_db' (ON_OUTAGE 'miss' suits it), or ON_OUTAGE 'raise' here.",
    "W007": "Move it into OPTIONS, or correct the name.",
    "W008": "Use rediss:// (REDIS_TLS=true), or a tunnel.",
    "W009": "Set SIGNED to True (or 'migrate' and then True), or give Redis a password.",
    "W010": "Remove ssl_cert_reqs, and name the authority with ssl_ca_certs.",
    "W011": "Name the proxies in THROTTLE['TRUSTED_PROXIES']; without any, write TRUSTED_PROXIES: [].",
    "W012": "Use the class of the same name from redis_infra.throttling.drf.",
    "W013": "Write a rate such as '20/min', '5/15min' or '100/day'; a month is '30 days'.",
    "W014": "Lower TIMEOUT of THROTTLE; it takes '100ms'.",
    "W015": "Unset the ones that are not meant, or say which: REDIS_INFRA = {'KV': {'PROVIDER': 'redis'}}.",
    "W016": "Name the API beside it, as https://..., or remove the token.",
}
"""The hint of each check by its number; what it says itself is made where it is found."""

_KINDS: Final = {"name": "E001", "value": "E002", "url": "E003"}
_LONGEST_WAIT: Final = 2.0
_LONGEST_DECISION: Final = 1.0
_ALIAS_NAMES: Final = ("BACKEND", "LOCATION", "TIMEOUT", "OPTIONS", "KEY_PREFIX", "VERSION", "KEY_FUNCTION")
_OTHER_NAMES: Final = ("REVERSE_KEY_FUNCTION", "MAX_ENTRIES", "CULL_FREQUENCY", "TEST", "NAME")
_SITE_NAMES: Final = {
    "DJANGO_REDIS_LOG_IGNORED_EXCEPTIONS": "an outage is two log lines: when it begins, and when it ends",
    "DJANGO_REDIS_LOGGER": "the loggers are named redis_infra, and after its modules",
    "DJANGO_REDIS_CONNECTION_FACTORY": "connections come from our own pool",
}


def check_settings(app_configs: object = None, **_: Any) -> list[checks.CheckMessage]:
    """Return what is wrong or unwise in ``REDIS_INFRA``, the environment, and the aliases that are ours."""
    found = _Found()
    site = Settings.load(written_settings(), report=found.report)
    aliases = list(_aliases(site, found))
    _check_environment(found)
    _check_django_redis_settings(found, aliases)
    for alias in aliases:
        _check_alias(alias, found)
    _check_throttle(site, found)
    _check_stats(site, found)
    _check_kv(site, found)
    _check_rest_framework_rates(found)
    _check_rest_framework_classes(found)
    _check_number_of_proxies(found)
    return found.messages


def check_deployment(app_configs: object = None, **_: Any) -> list[checks.CheckMessage]:
    """Return what is unsafe once the site is public; for ``check --deploy``."""
    found, ignored = _Found(), _Found()
    site = Settings.load(written_settings(), report=ignored.report)
    for alias in _aliases(site, ignored):
        if alias.options is not None:
            _check_safety(alias, alias.options, found)
    found.where = None
    _check_proxies(site, found)
    _check_stock_throttles(found)
    return found.messages


@dataclass(slots=True)
class _Found:
    """Collects messages, each once: what the environment says wrongly, every alias runs into."""

    messages: list[checks.CheckMessage] = field(default_factory=list)
    where: str | None = None

    def add(self, number: str, text: str, *, where: str | None = None) -> None:
        name = f"{TAG}.{number}"
        kind = checks.Error if number.startswith("E") else checks.Warning
        hint = f"{CHECKS[number]} (docs: reference/checks.md#{name.lower().replace('.', '-')})"
        message = kind(text, hint=hint, obj=where or self.where, id=name)
        if not any(each.id == message.id and each.msg == text for each in self.messages):
            self.messages.append(message)

    def report(self, kind: str, error: SettingsError) -> None:
        """Take what run time would raise (:data:`redis_infra.conf.Report`)."""
        self.add(_KINDS[kind], str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alias:
    name: str
    said: Mapping[str, Any]
    settings: AliasSettings
    options: ConnectionOptions | None
    """None where the URL is wrong or not supported, which has been reported."""

    @property
    def where(self) -> str:
        return f"CACHES[{self.name!r}]"


def _aliases(settings: Settings, found: _Found) -> Iterator[_Alias]:
    """Yield the aliases that are ours, and report what does not let them work."""
    for name, said in django_settings.CACHES.items():
        if is_ours(said.get("BACKEND")):
            found.where = f"CACHES[{name!r}]"
            yield _alias(name, said, settings, found)
            found.where = None


def _alias(name: str, said: Mapping[str, Any], site: Settings, found: _Found) -> _Alias:
    settings = AliasSettings.load(
        said.get("LOCATION", ""),
        said,
        settings=site,
        where=f"CACHES[{name!r}]['OPTIONS']",
        report=found.report,
    )
    return _Alias(name=name, said=said, settings=settings, options=_options(settings, found))


def _options(settings: AliasSettings, found: _Found) -> ConnectionOptions | None:
    if settings.source.rule == "error":
        return None
    if reason := unsupported(settings):
        found.add("E004", reason)
        return None
    try:
        return ConnectionOptions.from_settings(settings)
    except SettingsError as error:
        found.add("E003", str(error))
        return None


# --- what every check run looks at ----------------------------------------------------------------------


def _check_environment(found: _Found) -> None:
    try:
        options = [ConnectionOptions.from_url(source.url) for source in environment_sources()]
    except SettingsError:
        return  # an alias that uses it has reported it, and nobody else is harmed
    if len(options) == 2 and options[0].database != options[1].database:
        url, host = (each.label for each in options)
        found.add("W002", f"REDIS_URL ({url}) and REDIS_HOST ({host}) are set and differ; REDIS_URL wins")


def _check_django_redis_settings(found: _Found, aliases: list[_Alias]) -> None:
    for name, advice in _SITE_NAMES.items():
        if aliases and getattr(django_settings, name, None):
            found.add("W004", f"The setting {name} has no effect: {advice}")


def _check_alias(alias: _Alias, found: _Found) -> None:
    found.where = alias.where
    _check_names(alias, found)
    _check_extras(alias.settings, found)
    _check_sessions(alias, found)
    if alias.options is not None:
        _check_inert(alias, found)
        _check_memory(alias.settings, alias.options, found)
        _check_wait(alias.settings, alias.options, found)
        _check_files(alias.options, found)


def _check_names(alias: _Alias, found: _Found) -> None:
    for name in alias.said:
        if str(name).upper() not in (*_ALIAS_NAMES, *_OTHER_NAMES):
            near = did_you_mean(name, _ALIAS_NAMES)
            found.add("W007", f"{alias.where}[{name!r}] is no parameter of a cache and has no effect{near}")


def _check_extras(settings: AliasSettings, found: _Found) -> None:
    # Here, because they import the cache and what it takes to run a server.
    from redis_infra.cache.formats import Formats
    from redis_infra.connection.embedded import find_server_binary

    try:
        Formats.load(settings.serializer, settings.compressor, dict(settings.options))
        if settings.source.url.startswith("embedded:"):
            find_server_binary()
    except MissingExtra as error:
        found.add("E005", str(error))
    except SettingsError as error:
        found.add("E002", str(error))


def _check_inert(alias: _Alias, found: _Found) -> None:
    options = alias.said.get("OPTIONS")
    for name, advice in without_effect(options if isinstance(options, Mapping) else {}):
        found.add("W004", f"{alias.where}['OPTIONS'] {name} has no effect: {advice}")
    for name, advice in inert_parameters(alias.settings.source.url):
        found.add("W004", f"{name} in the URL has no effect: {advice}")
    if alias.settings.source.rule == "LOCATION":
        more = len(servers_in(alias.said.get("LOCATION"))) - 1
        if more > 0:
            found.add("W005", f"Only the first server of LOCATION is used; the number of others is {more}")


def _check_sessions(alias: _Alias, found: _Found) -> None:
    engine = getattr(django_settings, "SESSION_ENGINE", "")
    chosen = getattr(django_settings, "SESSION_CACHE_ALIAS", "default")
    kind = alias.settings.on_outage
    if engine == "django.contrib.sessions.backends.cache" and chosen == alias.name and kind != "raise":
        found.add("W006", f"Sessions live in this cache alone; with ON_OUTAGE {kind!r} an outage ends logins")


def _check_memory(settings: AliasSettings, options: ConnectionOptions, found: _Found) -> None:
    if options.scheme == "memory" and settings.source.rule != "LOCATION" and not django_settings.DEBUG:
        found.add("W001", f"The cache works in memory, each process for itself: {settings.source.reason}")


def _check_wait(settings: AliasSettings, options: ConnectionOptions, found: _Found) -> None:
    slower = max(options.command_timeout, options.connect_timeout)
    wait = settings.breaker.timeouts * slower + options.pool_wait
    if options.scheme != "memory" and wait > _LONGEST_WAIT:
        found.add(
            "W003",
            f"A request may wait {format_duration(wait)} when Redis stops answering: "
            f"{settings.breaker.timeouts} timeouts of {format_duration(slower)} and "
            f"{format_duration(options.pool_wait)} for a connection",
        )


def _check_files(options: ConnectionOptions, found: _Found) -> None:
    for name, path in options.tls:
        if name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") and not os.access(path, os.R_OK):
            found.add("E002", f"{name}: the file {path!r} cannot be read by this user")


# --- throttling -----------------------------------------------------------------------------------------

_THROTTLE: Final = "REDIS_INFRA['THROTTLE']"
_MIDDLEWARE: Final = "redis_infra.throttling.middleware.ThrottleMiddleware"
_ADDRESS_KEYS: Final = frozenset(("ip", "user", "user_or_ip"))


def _check_stats(site: Settings, found: _Found) -> None:
    """Whether the Redis that ``STATS`` names can be one."""
    if site.stats.url or site.stats.alias:
        _options(AliasSettings.for_capability("STATS", site, report=found.report), found)


def _check_kv(site: Settings, found: _Found) -> None:
    """Whether there is a key-value store where the site says, and one only."""
    from redis_infra.kv.factory import check_store_source

    found.where = "REDIS_INFRA['KV']"
    for token, url in lonely_tokens(os.environ, site):
        found.add("W016", f"{token} is set, and {url} names no REST API: nothing uses the token")
    try:
        source = find_store(settings=site)
        check_store_source(source, site)
    except MissingExtra as error:
        found.add("E005", str(error))
    except SettingsError as error:
        if str(error) not in [each.msg for each in found.messages]:  # of the default alias, say
            found.report("url", error)
    else:
        _check_other_stores(site, source, found)
    found.where = None


def _check_other_stores(site: Settings, source: StoreSource, found: _Found) -> None:
    """Report that the environment names two providers, where nobody said which one is meant."""
    if source.rule in ("PROVIDER", "URL", "ALIAS", "REDIS_PROVIDER", "REDIS_ENABLED"):
        return
    try:
        # Where caches are is no word about records.
        named = [each for each in store_candidates(os.environ, site) if each.rule != "default alias"]
        others = [each for each in named if each.provider != source.provider]
    except SettingsError as error:
        found.report("url", error)
        return
    if others:
        names = ", ".join(f"{each.rule} ({each.provider})" for each in others)
        text = f"{source.rule} ({source.provider}) and {names} each name a key-value store"
        found.add("W015", f"{text}; {source.rule} wins")


def _check_throttle(site: Settings, found: _Found) -> None:
    """Report what the limiter and the middleware would refuse."""
    # Here and below, because they import the limiter.
    from redis_infra.throttling.policies import load_policies
    from redis_infra.throttling.responses import load_responder
    from redis_infra.throttling.routes import check_views, parse_routes

    found.where = _THROTTLE
    policies = load_policies(site.throttle, found.report)
    _check_keys(policies.values(), found)
    check_views(parse_routes(site.throttle, policies, found.report), found.report)
    try:
        load_responder(site.throttle.response, f"{_THROTTLE}['RESPONSE']")
    except SettingsError as error:
        found.report("value", error)
    if site.throttle.timeout > _LONGEST_DECISION:
        wait = format_duration(site.throttle.timeout)
        found.add("W014", f"A request may wait {wait} for Redis to decide whether it is let through")
    if site.throttle.url or site.throttle.alias:
        _options(AliasSettings.for_throttle(site, report=found.report), found)
    found.where = None


def _check_keys(policies: Iterable[Policy], found: _Found) -> None:
    for policy in policies:
        for key in policy.keys:
            try:
                key.load()
            except SettingsError as error:
                found.report("value", SettingsError(f"{_THROTTLE}, policy {policy.name!r}: {error}"))


def _check_rest_framework_rates(found: _Found) -> None:
    from redis_infra.throttling.rates import Rate

    rates = rest_framework_settings().get("DEFAULT_THROTTLE_RATES")
    ours = any(name.startswith("redis_infra.") for name in _throttle_classes())
    for scope, rate in rates.items() if isinstance(rates, Mapping) else ():
        try:
            Rate.parse(rate)
        except SettingsError as error:
            label = f"REST_FRAMEWORK['DEFAULT_THROTTLE_RATES'][{scope!r}]"
            found.add("W013" if _stock_reads(rate) and not ours else "E002", f"{label}: {error}")


def _stock_reads(rate: object) -> bool:
    """Whether Django REST framework makes something of a rate, if not what it says."""
    number, _, period = rate.partition("/") if isinstance(rate, str) else ("", "", "")
    return number.strip().isdecimal() and period[:1] in ("s", "m", "h", "d")


def _check_rest_framework_classes(found: _Found) -> None:
    """Report rates that the throttles of every view have in their classes, where the grammar is ours."""
    from redis_infra.throttling.rates import Rate

    for cls in _throttle_classes_of_ours():
        try:
            Rate.parse(getattr(cls, "rate", None))
        except SettingsError as error:
            found.add("E002", f"{cls.__module__}.{cls.__qualname__}.rate: {error}")


def _throttle_classes_of_ours() -> Iterator[type]:
    for name in _throttle_classes():
        try:
            cls = import_string(name)
        except ImportError:
            continue  # Django REST framework says it
        reader = getattr(cls, "parse_rate", None)
        if isinstance(cls, type) and getattr(reader, "__module__", "") == "redis_infra.throttling.drf":
            yield cls


def _check_number_of_proxies(found: _Found) -> None:
    value = rest_framework_settings().get("NUM_PROXIES")
    if value is not None and number_of_proxies(value) is None:
        found.add(
            "E002",
            f"REST_FRAMEWORK['NUM_PROXIES']: {value!r} is not a number of proxies; write a whole number such "
            "as 1, or None",
        )


def _throttle_classes() -> Iterator[str]:
    """Yield the dotted paths of the throttles that every view of Django REST framework has."""
    classes = rest_framework_settings().get("DEFAULT_THROTTLE_CLASSES")
    for each in classes if isinstance(classes, list | tuple) else ():
        yield f"{each.__module__}.{each.__qualname__}" if isinstance(each, type) else str(each)


def _check_proxies(site: Settings, found: _Found) -> None:
    from redis_infra.throttling.policies import load_policies

    if not _throttles() or django_settings.DEBUG or _says_who_is_a_proxy():
        return
    policies = load_policies(site.throttle, _Found().report).values()
    by_address = [
        policy.name
        for policy in policies
        if any(_ADDRESS_KEYS.intersection(key.name.split("+")) for key in policy.keys)
    ]
    if by_address:
        found.add(
            "W011",
            "Behind a proxy all clients would have one address, and share the limits of "
            f"{', '.join(by_address)}: neither TRUSTED_PROXIES nor NUM_PROXIES says whether there is one",
            where=_THROTTLE,
        )


def _throttles() -> bool:
    """Whether the site's settings show that it limits anything."""
    return (
        bool(_written_throttle())
        or _MIDDLEWARE in getattr(django_settings, "MIDDLEWARE", ())
        or any(name.startswith("redis_infra.") for name in _throttle_classes())
    )


def _says_who_is_a_proxy() -> bool:
    return "TRUSTED_PROXIES" in _written_throttle() or num_proxies() is not None


def _written_throttle() -> Mapping[str, Any]:
    written = written_settings()
    throttle = written.get("THROTTLE") if isinstance(written, Mapping) else None
    return throttle if isinstance(throttle, Mapping) else {}


def _check_stock_throttles(found: _Found) -> None:
    stock = [name for name in _throttle_classes() if name.startswith("rest_framework.throttling.")]
    if stock:
        found.add(
            "W012",
            f"{', '.join(stock)} read a count and then write it: requests that come together are counted "
            "as one, and all of them are let through",
            where="REST_FRAMEWORK['DEFAULT_THROTTLE_CLASSES']",
        )


# --- what is looked at before a site goes public --------------------------------------------------------


def _check_safety(alias: _Alias, options: ConnectionOptions, found: _Found) -> None:
    found.where = alias.where
    nearness = _nearness(options)
    if options.password and options.scheme == "redis" and nearness == "public":
        found.add("W008", f"The password for {options.label} crosses a public network unencrypted")
    if _unpickles(alias.settings) and not options.password and nearness != "local":
        found.add("W009", f"{options.label} asks for no password, and who writes there runs code in the site")
    if ("ssl_cert_reqs", "none") in options.tls:
        found.add("W010", f"The certificate of {options.label} is not verified: anybody can pose as it")


def _unpickles(settings: AliasSettings) -> bool:
    return settings.signed is not True and "pickle" in settings.serializer.lower()


def _nearness(options: ConnectionOptions) -> str:
    """Return ``local`` (this machine), ``private`` or ``public``, by the address alone: no look-up."""
    if options.scheme not in ("redis", "rediss") or options.host == "localhost":
        return "local"
    try:
        address = ipaddress.ip_address(options.host.partition("%")[0])
    except ValueError:
        return _nearness_of_name(options.host)
    if address.is_loopback:
        return "local"
    return "public" if address.is_global else "private"


def _nearness_of_name(host: str) -> str:
    # A name without a dot is of a container network; the endings are those that no public registry has.
    private = (".localhost", ".local", ".internal", ".svc", ".lan", ".intranet", ".home.arpa", ".test")
    return "private" if "." not in host or host.endswith(private) else "public"
