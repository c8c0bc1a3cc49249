"""Settings: what ``REDIS_INFRA``, ``CACHES`` and the environment say, read once, typed and checked.

A name that is no setting is an error, never ignored, and a value is checked in one place, for
``manage.py check`` as for run time. Importing reads nothing: Django's settings and the environment are
looked at when somebody asks.

Does not know what a URL means beyond its scheme (``connection.options`` does), and opens nothing.
"""

from __future__ import annotations

from redis_infra.conf.aliases import AliasSettings
from redis_infra.conf.readers import SCHEMES, Peer, did_you_mean, redact_url
from redis_infra.conf.schema import (
    BreakerPolicy,
    FallbackLimits,
    JournalLimits,
    KVSettings,
    Report,
    RetryPolicy,
    Settings,
    StatsSettings,
    ThrottleSettings,
    get_settings,
    ipv6_prefix,
    read_setting,
    written_settings,
)
from redis_infra.conf.site import num_proxies, number_of_proxies, site_key, username_field
from redis_infra.conf.sources import Source, environment_sources, find_source, is_ours, servers_in
from redis_infra.conf.stores import STORE_VARIABLES, StoreSource, find_store, lonely_tokens, store_candidates

__all__ = [
    "SCHEMES",
    "STORE_VARIABLES",
    "AliasSettings",
    "BreakerPolicy",
    "FallbackLimits",
    "JournalLimits",
    "KVSettings",
    "Peer",
    "Report",
    "RetryPolicy",
    "Settings",
    "Source",
    "StatsSettings",
    "StoreSource",
    "ThrottleSettings",
    "did_you_mean",
    "environment_sources",
    "find_source",
    "find_store",
    "get_settings",
    "ipv6_prefix",
    "is_ours",
    "lonely_tokens",
    "num_proxies",
    "number_of_proxies",
    "read_setting",
    "redact_url",
    "servers_in",
    "site_key",
    "store_candidates",
    "username_field",
    "written_settings",
]
