"""Several policies in one question: all of them let a request pass and are charged, or none is.

Each keeps its own logs, so that who is charged by one of them alone is charged to the same. Without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

from redis_infra.exceptions import SettingsError
from redis_infra.throttling.plans import Plan, Tag
from redis_infra.throttling.policies import Policy

__all__ = ["JointPlan"]

_STRICTEST_FIRST: Final = ("deny", "host", "allow")


class JointPlan(Plan):
    """The plans of several policies as one.

    In an outage the strictest of their rules holds for all, and if one is not to be shown none is. On a
    cluster they have to be for the same identity: all keys of a question are in one slot there.

    Raises:
        SettingsError: they do not agree on what is given back, which is one thing for one charge.
    """

    def __init__(self, parts: Sequence[Plan]) -> None:
        self.parts = tuple(parts)
        super().__init__(_joined([part.policy for part in parts]), parts[0].prefix, together=False)
        self.named_rates = tuple(chain.from_iterable(part.named_rates for part in parts))

    def _labels(self) -> list[str]:
        return [label for part in self.parts for label in part.labels]

    def keys(self, tags: Sequence[Tag]) -> tuple[str, ...]:
        keys: list[str] = []
        for part in self.parts:
            keys += part.keys(tags[len(keys) : len(keys) + part.count])
        return tuple(keys)


def _joined(policies: Sequence[Policy]) -> Policy:
    name = "+".join(policy.name for policy in policies)
    refunds = {policy.refund_on for policy in policies}
    if len(refunds) > 1:
        raise SettingsError(
            f"the policies {name!r} differ in refund_on; give each to a throttle of its own: "
            + ", ".join(f"PolicyThrottle.of({policy.name!r})" for policy in policies)
        )
    return Policy(
        name,
        tuple(limit for policy in policies for limit in policy.limits),
        on_outage=min((policy.on_outage for policy in policies), key=_STRICTEST_FIRST.index),
        headers=all(policy.headers for policy in policies),
        refund_on=refunds.pop(),
    )
