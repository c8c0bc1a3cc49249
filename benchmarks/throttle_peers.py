"""Who limits rates for Django sites, each behind the same door: ``ask(identity)`` says whether one may pass.

Whoever is not installed is left out, and the tables say so. A door connects when it is opened, not before: a
process can find out who is there, fork, and open doors in its children.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.peers import BACKENDS, DJANGO_REDIS, OURS, configure
from benchmarks.server import address

if TYPE_CHECKING:
    from rest_framework.views import APIView

    from redis_infra.throttling import Rate

Ask = Callable[[str], bool]
AsyncAsk = Callable[[str], Awaitable[bool]]
Check = Callable[[Any], bool]
"""What a throttle says of a request."""
Period = tuple[int, int]
"""So many, in so many seconds."""

STOCK = "DRF on django-redis"
LIMITS = "limits, moving window"
GCRA = "throttled-py, GCRA"
RATELIMIT = "django-ratelimit"
SMART = "django-smart-ratelimit"

RATES = ("20/min", "200/hour", "1000/day")
"""What a visitor may do: the first where there is one limit, all of them where there are three."""
PERIODS: tuple[Period, ...] = ((20, 60), (200, 3600), (1000, 86_400))
"""The same for those who take no text."""
POLICIES = {PERIODS[:1]: "one", PERIODS: "three"}
"""Their names in our settings, in which sites have them."""


@dataclass(frozen=True, slots=True)
class Limiter:
    """One way to limit: ``door(url, limit, seconds)`` opens it; ``needs`` is a module of ``package``."""

    door: Callable[[str, int, int], Ask]
    needs: str = ""
    package: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


# The site


@contextmanager
def site(url: str, state_dir: str) -> Iterator[None]:
    """Set Django up so that every limiter finds what it needs on the server at ``url``.

    May be entered again for another server, and after another suite has set Django up for itself.
    """
    from django.conf import settings
    from django.test.utils import override_settings

    if not settings.configured:
        configure({OURS: BACKENDS[OURS].settings(url)}, state_dir=state_dir)
    host, port = address(url)
    with override_settings(
        CACHES={"default": BACKENDS[DJANGO_REDIS].settings(url)},
        REDIS_INFRA={
            "URL": url,
            "STATE_DIR": state_dir,
            "THROTTLE": {"POLICIES": {"one": RATES[0], "three": ";".join(RATES)}},
        },
        RATELIMIT_BACKEND="redis",
        RATELIMIT_REDIS={"host": host, "port": port, "db": 0},
    ):
        yield


# Doors


def ours(url: str, limit: int, seconds: int) -> Ask:
    return ours_for_all([(limit, seconds)])


def ours_for_all(periods: Sequence[Period]) -> Ask:
    """Return our door for limits that hold together, on the site's server."""
    from redis_infra.throttling.limiter import default_limiter

    hit, policy = default_limiter().hit, policy_of(periods)
    return lambda identity: hit(policy, identity).allowed


def policy_of(periods: Sequence[Period]) -> str | Rate:
    """Return what ours calls these limits: a policy of the settings, or a rate that is none."""
    return POLICIES.get(tuple(periods)) or rate_of(periods)


def rate_of(periods: Sequence[Period]) -> Rate:
    """Return limits that hold together as one rate."""
    from redis_infra.throttling import Rate

    first, *others = (Rate(limit, seconds) for limit, seconds in periods)
    return Rate(first.limit, first.window, also=tuple(others))


def stock_drf(url: str, limit: int, seconds: int) -> Ask:
    """Return stock's algorithm, for any window: it reads no more than the first letter of a unit."""
    from rest_framework.throttling import SimpleRateThrottle

    class Throttle(SimpleRateThrottle):
        scope = f"{limit}-{seconds}"
        rate = f"{limit}/day"

        def parse_rate(self, rate: str | None) -> Period:
            return limit, seconds

        def get_cache_key(self, request: Any, view: Any) -> str:
            return self.cache_format % {"scope": self.scope, "ident": request}

    nothing: Any = None  # it looks at neither
    return lambda identity: Throttle().allow_request(identity, nothing)  # type: ignore[arg-type]


def limits_door(strategy: str, url: str, limit: int, seconds: int) -> Ask:
    limits: Any = import_module("limits")
    rate = limits.RateLimitItemPerSecond(limit, seconds)
    storage = limits.storage.storage_from_string(url)
    hit = getattr(limits.strategies, strategy)(storage).hit
    return lambda identity: bool(hit(rate, identity))


def throttled_door(algorithm: str, url: str, limit: int, seconds: int) -> Ask:
    throttled: Any = import_module("throttled")
    quota = throttled.per_duration(timedelta(seconds=seconds), limit)
    ask = throttled.Throttled(using=algorithm, quota=quota, store=throttled.RedisStore(server=url)).limit
    return lambda identity: not ask(identity).limited


def ratelimit_door(url: str, limit: int, seconds: int) -> Ask:
    core: Any = import_module("django_ratelimit.core")
    # Of a request it wants nothing but the key.
    key, rate = (lambda group, request: request), f"{limit}/{seconds}s"
    ask = partial(core.is_ratelimited, group="bench", rate=rate, key=key, increment=True)
    return lambda identity: not ask(identity)


def smart_door(url: str, limit: int, seconds: int) -> Ask:
    base = smart_throttle("SmartRateLimitThrottle")

    class Throttle(base):  # type: ignore[misc, valid-type]  # of an optional package
        rate = f"{limit}/s"

        def _parse_rate(self, rate: str | None) -> Period:
            return limit, seconds

        def get_cache_key(self, request: Any, view: Any) -> str:
            return f"{limit}-{seconds}-{request}"  # without it, two limits share one counter

    return lambda identity: bool(Throttle().allow_request(identity, None))


def smart_throttle(name: str) -> Any:
    """Return a class of django-smart-ratelimit that asks the server that settings name now."""
    import_module("django_smart_ratelimit.backends").clear_backend_cache()
    return getattr(import_module("django_smart_ratelimit.integrations.drf"), name)


def of_limits(strategy: str) -> Limiter:
    return Limiter(partial(limits_door, strategy), "limits", "limits")


def of_throttled(algorithm: str) -> Limiter:
    return Limiter(partial(throttled_door, algorithm), "throttled", "throttled-py")


PEERS = (OURS, STOCK, LIMITS, GCRA, RATELIMIT, SMART)
"""One of each package: the best that it has."""
LIMITERS = {
    OURS: Limiter(ours),
    STOCK: Limiter(stock_drf),
    LIMITS: of_limits("MovingWindowRateLimiter"),
    "limits, fixed window": of_limits("FixedWindowRateLimiter"),
    "limits, sliding counter": of_limits("SlidingWindowCounterRateLimiter"),
    GCRA: of_throttled("gcra"),
    "throttled-py, sliding window": of_throttled("sliding_window"),
    "throttled-py, token bucket": of_throttled("token_bucket"),
    RATELIMIT: Limiter(ratelimit_door, "django_ratelimit", "django-ratelimit"),
    SMART: Limiter(smart_door, "django_smart_ratelimit", "django-smart-ratelimit"),
}


def installed() -> dict[str, Limiter]:
    """Return who can be asked on this machine."""
    return {name: limiter for name, limiter in LIMITERS.items() if limiter.is_installed}


def absence_notes() -> list[str]:
    """Return a footnote about who could not be asked, if anybody could not."""
    packages = sorted({limiter.package for limiter in LIMITERS.values() if not limiter.is_installed})
    return [f"Not installed here, so not measured: {', '.join(packages)}."] if packages else []


def door_of(name: str, url: str, periods: Sequence[Period]) -> Ask:
    """Return a limiter's door for limits that hold together: ours asks once, the others once for each."""
    if name == OURS:
        return ours_for_all(periods)
    asks = [LIMITERS[name].door(url, limit, seconds) for limit, seconds in periods]
    if len(asks) == 1:
        return asks[0]
    # Numbered: the keys of some do not say whose limit they are for.
    return lambda identity: all(ask(f"{at}:{identity}") for at, ask in enumerate(asks))


# Throttles of Django REST framework, and a decorator


def ours_through_drf(view: APIView) -> dict[str, Check]:
    """Return the check of one limit and of three; a throttle of its own for each request, as DRF has it."""
    from redis_infra.throttling.drf import ChatRateThrottle, PolicyThrottle

    three = PolicyThrottle.of("three")
    return {
        "drf": lambda request: ChatRateThrottle().allow_request(request, view),
        "drf_3": lambda request: three().allow_request(request, view),
    }


def stock_through_drf(view: APIView) -> dict[str, Check]:
    from rest_framework.throttling import UserRateThrottle

    return through_drf(UserRateThrottle, view)


def smart_through_drf(view: APIView) -> dict[str, Check]:
    base = smart_throttle("UserRateLimitThrottle")

    class Throttle(base):  # type: ignore[misc, valid-type]  # of an optional package
        def get_cache_key(self, request: Any, view: Any) -> str:
            return f"{self.scope}:{super().get_cache_key(request, view)}"

    return through_drf(Throttle, view)


def through_drf(base: type[Any], view: APIView) -> dict[str, Check]:
    """Return the checks of who has a class for each limit."""
    first, *others = (
        type(f"Throttle{at}", (base,), {"scope": f"{base.__module__}-{at}", "rate": rate})
        for at, rate in enumerate(RATES)
    )
    return {
        "drf": lambda request: first().allow_request(request, view),
        "drf_3": lambda request: all(each().allow_request(request, view) for each in (first, *others)),
    }


def ratelimit_of_requests(view: APIView) -> dict[str, Check]:
    """Return what the decorator of django-ratelimit asks, once and three times."""
    core: Any = import_module("django_ratelimit.core")
    first, *others = (
        partial(core.is_ratelimited, group=rate, rate=rate, key="user_or_ip", increment=True)
        for rate in RATES
    )
    return {
        "drf": lambda request: not first(request),
        "drf_3": lambda request: not any(each(request) for each in (first, *others)),
    }


THROUGH_DRF: dict[str, Callable[[APIView], dict[str, Check]]] = {
    OURS: ours_through_drf,
    STOCK: stock_through_drf,
    RATELIMIT: ratelimit_of_requests,
    SMART: smart_through_drf,
}


# Awaited doors


async def ours_awaited(url: str, periods: Sequence[Period]) -> AsyncAsk:
    from redis_infra.throttling.limiter import default_limiter

    ahit, policy = default_limiter().ahit, policy_of(periods)

    async def ask(identity: str) -> bool:
        return (await ahit(policy, identity)).allowed

    return ask


async def limits_awaited(url: str, periods: Sequence[Period]) -> AsyncAsk:
    limits: Any = import_module("limits")
    storage = limits.storage.storage_from_string(f"async+{url}", implementation="redispy")
    hit = import_module("limits.aio.strategies").MovingWindowRateLimiter(storage).hit
    rates = [limits.RateLimitItemPerSecond(limit, seconds) for limit, seconds in periods]

    async def ask(identity: str) -> bool:
        return all([await hit(rate, identity) for rate in rates])

    return ask


async def throttled_awaited(url: str, periods: Sequence[Period]) -> AsyncAsk:
    throttled: Any = import_module("throttled.asyncio")
    store = throttled.RedisStore(server=url)
    quotas = [throttled.per_duration(timedelta(seconds=seconds), limit) for limit, seconds in periods]
    asks = [throttled.Throttled(using="gcra", quota=quota, store=store).limit for quota in quotas]

    async def ask(identity: str) -> bool:
        return not any([(await each(f"{at}:{identity}")).limited for at, each in enumerate(asks)])

    return ask


AWAITED = {OURS: ours_awaited, LIMITS: limits_awaited, GCRA: throttled_awaited}
