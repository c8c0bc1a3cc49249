"""Fills an empty database with a company's worth of talk.

The same words, people and order every time; only the dates follow the clock, so
that the newest message is minutes old. Needs about a second, most of it SQLite.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from string import Formatter

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from example_project.relay.content import (
    BOARD_TEXT,
    BOARD_TITLE,
    CITIES,
    CUSTOMERS,
    DAYS,
    DOCUMENTS,
    FEATURES,
    FIRST_NAMES,
    LAST_NAMES,
    OFF_WORK,
    REPLIES,
    ROOMS,
    SERVICES,
    TAILS,
    WORK_REPLIES,
)
from example_project.relay.models import Document, Message, Room

PEOPLE = 200
MESSAGES = 5_000
DOCUMENT_COUNT = 300
SEED = 20_260
DAYS_BACK = 90
DEMO_USER = "demo"
TAILED = 0.3
"""How many of the things said have a second sentence."""
NUMBERS = [3, 4, 6, 8, 9, 12, 14, 17, 20, 25, 30, 35, 40, 48]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """How much was written."""

    people: int
    rooms: int
    messages: int
    documents: int


@transaction.atomic
def seed(password: str | None = None, *, now: datetime | None = None) -> Seeded:
    """Write people, rooms, messages and documents into an empty database.

    The person named ``demo`` may use the admin, with ``password``; without one
    nobody can sign in.
    """
    chance, now = random.Random(SEED), now or timezone.now()  # noqa: S311 - plausible, not secret
    people = _people(chance, password, now)
    rooms = Room.objects.bulk_create(
        Room(slug=slug, name=name, topic=topic, created_at=now - timedelta(days=DAYS_BACK + 30))
        for slug, name, topic, _, _ in ROOMS
    )
    messages = _messages(chance, rooms, people, now)
    documents = _documents(chance, people, now)
    return Seeded(people=len(people), rooms=len(rooms), messages=messages, documents=documents)


def _people(chance: random.Random, password: str | None, now: datetime) -> list[User]:
    names = [(first, last) for first in FIRST_NAMES for last in LAST_NAMES]
    locked = make_password(None)
    users = [
        User(
            username=f"{first}.{last}".lower(),
            first_name=first,
            last_name=last,
            password=locked,
            email=f"{first}.{last}@relay.example".lower(),
            date_joined=now - timedelta(days=DAYS_BACK + chance.randint(0, 900)),
        )
        for first, last in chance.sample(names, PEOPLE - 1)
    ]
    demo = User(
        username=DEMO_USER,
        first_name="Demo",
        last_name="Visitor",
        password=make_password(password),
        is_staff=True,
        is_superuser=True,
        date_joined=now,
    )
    return User.objects.bulk_create([demo, *users])


def _messages(chance: random.Random, rooms: list[Room], people: list[User], now: datetime) -> int:
    weights = [busy for *_, busy, _ in ROOMS]
    # Every room has its regulars; the first of the list says most.
    regulars = [chance.sample(people[1:], min(60, 8 + 4 * busy)) for busy in weights]
    talks = [_Talk(chance, slug, lines) for slug, *_, lines in ROOMS]
    written: list[Message] = []
    for at in _moments(chance, now):
        which = chance.choices(range(len(rooms)), weights)[0]
        author = regulars[which][min(int(chance.expovariate(0.12)), len(regulars[which]) - 1)]
        body = Words(chance, people).fill(talks[which].next_line())
        written.append(Message(room=rooms[which], author=author, body=body, created_at=at))
    return len(Message.objects.bulk_create(written, batch_size=1_000))


class _Talk:
    """What is said in one room: something new, then a few replies; nothing twice in a short while."""

    def __init__(self, chance: random.Random, slug: str, lines: list[str]) -> None:
        self._chance = chance
        self._lines = lines
        self._answers = REPLIES if slug in OFF_WORK else WORK_REPLIES
        self._tails = [] if slug in OFF_WORK else TAILS
        self._lately: deque[str] = deque(maxlen=len(lines) // 2)
        self._answered: deque[str] = deque(maxlen=len(self._answers) // 2)
        self._answers_due = 0

    def next_line(self) -> str:
        """Return the next thing said, with its slots still open."""
        if self._answers_due:
            self._answers_due -= 1
            return self._another(self._answers, self._answered)
        self._answers_due = self._chance.choice([0, 0, 0, 1, 1, 2, 3])
        line = self._another(self._lines, self._lately)
        return (
            f"{line} {self._chance.choice(self._tails)}"
            if self._tails and self._chance.random() < TAILED
            else line
        )

    def _another(self, lines: list[str], lately: deque[str]) -> str:
        line = self._chance.choice([line for line in lines if line not in lately])
        lately.append(line)
        return line


def _moments(chance: random.Random, now: datetime) -> list[datetime]:
    """Return when things were said, oldest first: more lately than long ago."""
    ages = sorted((chance.random() ** 1.25 * DAYS_BACK * 86_400 for _ in range(MESSAGES)), reverse=True)
    return [now - timedelta(seconds=60 + age) for age in ages]


def _documents(chance: random.Random, people: list[User], now: datetime) -> int:
    board = Document(
        title=BOARD_TITLE,
        kind=Document.Kind.GUIDE,
        owner=people[0],
        updated_at=now,
        body=f"Revision 1.\n\n{BOARD_TEXT}",
    )
    titles: Counter[str] = Counter()
    documents = [board, *(_document(chance, people, now, titles) for _ in range(DOCUMENT_COUNT - 1))]
    return len(Document.objects.bulk_create(documents, batch_size=500))


def _document(chance: random.Random, people: list[User], now: datetime, titles: Counter[str]) -> Document:
    kind = chance.choice(list(DOCUMENTS))
    wordings, sentences = DOCUMENTS[kind]
    words = Words(chance, people)
    title = words.fill(chance.choice(wordings))
    titles[title] += 1
    updated = now - timedelta(minutes=chance.randint(90, DAYS_BACK * 1440))
    return Document(
        title=title if titles[title] == 1 else f"{title} ({titles[title]})",
        kind=kind,
        owner=chance.choice(people[1:]),
        body=_body(chance, sentences, words),
        updated_at=updated,
        created_at=updated - timedelta(days=chance.randint(0, 40)),
        revision=chance.randint(1, 9),
    )


def _body(chance: random.Random, sentences: list[str], words: Words) -> str:
    kept = sorted(chance.sample(range(len(sentences)), chance.randint(4, len(sentences))))
    filled = [words.fill(sentences[index]) for index in kept]
    half = len(filled) // 2
    return "\n\n".join(" ".join(part) for part in (filled[:half], filled[half:]))


class Words:
    """Puts something plausible into the ``{slots}`` of sentences.

    One text is about one service, one feature, one customer: those stay the same
    for as long as the object is used. Names, days and numbers differ each time.
    """

    def __init__(self, chance: random.Random, people: list[User]) -> None:
        self._chance = chance
        self._people = people
        self._subject = {
            slot: chance.choice(words)
            for slot, words in {"service": SERVICES, "feature": FEATURES, "customer": CUSTOMERS}.items()
        }

    def fill(self, text: str) -> str:
        """Return ``text`` with every slot filled."""
        parts: list[str] = []
        for literal, slot, _, _ in Formatter().parse(text):
            parts += [literal, self._pick(slot) if slot else ""]
        filled = "".join(parts)
        # Services are written in small letters, at the head of a sentence too.
        return filled if text.startswith("{service}") else filled[:1].upper() + filled[1:]

    def _pick(self, slot: str) -> str:
        match slot:
            case "n":
                return str(self._chance.choice(NUMBERS))
            case "name":
                return self._chance.choice(self._people[1:]).first_name
            case "room":
                return self._chance.choice(ROOMS)[1].lower()
            case "city":
                return self._chance.choice(CITIES)
            case "day":
                return self._chance.choice(DAYS)
        return self._subject[slot]
