"""The four limits as the Limits page shows them: what they are for, how the visitor stands, who decides.

Asks by ``peek``, which charges nothing and waits for nobody: while Redis is away the host answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TypedDict

from django.http import HttpRequest
from django.urls import reverse

from example_project.relay import demo
from redis_infra.observability.identities import Client
from redis_infra.observability.limits import forget as forget_logs
from redis_infra.throttling import Decision, Policy
from redis_infra.throttling.addresses import client_ip
from redis_infra.throttling.host import ERA
from redis_infra.throttling.limiter import default_limiter

STRANGER = "mallory"
"""Who the page tries to sign in as: nobody of that name has an account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Something that is limited, and how the page asks for it."""

    name: str
    """Of the policy."""
    title: str
    method: str
    url_name: str
    arguments: list[str] = field(default_factory=list)
    query: str = ""
    guard: str
    """What in the code limits it."""
    group: str = ""
    """``drf``: the logs of DRF's drop-in classes, which are apart from a policy's."""
    members: bool = False
    """Whether it is for those who have signed in."""

    @property
    def path(self) -> str:
        """Its address."""
        return reverse(self.url_name, args=self.arguments) + self.query


ENDPOINTS = [
    Endpoint(
        name="search",
        title="Search",
        method="GET",
        url_name="api-documents",
        query="?q=runbook",
        guard="PolicyThrottle, with @ratelimit on the page",
    ),
    Endpoint(
        name="chat",
        title="Chat",
        method="POST",
        url_name="api-messages",
        arguments=["random"],
        guard="PolicyThrottle, with @ratelimit on the page",
        members=True,
    ),
    Endpoint(
        name="upload",
        title="Upload",
        method="POST",
        url_name="api-uploads",
        guard="UploadRateThrottle",
        group="drf",
        members=True,
    ),
    Endpoint(name="auth", title="Login", method="POST", url_name="login", guard="@ratelimit, three limits"),
]


class Told(TypedDict):
    """What a decision says, for a script to show."""

    policy: str
    source: str
    allowed: bool
    limit: int
    remaining: int
    window: float
    reset: float
    retry: float | None


class State(TypedDict):
    """Who decides now, and how the visitor stands."""

    who: str
    headline: str
    detail: str
    power: str
    owned: bool
    standings: dict[str, Told | None]


def told(decision: Decision) -> Told | None:
    """Return what a decision says; nothing of a policy without limits. Seconds."""
    tightest = decision.tightest
    if tightest is None:
        return None
    return Told(
        policy=decision.policy,
        source=decision.source,
        allowed=decision.allowed,
        limit=tightest.rate.limit,
        remaining=tightest.remaining,
        window=tightest.rate.window,
        reset=round(tightest.reset_after, 3),
        retry=decision.retry_after,
    )


def state(request: HttpRequest) -> State:
    """Return how the four limits stand for this visitor."""
    standings = {endpoint.name: told(_peek(request, endpoint)) for endpoint in ENDPOINTS}
    who, since = _who()
    running = demo.current()
    return State(
        who=who,
        headline=HEADLINES[who],
        detail=_detail(who, since),
        power=running.backing.power if running else "none",
        owned=bool(running and running.backing.owned),
        standings=standings,
    )


def forget(request: HttpRequest, name: str) -> int:
    """Let the visitor begin anew with a policy; return how many logs were forgotten."""
    return forget_logs(default_limiter(), Client(_values(request, name)), name)


def _peek(request: HttpRequest, endpoint: Endpoint) -> Decision:
    limiter = default_limiter()
    policy = replace(limiter.policies[endpoint.name], group=endpoint.group)
    return limiter.peek(policy, _identities(request, policy))


def _identities(request: HttpRequest, policy: Policy) -> tuple[str, ...]:
    if policy.name == "auth":  # the page does not log in: a form that the hammer sends does
        return tuple(key.named(_values(request, policy.name)) for key in policy.keys)
    return policy.identities(request)


def _values(request: HttpRequest, name: str) -> dict[str, str]:
    """Return what the limits of a policy are told about the visitor by."""
    if name == "auth":
        return {"ip": client_ip(request), "username": STRANGER}
    if request.user.is_authenticated:
        return {"user": str(request.user.pk)}
    return {"ip": client_ip(request)}


def _who() -> tuple[str, float]:
    """Return who decides, and for how many seconds, if it is the host."""
    remote = default_limiter().remote
    if remote is None:
        return "process", 0.0
    host = remote.limits.host
    if not host.decides:
        return "redis", 0.0
    return "host" if host.shares else "process", max(0, time.monotonic_ns() - host.words[ERA]) / 1e9


HEADLINES = {
    "redis": "Redis decides",
    "host": "Redis is away, the limits hold",
    "process": "This process decides",
}


def _detail(who: str, since: float) -> str:
    if who == "redis":
        return "One command a request, whatever the number of limits, by the server's clock."
    if who == "host":
        return (
            f"For {since:.0f} s the processes of this host decide together, from what Redis last said. "
            "Nobody gets a fresh budget, now or when it returns."
        )
    return "The same algorithm in the memory of this process, for it alone."
