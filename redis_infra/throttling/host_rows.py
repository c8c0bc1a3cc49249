"""Rows of the host's logs: what each holds, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis_infra.throttling import sliding_log
from redis_infra.throttling.host_tables import Page, Spot, page_from, page_text
from redis_infra.throttling.local import Name
from redis_infra.throttling.plans import Entry, note_of, tag_from
from redis_infra.throttling.sliding_log import Log

__all__ = ["COLUMNS", "SCHEMA", "Row", "new_row", "row_of", "values_of"]

# By identity first: logs of one identity are told together.
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS logs (
    identity TEXT NOT NULL, label TEXT NOT NULL, key TEXT NOT NULL, page TEXT NOT NULL,
    most INTEGER NOT NULL, window INTEGER NOT NULL, grain INTEGER NOT NULL,
    log TEXT NOT NULL, pending TEXT NOT NULL, token TEXT NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (identity, label)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ends ON logs (until);
CREATE INDEX IF NOT EXISTS frozen ON logs (token) WHERE token != '';
CREATE TABLE IF NOT EXISTS forgotten (start TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""
COLUMNS: Final = "label, identity, key, page, most, window, grain, log, pending, token, until"


class Row(NamedTuple):
    """One identity's log: what was let through, and what of it is on its way to Redis under ``token``."""

    name: Name
    key: str
    page: Page
    """With which other limits it stands in the tables of the host."""
    limit: int
    window: int
    grain: int
    log: Log
    pending: Log
    token: str
    until: int

    @property
    def spot(self) -> Spot:
        """Where it stands in the tables of the host; not of a shared log."""
        return Spot.of(tag_from(self.name.identity), note_of(self.name.label, self.window, self.limit))

    def live(self, now: int) -> Log:
        """All that counts and that Redis may not know."""
        return sliding_log.live(sliding_log.merge(self.log, self.pending), now, self.window)


def new_row(entry: Entry) -> Row:
    return Row(entry.name, entry.key, entry.page, *entry.terms, [], [], "", 0)


def row_of(found: Sequence[Any]) -> Row:
    """Return the row that stands in these :data:`COLUMNS`."""
    label, identity, key, page, limit, window, grain, log, pending, token, until = found
    # Most of the time nothing is on its way.
    on_its_way = [] if pending == "[]" else json.loads(pending)
    name, terms = Name(label, identity), (limit, window, grain)
    return Row(name, key, page_from(page), *terms, json.loads(log), on_its_way, token, until)


def values_of(row: Row, log: Log) -> tuple[Any, ...]:
    """Return the :data:`COLUMNS` of a row with this log; of one that has anything in it."""
    until = max(entry[0] for entry in (*log, *row.pending)) + row.window
    texts = json.dumps(log), json.dumps(row.pending) if row.pending else "[]"
    terms = row.limit, row.window, row.grain
    return (*row.name, row.key, page_text(row.page), *terms, *texts, row.token, until)
