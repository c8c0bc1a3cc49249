"""Policies: which limits hold together, for whom, and what an outage means for them.

Read from ``REDIS_INFRA["THROTTLE"]``: ``RATES`` are policies of one identity, ``POLICIES`` say more, and what
they leave out is as in RATES. Knows nothing of Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from redis_infra.conf import Report, ThrottleSettings, did_you_mean
from redis_infra.conf.schema import raise_error
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.identity import Key, parse_key
from redis_infra.throttling.rates import Rate

__all__ = ["Limit", "Policy", "load_policies", "make_policy"]

_AUTH: Final[Mapping[str, Any]] = {"key": "ip+username", "headers": False, "refund_on": "success"}
_OTHERS_OF_AUTH: Final = (("20/15min", "ip"), ("30/h", "username"))
"""Beside the rate of RATES, which is for one account from one address: for one address, and for one account
from anywhere. The last is for a second factor or a captcha rather than a lock: else anybody locks anybody
out."""
_OPTIONS: Final = ("limits", "rate", "key", "on_outage", "headers", "refund_on")
_OUTAGES: Final = ("host", "deny", "allow")


@dataclass(frozen=True)
class Limit:
    """One limit of a policy: how many, and for whom."""

    rate: Rate
    key: Key = field(default_factory=lambda: parse_key("user_or_ip"))


@dataclass(frozen=True, eq=False)
class Policy:
    """Limits that hold together: a request passes all of them or is charged to none.

    ``on_outage``: ``host`` (the processes of the host go on counting), ``deny`` or ``allow``. ``refund_on``
    is ``"success"`` where a request that succeeded is to be given back: a login. Frozen; each is its own, and
    hashed at no cost.
    """

    name: str
    limits: tuple[Limit, ...]
    on_outage: str = "host"
    headers: bool = True
    refund_on: str | None = None
    group: str = ""
    """What is forgotten together: ``"drf"`` goes with ``cache.clear()``, as stock DRF's throttles do."""

    @cached_property
    def named_rates(self) -> tuple[tuple[str, Rate], ...]:
        """Each limit's name, as headers show it, and rate: the policy's own where it has but one."""
        if len(self.limits) == 1:
            return ((self.name, self.limits[0].rate),)
        return tuple(
            (f"{self.name}-{limit.key.name}-{limit.rate.period}", limit.rate) for limit in self.limits
        )

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Whom each limit is for."""
        return tuple(limit.key for limit in self.limits)

    def identities(self, request: Any) -> tuple[str, ...]:
        """Return whom a request is charged to, for each limit."""
        readers, places = self._distinct
        if len(readers) == 1:
            return (readers[0](request),) * len(places)
        found = [read(request) for read in readers]
        return tuple([found[place] for place in places])

    @cached_property
    def _distinct(self) -> tuple[tuple[Callable[[Any], str], ...], tuple[int, ...]]:
        """How to read each key once, and which of them each limit is for.

        Hashing keys takes longer than asking them.
        """
        keys = list(dict.fromkeys(self.keys))
        readers = [key.parts[0].of if len(key.parts) == 1 else key.of for key in keys]
        return tuple(readers), tuple(keys.index(key) for key in self.keys)


def make_policy(name: str, rate: Rate | None, key: Key | None = None, **options: Any) -> Policy:
    """Return the policy of one rate (and what it has to hold with) for one identity; None has no limits."""
    key = key if key is not None else parse_key("user_or_ip")
    return Policy(name, tuple(Limit(each, key) for each in (rate if rate is not None else ())), **options)


def load_policies(throttle: ThrottleSettings, report: Report = raise_error) -> Mapping[str, Policy]:
    """Return every policy by name: those of ``RATES``, and over them ``POLICIES``.

    Raises:
        SettingsError: a rate, a key or an option is wrong; the text names the setting and the value. With a
            ``report`` that returns, that policy is left out.
    """
    where = "REDIS_INFRA['THROTTLE']"
    found: dict[str, Policy] = {}
    for name, rate in throttle.rates.items():
        _load(found, name, _options(name, rate, {}), f"{where}['RATES'][{name!r}]", throttle, report)
    for name, said in throttle.policies.items():
        raw = _options(name, said, throttle.rates)
        _load(found, name, raw, f"{where}['POLICIES'][{name!r}]", throttle, report)
    return found


def _options(name: str, said: Any, rates: Mapping[str, str | None]) -> Mapping[str, Any]:
    """Return the options of a policy; ``rates`` have its limits where it names none."""
    options = dict(said) if isinstance(said, Mapping) else {"limits": said}
    says_limits = "limits" in options or "rate" in options
    if not says_limits and name in rates:
        options["limits"] = rates[name]
    if name != "auth":
        return options
    if not (says_limits and "key" in options):  # who wrote both wrote all that there is
        word = "rate" if "rate" in options else "limits"
        options[word] = _beside_our_others(options.get(word), options.get("key", _AUTH["key"]))
    return {**_AUTH, **options}


def _beside_our_others(limits: Any, key: Any) -> Any:
    """Return rates that name no key with that one, and with the limits of ``auth`` that are not about it.

    None, which takes all away, and limits with keys of their own are left as they are.
    """
    items = limits if isinstance(limits, list | tuple) else [limits]
    if not items or limits is None or any(isinstance(item, list | tuple) for item in items):
        return limits
    return [*((item, key) for item in items), *_OTHERS_OF_AUTH]


def _load(
    found: dict[str, Policy], name: str, raw: Any, label: str, throttle: ThrottleSettings, report: Report
) -> None:
    try:
        found[name] = _read(name, raw, throttle)
    except SettingsError as error:
        report("value", SettingsError(f"{label}: {error}"))


def _read(name: str, raw: Any, throttle: ThrottleSettings) -> Policy:
    options = dict(raw) if isinstance(raw, Mapping) else {"limits": raw}
    for option in options:
        if option not in _OPTIONS:
            raise SettingsError(f"{option!r} is not an option of a policy{did_you_mean(option, _OPTIONS)}")
    if options.get("limits", options.get("rate", ())) in ((), []):
        raise SettingsError(
            "it has no limits, and would let everything through; write them, 'limits': [('5/15min', 'ip')], "
            "or 'limits': None where that is meant"
        )
    limits = tuple(_limits(options))
    _expect_unlike(name, limits)
    on_outage = options.get("on_outage", throttle.on_outage)
    if on_outage not in _OUTAGES:
        raise SettingsError(f"on_outage {on_outage!r} is not a choice{did_you_mean(on_outage, _OUTAGES)}")
    if name == "auth" and on_outage == "allow":
        if "on_outage" in options:
            raise SettingsError(
                "on_outage 'allow' would open the login to guessing whenever Redis is down; "
                "write 'host' or 'deny'"
            )
        on_outage = "host"
    headers, refund_on = options.get("headers", True), options.get("refund_on")
    if not isinstance(headers, bool):
        raise SettingsError(f"headers {headers!r} is neither True nor False")
    if refund_on not in (None, "success", "2xx"):
        raise SettingsError(f"refund_on {refund_on!r} is not a choice; write None, 'success' or '2xx'")
    return Policy(name, limits, on_outage, headers, refund_on)


def _expect_unlike(name: str, limits: Iterable[Limit]) -> None:
    """Refuse two limits of which one says nothing."""
    before: dict[object, Limit] = {}
    for limit in limits:
        other = before.setdefault((limit.rate.window_ms, limit.rate.fixed, limit.key), limit)
        if other is limit:
            continue
        one, own = f"('{other.rate}', {limit.key.name!r})", f"('{limit.rate}', {limit.key.name!r})"
        text = f"two limits have the same window and the same key, {one} and {own}; "
        if name == "auth" and (str(limit.rate), limit.key.name) in _OTHERS_OF_AUTH:
            # Who wrote nothing but 'key': 'ip' never saw the second.
            raise SettingsError(
                f"{text}the second is there where 'limits' are missing beside a 'key'; write all that are "
                "to hold, such as 'limits': [('5/15min', 'ip+username'), ('20/15min', 'ip')]"
            )
        raise SettingsError(f"{text}keep the smaller one")


def _limits(options: Mapping[str, Any]) -> Iterable[Limit]:
    """Yield what ``limits`` (or ``rate``) and ``key`` say: one text, or texts and (rate, key) pairs."""
    if "limits" in options and "rate" in options:
        raise SettingsError("a policy has 'limits' or 'rate', not both")
    raw, key = options.get("limits", options.get("rate")), parse_key(options.get("key", "user_or_ip"))
    for item in raw if isinstance(raw, list | tuple) else [raw]:
        if isinstance(item, list | tuple):
            if len(item) != 2:
                raise SettingsError(f"{item!r} is not a limit; write ('5/15min', 'ip')")
            rate, own = Rate.parse(item[0]), parse_key(item[1])
        else:
            rate, own = Rate.parse(item), key
        yield from (Limit(each, own) for each in (rate if rate is not None else ()))
