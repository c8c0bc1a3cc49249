"""Plans: a policy made ready to be asked about a million times.

What does not change between two requests (the command's head and tail, the names, the terms) is worked out
once; what is left is to put the digests of the identities between. Without I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from redis_infra.connection.scripts import Script
from redis_infra.exceptions import SettingsError
from redis_infra.keys import digest as short_digest
from redis_infra.throttling.decisions import Decision
from redis_infra.throttling.host_tables import Note, Page, Spot, Tag, pages_of
from redis_infra.throttling.identity import Key, digest, normalise
from redis_infra.throttling.local import Name
from redis_infra.throttling.policies import Policy
from redis_infra.throttling.sliding_log import Terms

__all__ = [
    "FORGET",
    "HIT",
    "MERGE",
    "REFUND",
    "Entry",
    "Identity",
    "Plan",
    "Tag",
    "note_of",
    "plain_label",
    "redis_name",
    "tag_from",
    "tag_of",
]

HIT: Final = Script("redis_infra.throttling", "hit")
REFUND: Final = Script("redis_infra.throttling", "refund")
FORGET: Final = Script("redis_infra.throttling", "forget")
MERGE: Final = Script("redis_infra.throttling", "merge")

Identity: TypeAlias = str | Mapping[str, str] | Sequence[str]
"""Whom a request is charged to: one text for all limits of a policy, texts by the names of their keys, or
one for each limit in order."""

_PLAIN: Final = re.compile(r"[\w.+/;-]{1,64}", re.ASCII)


_NOBODY: Final = Tag(32 * b"\0", 0)


@lru_cache(maxsize=8192)
def tag_of(identity: str) -> Tag:
    """Return what stands for an identity; how it is written (case, width, spaces around) does not matter."""
    return tag_from(digest(normalise(identity)))


def tag_from(text: str) -> Tag:
    """Return the tag of a digest."""
    return Tag(text.encode("ascii"), int(text[:16], 16))


@lru_cache(maxsize=4096)
def note_of(label: str, window: int, limit: int) -> Note:
    """Return a limit as the tables of the host know it."""
    policy = label.partition(":")[0]
    return Note(int(short_digest(policy), 16), int(short_digest(label, 4), 16) or 1, window, limit)


def redis_name(prefix: str, label: str, identity: str, *, together: bool) -> str:
    """Return the key of one log.

    The hash tag, which decides about the slot in a cluster, is the identity, so that a policy spreads over
    the nodes; where a policy has limits for several identities, it is the policy, so that they are
    ``together``.
    """
    if together:
        policy, _, rest = label.partition(":")
        return f"{prefix}:rl:{{{policy}}}:{rest}:{identity}"
    return f"{prefix}:rl:{{{identity}}}:{label}"


class Entry(NamedTuple):
    """One log that a request is charged to, in all its names."""

    name: Name
    key: str
    """In Redis."""
    tag: Tag
    note: Note
    """With the tag: where it stands in the tables of the host."""
    terms: Terms
    page: Page
    """With which other limits it stands there."""

    @property
    def spot(self) -> Spot:
        return Spot.of(self.tag, self.note)


class Plan:
    """One policy, ready. Immutable but for a cache of tails; share it freely."""

    def __init__(self, policy: Policy, prefix: str, *, together: bool | None = None) -> None:
        self.policy = policy
        self.name = policy.name
        self.named_rates = policy.named_rates
        self.prefix = prefix
        self.together = len(set(policy.keys)) > 1 if together is None else together
        self.labels = tuple(self._labels())
        rates = [limit.rate for limit in policy.limits]
        self.terms = tuple(Terms(rate.limit, rate.window_ms, rate.grain_ms) for rate in rates)
        self.count = len(self.terms)
        self.longest = max((each.window for each in self.terms), default=0)
        """Milliseconds after which nothing of today counts."""
        self.notes = tuple(
            note_of(label, each.window, each.limit)
            for label, each in zip(self.labels, self.terms, strict=True)
        )
        self.pages = pages_of(self.notes)
        self.counts_locally = policy.on_outage == "host"
        self._head = self._packed_head()
        self._tails: dict[int, bytes] = {}

    def _labels(self) -> list[str]:
        group = f"{self.policy.group}." if self.policy.group else ""
        policy = group + _plain(self.name)
        labels = []
        for limit in self.policy.limits:
            key = f"{_plain(limit.key.name)}:" if self.together else ""
            labels.append(f"{policy}:{key}{limit.rate.period}{'-fixed' if limit.rate.fixed else ''}")
        return labels

    # Identities

    def tags(self, identity: Identity) -> tuple[Tag, ...]:
        """Return the tag for each limit.

        Raises:
            SettingsError: there are not as many identities as limits, or one has no name or is no text.
        """
        if isinstance(identity, str):
            return (tag_of(identity),) * self.count
        # The tuple first: what a policy found in a request, and asking an abstract class takes a microsecond.
        if type(identity) is not tuple:
            if isinstance(identity, Mapping):
                return tuple(tag_of(self._named(identity, key)) for key in self.policy.keys)
            if not isinstance(identity, Sequence) or isinstance(identity, bytes):
                raise _no_identity(identity)
        if len(identity) != self.count:
            raise SettingsError(
                f"policy {self.name!r} has {self.count} limits, but {len(identity)} identities were given; "
                "give one for all, one for each, or a dictionary by the names of the keys"
            )
        try:
            return tuple([tag_of(each) for each in identity])
        except (AttributeError, TypeError):  # asked for afterwards: it is on the way of every request
            raise next(_no_identity(each) for each in identity if not isinstance(each, str)) from None

    def _named(self, identity: Mapping[str, str], key: Key) -> str:
        """Return the identity that the key would find in a request with these values."""
        try:
            return key.named(identity)
        except KeyError:
            given = ", ".join(map(repr, identity)) or "nothing"
            raise SettingsError(f"policy {self.name!r} is keyed by {key.name!r}; {given} was given") from None

    def names(self, tags: Sequence[Tag]) -> tuple[Name, ...]:
        """Return what tells the logs apart where they are not Redis'."""
        return tuple(
            Name(label, tag.text.decode("ascii")) for label, tag in zip(self.labels, tags, strict=True)
        )

    def keys(self, tags: Sequence[Tag]) -> tuple[str, ...]:
        """Return the keys in Redis."""
        return tuple(
            redis_name(self.prefix, label, tag.text.decode("ascii"), together=self.together)
            for label, tag in zip(self.labels, tags, strict=True)
        )

    def entries(self, tags: Sequence[Tag]) -> list[Entry]:
        """Return everything about the logs of a request."""
        names, keys = self.names(tags), self.keys(tags)
        apart = tags.count(tags[0]) != len(tags)
        pages = [page for page in self.pages[apart] for _ in range(page.size)]
        return [Entry(*each) for each in zip(names, keys, tags, self.notes, self.terms, pages, strict=True)]

    # Commands

    def packed(self, tags: Sequence[Tag], cost: int) -> bytes:
        """Return the one command that asks and charges."""
        return self._head % tuple([tag[0] for tag in tags]) + (self._tails.get(cost) or self._tail(cost))

    def arguments(self, cost: int) -> tuple[int, ...]:
        """Return ARGV of ``hit.lua``."""
        return (cost, *[number for each in self.terms for number in each])

    def refund_arguments(self, cost: int, charged: int) -> tuple[int, ...]:
        """Return ARGV of ``refund.lua``."""
        return (cost, charged, *[number for each in self.terms for number in (each.window, each.grain)])

    def _packed_head(self) -> bytes:
        # By hand: only the digests change, and their length does not (hiredis takes 2.5 us for ten of them).
        keys = [key.encode() for key in self.keys((_NOBODY,) * self.count)]
        words = (b"EVALSHA", HIT.sha.encode(), b"%d" % self.count, *keys)
        head = b"*%d\r\n" % (4 + 4 * self.count) + b"".join(map(_bulk, words))
        return head.replace(b"%", b"%%").replace(_NOBODY.text, b"%b")

    def _tail(self, cost: int) -> bytes:
        tail = b"".join(_bulk(b"%d" % number) for number in self.arguments(cost))
        if len(self._tails) < 64:
            self._tails[cost] = tail
        return tail

    # Answers

    def decision(self, reply: Sequence[int], source: str, cost: int, tags: Sequence[Tag]) -> Decision:
        """Return what a reply of the script says."""
        return Decision(bool(reply[0]), source, cost, self, reply[2:], [reply[1], tags, cost])

    def unasked(self, allowed: bool, cost: int) -> Decision:
        """Return the decision of a policy that does not count in an outage."""
        numbers: list[int] = []
        for each in self.terms:
            numbers += (each.limit, 0, 0) if allowed else ()
        return Decision(allowed, "none", cost, self, numbers)

    def __repr__(self) -> str:
        return f"Plan({self.name!r})"


def _no_identity(identity: object) -> SettingsError:
    # Its type and not itself: what people pass by mistake may be a token.
    return SettingsError(f"an identity is text, such as 'user:7', and not {type(identity).__name__}")


def plain_label(policy: str) -> str:
    """Return how the labels of a policy's limits begin."""
    return f"{_plain(policy)}:"


def _plain(text: str) -> str:
    """Return a name that can stand in a key: as it is, or what stands for it."""
    return text if _PLAIN.fullmatch(text) else short_digest(text)


def _bulk(item: Any) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(item), item)
